"""Contexts flow in; a model's replies to them come out, from compiled batches that any number of devices may share.

    contexts ─group_by_length→ batches ─a device each→ replies ─as they come→ file ─again→ the batches not in it whole

Within a batch a reply that ends gives its row to the next context (`decoding/rolling.py`). A batch is decided by the
contexts and its size alone: always the same contexts in the same programs, whichever device takes it, however many there
are, and whether the run was interrupted. So none of these changes a reply. A batch that was not written whole is made
again. With a search or a rank, whose rows do not come and go, a batch is as many contexts as there are rows.

Letters: B rows of all devices together, T prompt tokens.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dialogpt_jax.arguments import shown
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import fill_up, pad_right
from dialogpt_jax.decoding.beam_search import beam_search
from dialogpt_jax.decoding.contrastive import contrastive_search
from dialogpt_jax.decoding.request import bucket_of
from dialogpt_jax.decoding.sampling import describe_sampling
from dialogpt_jax.decoding.soundness import check_logprobs
from dialogpt_jax.decoding.speculative import Draft
from dialogpt_jax.evaluation.contexts import Context
from dialogpt_jax.evaluation.kept_rows import make_rows
from dialogpt_jax.evaluation.replies import DialogueFile, EvaluationFile, Reply
from dialogpt_jax.evaluation.settings import Settings
from dialogpt_jax.ranking.dialogrpt import Ranker
from dialogpt_jax.ranking.rank_options import Rank
from dialogpt_jax.ranking.ranking_model import RankingModel
from dialogpt_jax.replies.keys import row_keys
from dialogpt_jax.replies.language_model import LanguageModel, refuse_draft
from dialogpt_jax.replies.rolled import rolled_replies

ROWFULS = 8  # contexts of a batch, as multiples of the rows: the rows run empty once a batch


def answer(
    lm: LanguageModel,
    contexts: Sequence[Context],
    settings: Settings,
    *,
    out: str | os.PathLike[str] | None = None,
    layout: type[EvaluationFile] | type[DialogueFile] = EvaluationFile,
    part: tuple[int, int] = (0, 1),
    devices: Sequence[Any] | None = None,
    progress: Callable[[Sequence[Reply], int], None] | None = None,
) -> list[Reply]:
    """A reply to each context, in their order: those that `out` holds already, and the others.

    A run that is interrupted leaves in `out` what had come; the same call goes on from the whole batches in it, and ends
    with the same file, byte for byte on the same kind of machine.

    Args:
      lm: the model.
      contexts: what to reply to.
      settings: how.
      out: a file of `replies.py`, written as the replies come.
      layout: of that file.
      part: (i, n): batches i, i + n, i + 2n … only, and the replies of those: the share of one of n processes. The n
        files, put one behind the other, are the file of the whole run.
      devices: `jax.Device`s, which share the batches; all of this process by default. What is ranked is made on one.
      progress: called with the replies that came new and the number that is still to come.

    Raises:
      ValueError: settings out of range; a file of another run, or broken (`RepliesFileError`); another process is
        writing to it (`BusyError`); the model's logits are no numbers (`NonFiniteLogits`).
    """
    for way, asked in (
        ("beams", settings.beams),
        ("a rank", settings.rank),
        ("penalty_alpha", settings.contrastive),
    ):
        if asked is not None:
            refuse_draft(lm, way)
    if settings.rank is not None:
        _ranking(lm).backward_of(settings.rank)  # which may be missing
    length = min(settings.max_new_tokens, lm.config.n_positions)
    prompts = [lm.encode(context.turns, max_new_tokens=length) for context in contexts]
    rolls = settings.beams is None and settings.rank is None and settings.contrastive is None
    size = settings.rows * (ROWFULS if rolls else 1)
    batches = group_by_length([len(prompt) for prompt in prompts], size)[part[0] :: part[1]]
    kept_in = None if out is None else layout(out, describe_run(lm, contexts, settings), contexts)

    def make(left: list[Sequence[int]]) -> Iterator[list[Reply]]:
        if settings.rank is not None:
            return _ranked_batches(_ranking(lm), contexts, left, settings.rank, settings)
        make_batches = roll_batches if rolls else search_batches
        return make_batches(lm, contexts, prompts, left, settings, devices=devices)

    return make_rows(kept_in, batches, make, progress)


def group_by_length(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """The contexts of each batch: similar lengths together, the short ones first; the last batch may be smaller.

    lengths 5 9 4 7 2, rows 2:    [4 2] [0 3] [1]
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[begin : begin + rows] for begin in range(0, len(order), rows)]


