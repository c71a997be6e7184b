"""Which of several replies is given, and why the others are not: what is known of each in, one order out.

A reply that a guard flags stands behind all that are not, whatever its score; among equals the score decides.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dialogpt_jax.ranking.guards import DUPLICATE, NO_REPLY, NOT_FINITE, gravity
from dialogpt_jax.ranking.rank_options import MEAN, Rank


class Evidence(NamedTuple):
    """What is known of the hypotheses of one dialogue, a number for each.

    Attributes:
      forward: log P(reply | context).
      mean: the same a token.
      backward: log P(source | reply).
      backward_mean: the same a token of the source.
      pmi: log P(reply | context) − log P(reply).
      ranker: what a ranker says.
      own: what the caller's function says.
      sense: what the sense head says.
    """

    forward: Sequence[float]
    mean: Sequence[float]
    backward: Sequence[float] | None = None
    pmi: Sequence[float] | None = None
    ranker: Sequence[float] | None = None
    own: Sequence[float] | None = None
    backward_mean: Sequence[float] | None = None
    sense: Sequence[float] | None = None


class Verdict(NamedTuple):
    """Of one hypothesis: its number among the proposed, its score, its flags, and the words that say why."""

    number: int
    score: float
    flags: tuple[str, ...]
    why: str


def scores_by(options: Rank, evidence: Evidence) -> list[float]:
    """Each hypothesis's score by the rule, the higher the better.

    "mmi" with λ 0.5, forward −8 and −12, backward −30 and −20:   −19 and −16, so the second
    """
    if options.by == "mmi":
        weight, (backward, forward) = options.backward_weight, _both_ways(options, evidence)
        return [_mixed(weight, b) + _mixed(1 - weight, f) for b, f in zip(backward, forward, strict=True)]
    named = {"pmi": evidence.pmi, "rpt": evidence.ranker, "likelihood": evidence.mean, "sense": evidence.sense}
    found = evidence.own if callable(options.by) else named[options.by]
    assert found is not None
    return list(found)


def choose(
    options: Rank, evidence: Evidence, flags: Sequence[tuple[str, ...]], draw: np.random.Generator
) -> list[Verdict]:
    """The hypotheses in the order in which they would be given, the first the one that is.

    Args:
      options: the rule.
      evidence: of each.
      flags: of each, by `guards.flags_of`; a score that is no number adds its own.
      draw: what a tempered choice is drawn with; one number of it, if the temperature is over 0.
    """
    scores = scores_by(options, evidence)
    flagged = [f if math.isfinite(s) else (*f, NOT_FINITE) for f, s in zip(flags, scores, strict=True)]
    order = sorted(
        range(len(scores)), key=lambda i: (gravity(flagged[i]), -scores[i] if math.isfinite(scores[i]) else 0.0)
    )
    if options.temperature > 0:
        best = [i for i in order if gravity(flagged[i]) == gravity(flagged[order[0]])]
        first = best[_drawn([scores[i] for i in best], options.temperature, float(draw.random()))]
        order = [first, *(i for i in order if i != first)]
    return [
        Verdict(i, scores[i], flagged[i], _why(options, evidence, scores, flagged, i, order[0], order[1:2]))
        for i in order
    ]


def _drawn(scores: Sequence[float], temperature: float, uniform: float) -> int:
    """The place that a uniform number falls on in softmax(scores / temperature)."""
    with np.errstate(over="ignore"):
        tempered = np.asarray(scores) / temperature
    if not np.isfinite(tempered).all():
        return 0
    weights = np.exp(tempered - tempered.max())
    place = int(np.searchsorted(np.cumsum(weights) / weights.sum(), uniform, side="right"))
    return min(place, len(scores) - 1)


def _both_ways(options: Rank, evidence: Evidence) -> tuple[Sequence[float], Sequence[float]]:
    """Backward and forward, as the options mix them."""
    means = options.mix == MEAN
    backward = evidence.backward_mean if means else evidence.backward
    assert backward is not None
    return backward, evidence.mean if means else evidence.forward


def _mixed(weight: float, value: float) -> float:
    """weight · value, where a weight of 0 leaves even an infinite value out."""
    return weight * value if weight else 0.0


def _why(
    options: Rank,
    evidence: Evidence,
    scores: Sequence[float],
    flags: Sequence[tuple[str, ...]],
    i: int,
    winner: int,
    second: Sequence[int],
) -> str:
    """One line on hypothesis i: why it is given, or why it is not."""
    if i == winner:
        if gravity(flags[i]) >= NO_REPLY:
            return f"not given ({', '.join(flags[i])}), and so is no other one"
        if flags[i]:
            return f"given, though it is flagged ({', '.join(flags[i])}): so is every other one"
        drawn = f"drawn at temperature {options.temperature:g} with" if options.temperature else "given for"
        rival = [n for n in second if gravity(flags[n]) == gravity(flags[i]) and not options.temperature]
        behind = f", the next has {scores[rival[0]]:.2f}" if rival else ""
        return f"{drawn} a score of {scores[i]:.2f}{behind}"
    if gravity(flags[i]) > gravity(flags[winner]):
        return "says what another one says" if DUPLICATE in flags[i] else f"out: {', '.join(flags[i])}"
    if scores[i] >= scores[winner]:
        return f"a score of {scores[i]:.2f}, and not drawn"
    if options.by == "mmi":
        weight, (backward, forward) = options.backward_weight, _both_ways(options, evidence)
        digits = 2 if options.mix == MEAN else 1
        if _mixed(weight, backward[winner] - backward[i]) >= _mixed(1 - weight, forward[winner] - forward[i]):
            figures = f"{backward[i]:.{digits}f} against {backward[winner]:.{digits}f}"
            return f"what was said is harder to guess from it: {figures}"
        return f"less likely to be said: {forward[i]:.{digits}f} against {forward[winner]:.{digits}f}"
    if options.by == "pmi":
        return f"owes less to what was said: {scores[i]:.1f} against {scores[winner]:.1f}"
    if options.by == "rpt":
        return f"liked less by the ranker: {scores[i]:.3f} against {scores[winner]:.3f}"
    if options.by == "sense":
        return f"makes less sense: {scores[i]:.2f} against {scores[winner]:.2f}"
    if options.by == "likelihood":
        return f"less likely a token: {scores[i]:.2f} against {scores[winner]:.2f}"
    return f"{options.rule}: {scores[i]:.3g} against {scores[winner]:.3g}"
