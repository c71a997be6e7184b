"""The words of many replies flow in; how varied they are comes out: Ent-n, Dist-n, mean length, repetition rate.

Ent-n = −Σ p ln p over the n-grams of all replies together (Zhang et al. 2018), Dist-n = different n-grams / n-grams (Li
et al. 2016). Both grow or shrink with the number of replies, so compare only sets of the same size; and resampling with
replacement, which repeats lines, pulls both far down. So their uncertainty comes from leaving lines out, one at a time
(`leave_one_out`), which needs one pass over the counts and no randomness.

Letters: B lines, N orders, G n-grams, K different n-grams, P pairs of a line and one of its n-grams.
"""

from collections.abc import Sequence

import numpy as np

from dialogpt_jax.evaluation.ngrams import count_pairs, grams, number_words

ORDERS = 4


def diversity(lines: Sequence[Sequence[str]], *, orders: int = ORDERS) -> tuple[np.ndarray, np.ndarray]:
    """(Ent-1…N in nats, Dist-1…N) of the replies' words, two float64 (N,); NaN for an order without any n-gram."""
    entropies, distincts = np.full(orders, np.nan), np.full(orders, np.nan)
    for n, found in enumerate(grams(number_words(lines), orders)):
        if num := len(found.codes_G):
            counts_K = np.bincount(found.codes_G, minlength=len(found.prefixes_K))
            entropies[n] = _entropy(num, _weigh(counts_K).sum())
            distincts[n] = (counts_K > 0).sum() / num
    return entropies, distincts


def leave_one_out(lines: Sequence[Sequence[str]], *, orders: int = ORDERS) -> tuple[np.ndarray, np.ndarray]:
    """Ent-n and Dist-n of all replies but one, for each one left out: two float64 (B, N); NaN as in `diversity`.

    A line takes Σ c ln c − Σ (c − k) ln (c − k) out of the sum, where one of its n-grams stands k times in the line and
    c times in all, and as many different n-grams as have k = c.
    """
    entropies_BN, distincts_BN = np.full((2, len(lines), orders), np.nan)
    for n, found in enumerate(grams(number_words(lines), orders)):
        counts_K = np.bincount(found.codes_G, minlength=len(found.prefixes_K))
        lines_P, codes_P, inside_P = count_pairs(found.lines_G, found.codes_G)
        all_P = counts_K[codes_P]
        own_B = np.bincount(lines_P, weights=inside_P, minlength=len(lines))
        lost_B = np.bincount(lines_P, weights=_weigh(all_P) - _weigh(all_P - inside_P), minlength=len(lines))
        gone_B = np.bincount(lines_P, weights=inside_P == all_P, minlength=len(lines))
        left_B = len(found.codes_G) - own_B
        some_B = left_B > 0
        entropies_BN[some_B, n] = _entropy(left_B[some_B], (_weigh(counts_K).sum() - lost_B)[some_B])
        distincts_BN[some_B, n] = (((counts_K > 0).sum() - gone_B)[some_B]) / left_B[some_B]
    return entropies_BN, distincts_BN


def lengths(lines: Sequence[Sequence[str]]) -> np.ndarray:
    """The number of words of each line: float64 (B,); its mean is the tables' average length."""
    return np.asarray([len(line) for line in lines], np.float64)


def repetition(lines: Sequence[Sequence[str]], *, order: int = ORDERS) -> np.ndarray:
    """1 − different n-grams / n-grams of each reply by itself: float64 (B,); 0 for one too short to repeat any.

    Its mean is seq-rep-4 of Welleck et al. 2020: `a b a b a b` has the 4-grams abab, baba, abab: 1/3.
    """
    *_, found = grams(number_words(lines), order)
    lines_P, _, inside_P = count_pairs(found.lines_G, found.codes_G)
    different_B = np.bincount(lines_P, minlength=len(lines))
    all_B = np.bincount(lines_P, weights=inside_P, minlength=len(lines))
    return 1.0 - np.where(all_B > 0, different_B / np.maximum(all_B, 1.0), 1.0)


def _weigh(counts: np.ndarray) -> np.ndarray:
    """c ln c, 0 at 0."""
    return counts * np.log(np.maximum(counts, 1))


def _entropy(num: int | np.ndarray, weighed: float | np.ndarray) -> np.ndarray:
    """−Σ (c/num) ln(c/num) = ln num − Σ c ln c / num."""
    return np.log(num) - weighed / num