def rounds(batches: Sequence[Sequence[int]], buckets: Sequence[int], devices: int) -> Iterator[list[Sequence[int]]]:
    """Batches to be made together, one a device: neighbours of one bucket. What is left of a bucket is a smaller round.

    buckets 16 16 16 32, 2 devices:    [0 1] [2] [3]
    """
    for _, group in itertools.groupby(range(len(batches)), key=lambda b: buckets[b]):
        members = [batches[b] for b in group]
        yield from (members[begin : begin + devices] for begin in range(0, len(members), devices))


def roll_batches(
    lm: LanguageModel,
    contexts: Sequence[Context],
    prompts: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    settings: Settings,
    *,
    devices: Sequence[Any] | None = None,
) -> Iterator[list[Reply]]:
    """The replies of all batches as they end; arguments as in `answer`. A device that is done takes the next batch."""
    waiting = iter(batches)
    sampling, longest = lm.with_ids(settings.sampling), min(settings.max_new_tokens, lm.config.n_positions)

    def one_device(device: Any) -> Iterator[list[Reply]]:
        weights = None
        for batch in waiting:
            weights = jax.device_put((lm.params, lm.draft), device) if weights is None else weights
            lots = rolled_replies(
                lm,
                [prompts[i] for i in batch],
                sampling=sampling,
                seed=settings.seed,
                places=batch,
                turns=[len(contexts[i].turns) for i in batch],
                max_new_tokens=longest,
                rows=settings.rows,
                weights=weights,
            )
            for lot in lots:
                yield [_reply(lm, contexts, settings.seed, batch[reply.number], *reply[1:]) for reply in lot]

    running = [one_device(device) for device in (jax.local_devices() if devices is None else devices)]
    while running:
        for one in list(running):
            replies = next(one, None)
            if replies is None:
                running.remove(one)
            elif replies:
                yield replies


def search_batches(
    lm: LanguageModel,
    contexts: Sequence[Context],
    prompts: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    settings: Settings,
    *,
    devices: Sequence[Any] | None = None,
) -> Iterator[list[Reply]]:
    """What a search finds for each round of batches, the best of its beams, as they come; arguments as in `answer`.

    Rows of beams are sharded over a mesh of the devices, parameters are on each of them. Contrastive search is made on one.
    """
    if not batches:
        return
    config, rows = lm.config, settings.rows
    buckets = [bucket_of(max(len(prompts[i]) for i in batch), config.n_positions) for batch in batches]
    most = len(batches) if settings.contrastive is None else 1
    devices = list(jax.local_devices() if devices is None else devices)[:most]
    mesh = Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,))
    params = jax.device_put(lm.params, NamedSharding(mesh, PartitionSpec()))
    for members in rounds(batches, buckets, len(devices)):
        places = [i for batch in fill_up(members, len(devices)) for i in fill_up(batch, rows)]
        longest = max(len(prompts[i]) for i in places)
        tokens_BT, lengths_B = pad_right([prompts[i] for i in places], bucket_of(longest, config.n_positions))
        keys = row_keys(settings.seed, places, [len(contexts[i].turns) for i in places])
        how: dict[str, Any] = {
            "sampling": lm.with_ids(settings.sampling),
            "max_new_tokens": min(settings.max_new_tokens, config.n_positions),
            "stops": lm.stops(settings.sampling),
        }
        if settings.contrastive is not None:
            how |= dataclasses.asdict(settings.contrastive)
            found: Any = jax.device_get(contrastive_search(params, config, tokens_BT, lengths_B, **how))
            best = [found.tokens, found.logprobs, found.lengths, found.finished]
        else:
            assert settings.beams is not None
            how |= dataclasses.asdict(settings.beams)
            how["keys"] = jax.device_put(keys, NamedSharding(mesh, PartitionSpec("rows")))
            found = jax.device_get(beam_search(params, config, tokens_BT, lengths_B, **how))
            best = [x[:, 0] for x in (found.tokens, found.logprobs, found.lengths, found.finished)]
        yield [
            _reply(lm, contexts, settings.seed, i, *(x[d * rows + b] for x in best))
            for d, batch in enumerate(members)
            for b, i in enumerate(batch)
        ]


def _ranking(lm: LanguageModel) -> RankingModel:
    if not isinstance(lm, RankingModel):
        raise TypeError(f"a rank needs a Bot, which proposes several replies; got {shown(lm)}")
    return lm


