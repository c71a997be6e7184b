"""Contexts flow in; for each several replies with all that ranks them come out, kept in a file that a run goes on with.

    contexts ─draw_proposals→ hypotheses of the bot ──────────┐
    contexts ─score_truths──→ the true turn, nine others' ────┴→ Proposals, a line each: then any rule can choose among them

Each costs a model's time once, whatever is chosen by afterwards. The first line of a file says what decided the others.

    {"run": {"model": …, "sampling": "temperature 1, top_k 10", …}}
    {"context": 0, "texts": ["I did.", …], "tokens": [4, …], "finished": [true, …], "forward": [-9.2, …], "backward": …}

Letters: B contexts, N candidates.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dialogpt_jax.decoding.score_batches import score_replies
from dialogpt_jax.evaluation import hits
from dialogpt_jax.evaluation.contexts import Context
from dialogpt_jax.evaluation.harness import describe_run, digest_of_model, group_by_length
from dialogpt_jax.evaluation.kept_rows import RepliesFileError, make_rows
from dialogpt_jax.evaluation.replies import check_run, json_entries
from dialogpt_jax.evaluation.settings import Settings
from dialogpt_jax.ranking.choose import Evidence
from dialogpt_jax.ranking.guards import is_flag
from dialogpt_jax.ranking.propose import choice_draw, order
from dialogpt_jax.ranking.rank_options import LAST, Rank
from dialogpt_jax.ranking.ranking_model import RankingModel
from dialogpt_jax.ranking.report import Ranking
from dialogpt_jax.replies.candidates import candidate_of

ROWS = 8  # contexts whose hypotheses are drawn together: 8 · 16 of them
TRUTHS_AT_ONCE = 50  # contexts whose candidates are scored together

Progress = Callable[[Sequence["Proposals"], int], None]


class Proposals(NamedTuple):
    """The hypotheses of one context, in the order in which they were drawn, with what is known of each.

    Attributes:
      context: its number, from 0.
      texts: of the hypotheses.
      tokens: of each, EOS included where it ended.
      finished: whether each ended by itself.
      forward, backward, backward_mean, pmi, ranker: as in `ranking.choose.Evidence`; `None` where there is no such model.
      flags: what a guard has against each.
    """

    context: int
    texts: list[str]
    tokens: list[int]
    finished: list[bool]
    forward: list[float]
    backward: list[float] | None
    backward_mean: list[float] | None
    pmi: list[float]
    ranker: list[float] | None
    flags: list[list[str]]

    @property
    def evidence(self) -> Evidence:
        """The same as a rule takes it."""
        means = [total / max(count, 1) for total, count in zip(self.forward, self.tokens, strict=True)]
        known = {name: getattr(self, name) for name in ("backward", "backward_mean", "pmi", "ranker")}
        return Evidence(self.forward, means, **known)


class ProposalsFile(NamedTuple):
    """A file of proposals: what decides them on its first line, then those of a context a line."""

    path: str | os.PathLike[str]
    run: Mapping[str, Any]

    def head(self) -> str:
        return json.dumps({"run": dict(self.run)}, ensure_ascii=False) + "\n"

    def line(self, proposals: Proposals) -> str:
        return json.dumps(proposals._asdict(), ensure_ascii=False) + "\n"

    def read(self) -> dict[int, Proposals]:
        """The proposals by their context; none where there is no file, or a part of a first line.

        Raises:
          OSError: it cannot be read.
          RepliesFileError: it is no such file, it holds those of another run, or a line is broken.
        """
        entries, half = json_entries(self.path)
        if not entries:
            if not self.head().encode().startswith(half):
                raise RepliesFileError(f"{self.path}, line 1: no proposals of an evaluation; name another folder")
            return {}
        (_, first), *others = entries
        if not isinstance(first, dict) or not isinstance(first.get("run"), dict):
            raise RepliesFileError(f"{self.path}, line 1: no proposals of an evaluation; name another folder")
        check_run(self.path, 1, first["run"], self.run)
        found = {}
        for number, entry in others:
            if not isinstance(entry, dict) or set(entry) != set(Proposals._fields):
                raise RepliesFileError(f"{self.path}, line {number}: no proposals; take the line out")
            wrong = _wrong_field(entry, self.run)
            if wrong is not None:
                raise RepliesFileError(
                    f"{self.path}, line {number}: {wrong} is not what a run writes there; "
                    "take the line out, and it is made again"
                )
            found[entry["context"]] = Proposals(**entry)
        return found


_KINDS = {"texts": str, "tokens": int, "finished": bool, "forward": float, "backward": float}  # of a list's values
_KINDS |= {"backward_mean": float, "pmi": float, "ranker": float, "flags": list}
_SAID_BY = {"backward": "reverse", "backward_mean": "reverse", "ranker": "ranker"}  # as a run names the models


def _wrong_field(entry: Mapping[str, Any], run: Mapping[str, Any]) -> str | None:
    """The name of the first field that is not as `line` writes it in such a run; `None` if all are."""
    if type(entry["context"]) is not int or entry["context"] < 0:
        return "context"
    length = len(entry["texts"]) if type(entry["texts"]) is list else 0
    for name, kind in _KINDS.items():
        values = entry[name]
        if name in _SAID_BY and _SAID_BY[name] not in run:
            sound = values is None
        else:
            sound = type(values) is list and 0 < len(values) == length and all(type(value) is kind for value in values)
        if not sound:
            return name
    flags = itertools.chain(*entry["flags"])
    return None if all(type(flag) is str and is_flag(flag) for flag in flags) else "flags"


def draw_proposals(
    bot: RankingModel,
    contexts: Sequence[Context],
    settings: Settings,
    hypotheses: int,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[Proposals]:
    """Hypotheses of the bot for each context, in their order; they are those that `bot.rankings` orders.

    Args:
      bot: proposes; its backward model and ranker, if it has them, say what they make of each.
      contexts: what to reply to.
      settings: sampling, seed and length; its rows, beams and rank are not looked at.
      hypotheses: of each context.
      out: a file, written as they come.
      progress: called with the proposals that came new and the number that is still to come.
    """
    rule = Rank("likelihood", hypotheses=hypotheses)  # needs nothing; all the rest is asked for
    how: dict[str, Any] = {"sampling": settings.sampling, "seed": settings.seed}
    how |= {"max_new_tokens": settings.max_new_tokens, "everything": True, "batch_size": ROWS}

    def make(batches: list[Sequence[int]]) -> Iterator[list[Proposals]]:
        for batch in batches:
            rankings = bot.rankings([contexts[i].turns for i in batch], rule, places=batch, **how)
            yield [_proposals(i, ranking) for i, ranking in zip(batch, rankings, strict=True)]

    lengths = [len(bot.encode(context.turns, max_new_tokens=settings.max_new_tokens)) for context in contexts]
    run = describe_run(bot, contexts, dataclasses.replace(settings, beams=None, rank=None, rows=ROWS))
    run |= {"hypotheses": hypotheses} | _models(bot)
    return make_rows(_file(out, run), group_by_length(lengths, ROWS), make, progress)


def score_truths(
    bot: RankingModel,
    contexts: Sequence[Context],
    *,
    candidates: int = hits.CANDIDATES,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[Proposals]:
    """For each context the true next turn, first, and those of other dialogues, as `hits.ranks` draws them.

    Args:
      bot, contexts, out, progress: as for `draw_proposals`.
      candidates: the truth and this many less one others.

    Raises:
      ValueError: there are not enough other turns.
    """
    sets_BN = hits.draw_sets(contexts, candidates=candidates)
    prompts, truths = hits.encode_truths(bot, contexts)
    eos = bot.config.eos_token_id
    backward = bot.backward_of(Rank("likelihood"), everything=True)
    rule = Rank("likelihood", hypotheses=candidates)

    def make(batches: list[Sequence[int]]) -> Iterator[list[Proposals]]:
        for batch in batches:
            own = [[truths[j] for j in sets_BN[i]] for i in batch]
            scored = score_replies(bot.params, bot.config, [prompts[i] for i in batch], own)
            proposed = [
                [
                    candidate_of(bot.tokenizer, np.array(ids, np.int32), logprobs, len(ids), ids[-1] == eos)
                    for ids, logprobs in zip(*row, strict=True)
                ]
                for row in zip(own, scored, strict=True)
            ]
            turns, draws = [contexts[i].turns for i in batch], [choice_draw(0, i, 0) for i in batch]
            ordered = order(bot, backward, bot.ranker, None, None, turns, proposed, rule, draws, everything=True)
            yield [_proposals(i, ranking) for i, ranking in zip(batch, ordered, strict=True)]

    run = describe_run(bot, contexts, Settings(rows=TRUTHS_AT_ONCE)) | {"candidates": candidates}
    batches = [range(i, min(i + TRUTHS_AT_ONCE, len(contexts))) for i in range(0, len(contexts), TRUTHS_AT_ONCE)]
    return make_rows(_file(out, run | _models(bot)), batches, make, progress)


def _file(out: str | os.PathLike[str] | None, run: Mapping[str, Any]) -> ProposalsFile | None:
    return None if out is None else ProposalsFile(out, run)


def _models(bot: RankingModel) -> dict[str, Any]:
    """What says something of a hypothesis beside the model itself, for the first line of a file."""
    backward = bot.backward_of(Rank("likelihood"), everything=True)
    found = {} if backward is None else {"reverse": digest_of_model(backward), "source": LAST}
    return found if bot.ranker is None else found | {"ranker": digest_of_model(bot.ranker)}


def _proposals(context: int, ranking: Ranking) -> Proposals:
    """A ranking as it was before it was ordered."""
    drawn = sorted(ranking, key=lambda hypothesis: hypothesis.number)

    def column(name: str) -> Any:
        values = [getattr(hypothesis, name) for hypothesis in drawn]
        return None if values[0] is None else [round(float(value), 6) for value in values]

    return Proposals(
        context=context,
        texts=[hypothesis.text for hypothesis in drawn],
        tokens=[len(hypothesis.tokens) for hypothesis in drawn],
        finished=[hypothesis.finished for hypothesis in drawn],
        forward=column("logprob"),
        backward=column("backward"),
        backward_mean=column("backward_mean"),
        pmi=column("pmi"),
        ranker=column("ranker"),
        flags=[list(hypothesis.flags) for hypothesis in drawn],
    )
