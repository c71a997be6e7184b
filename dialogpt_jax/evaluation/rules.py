"""Rules that choose a reply, side by side on the same draws: proposals in; what each rule gives, measured, out.

    proposals ─choose, by each rule→ a reply to each context ─measures→ Estimates ┐
    truths ────score, by each rule→ is the true turn the best of ten? ────────────┴→ beside "none", on the same contexts

"none" gives what was drawn first. hits@1 needs a score, not a choice: for "none" it is log P(reply | context), by which
replies are drawn; for anti-LM it is that less λ · log P(reply) of the first γ tokens. No guard looks at those ten.

Letters: B contexts.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dialogpt_jax.decoding.score_batches import score_replies
from dialogpt_jax.evaluation import hits, measures
from dialogpt_jax.evaluation.contexts import Context
from dialogpt_jax.evaluation.intervals import Difference, Estimate, compare, estimates
from dialogpt_jax.evaluation.model_measures import Answer, measure_replies
from dialogpt_jax.evaluation.proposals import Proposals
from dialogpt_jax.ranking.choose import choose, scores_by
from dialogpt_jax.ranking.rank_options import Rank
from dialogpt_jax.replies.language_model import LanguageModel

NONE, ANTI = "none", "anti-LM"
RULES: Mapping[str, Rank] = {
    "likelihood": Rank("likelihood"),
    "pmi": Rank("pmi"),
    "mmi, λ 1": Rank("mmi", backward_weight=1.0),
    "mmi, λ 0.5": Rank("mmi", backward_weight=0.5),
    "mean, λ 0.5": Rank("mmi", backward_weight=0.5, mix="mean"),
    "rpt": Rank("rpt"),
}
ANTI_WEIGHT, ANTI_TOKENS = 0.5, 5  # λ and γ of Li et al. 2016, as `anti_lm` has them
COMMON = "ten commonest"
SHOWN = ("NIST-4", "BLEU-4", "Dist-2", "Ent-4", "length", COMMON, "hits@1")


class Chosen(NamedTuple):
    """A reply that a rule gives."""

    text: str
    finished: bool


class Measured(NamedTuple):
    """What a rule is worth: its measures, and each less that of "none", on the same contexts; none for "none" itself."""

    estimates: list[Estimate]
    differences: list[Difference]


def rules_for(proposals: Sequence[Proposals]) -> dict[str, Rank]:
    """The rules whose models have said something of every hypothesis."""
    needed = {"mmi": "backward", "rpt": "ranker"}
    return {
        name: rule
        for name, rule in RULES.items()
        if all(getattr(p, needed.get(rule.rule, "pmi")) is not None for p in proposals)
    }


def choose_by(rule: Rank | None, proposals: Sequence[Proposals]) -> list[Chosen]:
    """What the rule gives to each context; `None` gives what was drawn first."""
    chosen, nothing_drawn = [], np.random.default_rng(0)
    for own in proposals:
        best = 0
        if rule is not None:
            flags = [tuple(flags) for flags in own.flags]
            best = choose(rule, own.evidence, flags, nothing_drawn)[0].number
        chosen.append(Chosen(own.texts[best], own.finished[best]))
    return chosen


def measure_rules(
    lm: LanguageModel,
    contexts: Sequence[Context],
    proposals: Sequence[Proposals],
    *,
    anti: Sequence[Answer] | None = None,
    truths: Sequence[Proposals] | None = None,
    resamples: int = measures.RESAMPLES,
    seed: int = 0,
) -> dict[str, Measured]:
    """Every rule that the proposals allow, measured: "none" first.

    Args:
      lm: the model that proposed.
      contexts: replied to.
      proposals: of `proposals.draw_proposals`.
      anti: replies drawn with anti-LM, if that is to stand beside the rules.
      truths: of `proposals.score_truths`, for hits@1.
      resamples, seed: of the intervals.
    """
    rules: dict[str, Rank | None] = {NONE: None, **rules_for(proposals)}
    answers: dict[str, Sequence[Answer]] = {name: choose_by(rule, proposals) for name, rule in rules.items()}
    answers |= {} if anti is None else {ANTI: anti}
    bootstrap = {"resamples": resamples, "seed": seed}
    found: dict[str, list[Estimate]] = {}
    for name, given in answers.items():
        found[name] = [*measure_replies(contexts, given, **bootstrap), ten_commonest(given, **bootstrap)]
    if truths is not None:
        for name, hit_B in hits_by(lm, contexts, truths, rules, anti=anti is not None).items():
            found[name] += estimates(["hits@1"], lambda sums: sums / len(contexts), (hit_B[:, None],), **bootstrap)
    return {
        name: Measured(own, [compare(*pair) for pair in zip(own, found[NONE], strict=True)] if name != NONE else [])
        for name, own in found.items()
    }


def ten_commonest(answers: Sequence[Answer], *, resamples: int, seed: int) -> Estimate:
    """The share of the replies that equal one of the ten that are given most often."""
    counts = collections.Counter(answer.text for answer in answers)
    common = {text for text, _ in counts.most_common(10)}
    inside_B1 = np.array([[answer.text in common] for answer in answers], np.float64)
    return estimates([COMMON], lambda sums: sums / len(answers), (inside_B1,), resamples=resamples, seed=seed)[0]


def hits_by(
    lm: LanguageModel,
    contexts: Sequence[Context],
    truths: Sequence[Proposals],
    rules: Mapping[str, Rank | None],
    *,
    anti: bool,
) -> dict[str, np.ndarray]:
    """1 where a rule likes the true turn better than each of the others, else 0; float64 (B,). Equal is no better."""
    scores = {
        name: [list(own.forward) if rule is None else scores_by(rule, own.evidence) for own in truths]
        for name, rule in rules.items()
    }
    if anti:
        early = _first_tokens(lm, contexts, len(truths[0].texts))
        scores[ANTI] = [
            [forward - ANTI_WEIGHT * alone for forward, alone in zip(own.forward, early_N, strict=True)]
            for own, early_N in zip(truths, early, strict=True)
        ]
    return {name: np.array([float(own[0] > max(own[1:])) for own in of_rule]) for name, of_rule in scores.items()}


def _first_tokens(lm: LanguageModel, contexts: Sequence[Context], candidates: int) -> np.ndarray:
    """log P of the first γ tokens of each candidate after a lone EOS, (B, N)."""
    _, ids = hits.encode_truths(lm, contexts)
    alone = score_replies(lm.params, lm.config, [[lm.config.eos_token_id]], [[own[:ANTI_TOKENS] for own in ids]])[0]
    return np.array([logprobs.sum() for logprobs in alone])[hits.draw_sets(contexts, candidates=candidates)]