def _ranked_batches(
    lm: RankingModel, contexts: Sequence[Context], batches: Sequence[Sequence[int]], rank: Rank, settings: Settings
) -> Iterator[list[Reply]]:
    """The first of the ranking of each context. Its draws are by its place among all, as everywhere."""
    how: dict[str, Any] = {"sampling": settings.sampling, "seed": settings.seed, "batch_size": settings.rows}
    for batch in batches:
        turns = [contexts[i].turns for i in batch]
        rankings = lm.rankings(turns, rank, max_new_tokens=settings.max_new_tokens, places=batch, **how)
        yield [
            _reply(lm, contexts, settings.seed, i, best.tokens, best.logprobs, len(best.tokens), best.finished)
            for i, (best, *_) in zip(batch, rankings, strict=True)
        ]


def _reply(
    lm: LanguageModel,
    contexts: Sequence[Context],
    seed: int,
    i: int,
    tokens,
    logprobs,
    length,
    finished,
    forwards=None,
    accepted=None,
) -> Reply:
    context, length = contexts[i], int(length)
    check_logprobs(logprobs[:length])
    return Reply(
        context=i,
        dialogue=context.dialogue,
        turn=len(context.turns),
        seed=seed,
        text=lm.tokenizer.decode(tokens[:length]),
        truth=context.truth,
        finished=bool(finished),
        tokens=length,
        logprob=round(float(np.sum(logprobs[:length], dtype=np.float64)), 6),
        forwards=forwards,
        accepted=accepted,
    )


def describe_run(lm: LanguageModel, contexts: Sequence[Context], settings: Settings) -> dict[str, Any]:
    """What decides the replies, for the first line of their file; models and contexts as digests of their content."""
    beams = {} if settings.beams is None else dataclasses.asdict(settings.beams)
    contrastive = {} if settings.contrastive is None else dataclasses.asdict(settings.contrastive)
    rank = {} if settings.rank is None else _describe_rank(_ranking(lm), settings.rank)
    return {
        "model": digest_of_model(lm),
        "contexts": len(contexts),
        "data": digest_of_data(contexts),
        "sampling": describe_sampling(settings.sampling),
        "seed": settings.seed,
        "max_new_tokens": settings.max_new_tokens,
        "rows": settings.rows,
        "platform": jax.default_backend(),
        **beams,
        **contrastive,
        **rank,
        **({} if lm.draft is None else {"draft": _describe_drafts(lm.draft)}),
    }


def _describe_drafts(draft: Draft) -> str:
    what = "looked up" if draft.config is None else f"by {_digest(draft.config, [], draft.params)}"
    return f"{draft.tokens} {what}"


def _describe_rank(lm: RankingModel, rank: Rank) -> dict[str, Any]:
    """The rule with its numbers, and the model that decides."""
    numbers: dict[str, Any] = {"hypotheses": rank.hypotheses, "rank_temperature": rank.temperature}
    if rank.by == "mmi":
        backward = lm.backward_of(rank)
        assert backward is not None
        numbers |= {
            "backward_weight": rank.backward_weight,
            "mix": rank.mix,
            "source": rank.source,
            "reverse": digest_of_model(backward),
        }
    if rank.by == "sense":
        assert lm.sense is not None
        numbers |= {"head": _digest(lm.config, [], lm.sense)}
    if rank.by == "rpt":
        assert lm.ranker is not None
        numbers |= {"ranker": digest_of_model(lm.ranker)}
    return {"rank": rank.rule, **numbers}


def digest_of_data(contexts: Iterable[Any]) -> str:
    """Of what is replied to, in a few characters."""
    digest = hashlib.sha256()
    for context in contexts:
        digest.update(json.dumps(context).encode())
    return digest.hexdigest()[:16]


def digest_of_model(lm: LanguageModel | Ranker) -> str:
    """Of the sizes, the vocabulary and the parameters, in a few characters."""
    return _digest(lm.config, [lm.tokenizer.token(i) for i in range(lm.tokenizer.vocab_size)], lm.params)


def _digest(config: GPT2Config, pieces: Sequence[str], params: Any) -> str:
    model = hashlib.sha256()
    model.update(json.dumps([dataclasses.asdict(config), pieces], default=str).encode())
    for path, leaf in sorted((jax.tree_util.keystr(p), x) for p, x in jax.tree_util.tree_leaves_with_path(params)):
        model.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        model.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return model.hexdigest()[:16]
