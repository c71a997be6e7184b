"""Replies, and references if there are any, flow in; the paper's measures come out, each with what its interval needs.

The order is that of the paper's tables: NIST, BLEU, METEOR, Ent, Dist, length; and the repetition rate.
"""

from collections.abc import Sequence

import numpy as np

from dialogpt_jax.evaluation import diversity, intervals, overlap
from dialogpt_jax.evaluation.intervals import Estimate

RESAMPLES = 1000


def measure(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    meteor: float | None = None,
) -> list[Estimate]:
    """NIST-1…4 and BLEU-1…4 where there are references; Ent-1…4, Dist-1…4, mean length, repetition rate.

    NIST and BLEU split and lower-case words in their own way; the others take the words between spaces as they are. The
    information of NIST's n-grams is that of all references, in resampled corpora too.

    Args:
      hypotheses: B ≥ 1 texts.
      references: B lists of texts.
      resamples: of the bootstrap; 0 leaves its intervals out.
      seed: of the bootstrap. To compare two systems, give both the same seed and number.
      meteor: the score of `meteor.meteor`, to stand at its place in the table.

    Raises:
      ValueError: there is no hypothesis, or as `overlap.count_overlap`.
    """
    if not hypotheses:
        raise ValueError("no hypothesis to measure")
    bootstrap = {"resamples": resamples, "seed": seed}
    found: list[Estimate] = []
    if references is not None:
        rows = overlap.count_overlap(hypotheses, references)
        for name, score in (("NIST", overlap.nist), ("BLEU", overlap.bleu)):
            names = [f"{name}-{n + 1}" for n in range(overlap.ORDERS)]
            found += intervals.estimates(
                names, lambda *sums, score=score: score(overlap.Overlap(*sums)), rows, **bootstrap
            )
    if meteor is not None:
        found.append(Estimate("METEOR 1.5", meteor, "none", np.empty(0)))
    lines = [text.split() for text in hypotheses]
    values, left_out = diversity.diversity(lines), diversity.leave_one_out(lines)
    for name, values_N, left_out_BN in zip(("Ent", "Dist"), values, left_out, strict=True):
        for n, value in enumerate(values_N):
            found.append(Estimate(f"{name}-{n + 1}", float(value), "jackknife", left_out_BN[:, n]))
    columns = (np.stack([diversity.lengths(lines), diversity.repetition(lines)], axis=-1),)
    return found + intervals.estimates(["length", "repetition"], lambda sums: sums / len(lines), columns, **bootstrap)
