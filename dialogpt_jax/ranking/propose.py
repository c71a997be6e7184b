"""Dialogues in, for each several hypotheses with what is known of them, ordered by a rule; the first is the reply.

    contexts ─generate_candidates→ hypotheses ─scores→ Evidence ─guards, choose→ Ranking

A dialogue is prefilled once, and its hypotheses share that. The host looks at them between the two compiled calls, since
guards read texts; and then the scoring is only as wide as the longest hypothesis.

Letters: B dialogues, T context tokens, N hypotheses of each.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dialogpt_jax.arguments import as_plain, shown
from dialogpt_jax.data.batches import fill_up, pad_right
from dialogpt_jax.decoding.generate import generate_candidates
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.ranking.choose import Evidence, choose
from dialogpt_jax.ranking.dialogrpt import Ranker
from dialogpt_jax.ranking.guards import UNSAFE, flags_of, repetition, words_of
from dialogpt_jax.ranking.mmi import backward_scores, information, source_of
from dialogpt_jax.ranking.rank_options import Rank
from dialogpt_jax.ranking.report import Ranked, Ranking
from dialogpt_jax.ranking.safety import DEFAULT_REPLY, Safety
from dialogpt_jax.ranking.sense import SenseHead, sense_of
from dialogpt_jax.replies.candidates import Candidate, candidate_of
from dialogpt_jax.replies.keys import row_keys
from dialogpt_jax.replies.language_model import LanguageModel
from dialogpt_jax.replies.settings import few_buckets, rows_of_sampling

ROWS_AT_ONCE = 128  # hypotheses of all dialogues that are made together
SHORTEST_CONTEXT = 64
SHORTEST_ALONE = 16  # of a dialogue alone: of the bundled model's 16 short replies on two cores 54 ms and not 66
_OF_CANDIDATE = ("text", "tokens", "logprobs", "logprob", "finished", "pieces", "sense")


def rank_replies(
    model: LanguageModel,
    dialogues: Sequence[list[str]],
    options: Rank,
    *,
    backward: LanguageModel | None,
    ranker: Ranker | None,
    safety: Safety | None,
    sense: SenseHead | None,
    sampling: Sampling,
    seed: int,
    max_new_tokens: int,
    everything: bool = False,
    places: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Ranking]:
    """The ranked hypotheses of each dialogue, in their order.

    Args:
      model: proposes.
      dialogues: texts, the newest last.
      options: the rule.
      backward: the backward model; needed by "mmi", and asked for the report where it is given.
      ranker: the same for "rpt".
      safety: what must not be said.
      sense: the head for "sense", and for the report where it is given.
      sampling, seed, max_new_tokens: as for `Bot.replies`.
      everything: for a report: what the rule does not need is computed as well.
      places: those that decide what is drawn, where the dialogues are a part of others.
      batch_size: dialogues in a batch; at most, and by default, as many as have 128 hypotheses.
      progress: called with (done, all) after each batch.
    """
    places = range(len(dialogues)) if places is None else places
    contexts = [model.encode(turns, max_new_tokens=max_new_tokens) for turns in dialogues]
    shortest = SHORTEST_CONTEXT if len(contexts) > 1 else SHORTEST_ALONE
    buckets = [few_buckets(len(context), model.config.n_positions, shortest) for context in contexts]
    most = max(ROWS_AT_ONCE // options.hypotheses, 1)
    rows = min(most, batch_size or 1 << (max(len(contexts), 1) - 1).bit_length())
    groups = [[i for i, of_i in enumerate(buckets) if of_i == bucket] for bucket in sorted(set(buckets))]
    found: dict[int, Ranking] = {}
    for chosen in (group[begin : begin + rows] for group in groups for begin in range(0, len(group), rows)):
        filled = fill_up(chosen, rows)
        tokens_BT, lengths_B = pad_right([contexts[i] for i in filled], buckets[chosen[0]])
        out = generate_candidates(
            model.params,
            model.config,
            tokens_BT,
            lengths_B,
            candidates=options.hypotheses,
            sampling=rows_of_sampling(sampling, filled),
            max_new_tokens=max_new_tokens,
            keys=row_keys(seed, [places[i] for i in filled], [len(dialogues[i]) for i in filled]),
            stops=model.stops(sampling),
            judge=sense if options.by == "sense" or everything else None,
        )
        out = jax.device_get(out)
        fields = {"tokens": out.tokens, "logprobs": out.logprobs, "length": out.lengths, "finished": out.finished}
        fields |= {} if out.scores is None else {"sense": out.scores}
        proposed = [
            [
                candidate_of(model.tokenizer, **{name: x[row, n] for name, x in fields.items()})
                for n in range(options.hypotheses)
            ]
            for row in range(len(chosen))
        ]
        turns = [dialogues[i] for i in chosen]
        draws = [choice_draw(seed, places[i], len(dialogues[i])) for i in chosen]
        models = (model, backward, ranker, safety, sense)
        found |= zip(chosen, order(*models, turns, proposed, options, draws, everything=everything), strict=True)
        if progress is not None:
            progress(len(found), len(contexts))
    return [found[i] for i in range(len(contexts))]


def order(
    model: LanguageModel,
    backward: LanguageModel | None,
    ranker: Ranker | None,
    safety: Safety | None,
    sense: SenseHead | None,
    dialogues: Sequence[list[str]],
    proposed: Sequence[Sequence[Candidate]],
    options: Rank,
    draws: Sequence[np.random.Generator],
    *,
    everything: bool = False,
) -> list[Ranking]:
    """The hypotheses of each dialogue in order, however they were made; arguments as in `rank_replies`."""
    sizes = [len(own) for own in proposed]
    flat = [hypothesis for own in proposed for hypothesis in own]
    columns: dict[str, list[list[float]]] = {}
    if options.by == "mmi" or (everything and backward is not None):
        assert backward is not None
        repeated = [turns for turns, size in zip(dialogues, sizes, strict=True) for _ in range(size)]
        ids = [hypothesis.tokens.tolist() for hypothesis in flat]
        columns["backward"] = _split(backward_scores(backward, ids, repeated, options.source), sizes)
        room = backward.config.n_positions
        asked = [len(source_of(backward, turns, options.source, room=room)) for turns in dialogues]
        columns["backward_mean"] = [
            [score / count for score in own] for own, count in zip(columns["backward"], asked, strict=True)
        ]
    if options.by == "pmi" or everything:
        ids, forward = [h.tokens.tolist() for h in flat], [h.logprob for h in flat]
        columns["pmi"] = _split(information(model, ids, forward), sizes)
    rankings = []
    for d, (turns, own) in enumerate(zip(dialogues, proposed, strict=True)):
        texts = [hypothesis.text for hypothesis in own]
        known: dict[str, Any] = {name: values[d] for name, values in columns.items()}
        if options.by == "rpt" or (everything and ranker is not None):
            assert ranker is not None
            known["ranker"] = ranker.score(turns, texts).tolist()
        if options.by == "sense" or (everything and sense is not None):
            assert sense is not None
            if any(hypothesis.sense is None for hypothesis in own):
                read = sense_of(model, sense, turns, own)
                own = [dataclasses.replace(h, sense=score) for h, score in zip(own, read, strict=True)]
            known["sense"] = [hypothesis.sense for hypothesis in own]
        if callable(options.by):
            known["own"] = _asked(options, turns, texts)
        forward = [hypothesis.logprob for hypothesis in own]
        means = [h.logprob / max(len(h.tokens), 1) for h in own]
        evidence = Evidence(forward, means, **known)
        flags = flags_of(texts, turns, finished=[hypothesis.finished for hypothesis in own])
        if safety is not None:
            tags = map(safety.why_not, texts)
            flags = [f if tag is None else (*f, f"{UNSAFE}: {tag}") for f, tag in zip(flags, tags, strict=True)]
        ranked = [
            Ranked(
                **{name: getattr(own[v.number], name) for name in _OF_CANDIDATE},
                backward=evidence.backward[v.number] if evidence.backward else None,
                backward_mean=evidence.backward_mean[v.number] if evidence.backward_mean else None,
                pmi=evidence.pmi[v.number] if evidence.pmi else None,
                ranker=evidence.ranker[v.number] if evidence.ranker else None,
                repetition=repetition(words_of(texts[v.number])),
                number=v.number,
                flags=v.flags,
                score=v.score,
                why=v.why,
            )
            for v in choose(options, evidence, flags, draws[d])
        ]
        rankings.append(Ranking(ranked, list(turns), options.rule, DEFAULT_REPLY if safety is None else safety.default))
    return rankings


def choice_draw(seed: int, place: int, turns: int, attempt: int = 0) -> np.random.Generator:
    """What a tempered choice is drawn with: of the same numbers as the row's key."""
    return np.random.default_rng((seed, place, turns, attempt))


def _asked(options: Rank, turns: list[str], texts: list[str]) -> list[float]:
    """What the caller's function gives.

    Raises:
      ValueError: it is not a number for each text.
    """
    assert callable(options.by)
    given = as_plain(options.by(list(turns), list(texts)))
    numbers: list[Any] = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    try:
        if len(numbers) == len(texts) and all(isinstance(n, int | float | np.number) for n in numbers):
            return [float(number) for number in numbers]
    except (OverflowError, TypeError):  # an integer beyond float64, or a complex number
        pass
    raise ValueError(f"{options.rule} gave {shown(given)} for {len(texts)} texts; it must give a number for each")


def _split(values: Sequence[float], sizes: Sequence[int]) -> list[list[float]]:
    rest = iter(values)
    return [[next(rest) for _ in range(size)] for size in sizes]
