"""Replies and their references flow in; BLEU-1…4 and NIST-1…4 come out, as NIST's script mteval-v14 computes them.

Two steps: `count_overlap` makes one row of numbers for each line, and `bleu` and `nist` make scores of the sum of such
rows. So a resampled corpus costs one product of matrices. What the script does, and other tools do not:

* The words are those of its default tokenization, in ASCII lower case (`É` stays).
* BLEU: clipped counts against the largest count in any one reference; the closest reference length, of two equally
  close the shorter; precisions without a match are 1/2, 1/4, 1/8 … of one match. An order for which the corpus is too
  short to have any n-gram counts as precision 1 (sacrebleu: the score is 0), and a corpus without a single match still
  has a small score (sacrebleu: 0).
* NIST: the information of an n-gram is log2(count of its first n − 1 words / its count) over all references; the length
  penalty looks at the mean reference length. In Perl the text `0` is false, so a pair that begins with the word `0` is
  weighed as a single word would be, against the number of all words. The scores are kept comparable: so it is here.

The script wants the same number of references for every line. Here a line may have any number from one up: the mean
length is each line's own. `reply_files.repeat_references` fills up to one number, as the DSTC-7 evaluation does.

Letters: B lines, R reference texts of all lines together, N orders, G n-grams, K different n-grams; … any leading axes.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dialogpt_jax.evaluation.ngrams import count_pairs, grams, number_words

ORDERS = 4
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))  # in this order: `&amp;lt;` becomes `<`
_RULES = (
    (re.compile(r"([ -&(-+/:-@\[-`{-~])"), r" \1 "),  # every ASCII sign but ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # a period or comma, unless a digit stands before it
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),  # … or behind it
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # a dash behind a digit
)


class Overlap(NamedTuple):
    """What BLEU and NIST need to know of each line; all are sums, so rows can be added and weighed.

    All float64. matches_BN: clipped matches; totals_BN: the reply's n-grams; information_BN: bits of the matches, from
    all references; closest_B: the reference length nearest to the reply's; references_B: the mean one.
    """

    matches_BN: np.ndarray
    totals_BN: np.ndarray
    information_BN: np.ndarray
    closest_B: np.ndarray
    references_B: np.ndarray


def tokenize(text: str) -> list[str]:
    """The words of mteval's default ("Western") tokenization, in ASCII lower case."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, sign in _ENTITIES:
        text = text.replace(entity, sign)
    text = f" {text} ".translate(_LOWER)
    for pattern, spaced in _RULES:
        text = pattern.sub(spaced, text)
    return text.split()


def count_overlap(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, orders: int = ORDERS) -> Overlap:
    """Counts each line against its references.

    Args:
      hypotheses: B texts; an empty one is a reply of no words.
      references: B lists of one text or more; an empty text is a reference of no words, as in the script.
      orders: the longest n-grams to count.

    Raises:
      ValueError: the lengths differ, or a line has no reference.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses and {len(references)} lists of references; each needs its own")
    if bare := [number for number, line in enumerate(references, start=1) if not line]:
        raise ValueError(f"line {bare[0]} has no reference ({len(bare)} such lines)")
    num = len(hypotheses)
    owners_R = np.repeat(np.arange(num), [len(line) for line in references])
    texts = [*hypotheses, *(text for line in references for text in line)]
    tokens = number_words([tokenize(text) for text in texts])
    columns = []
    counts_K: np.ndarray = np.empty(0)  # how often each n-gram of the order below occurs in the references
    words = int((tokens.lines_T >= num).sum())
    for order, (codes_G, lines_G, prefixes_K) in enumerate(grams(tokens, orders), start=1):
        is_reply_G = lines_G < num
        above_K = np.bincount(codes_G[~is_reply_G], minlength=len(prefixes_K))
        whole_K = np.full(len(above_K), words) if order == 1 else counts_K[prefixes_K]
        if order == 2 and "0" in tokens.vocabulary:
            # The script takes the word `0` for no word at all: see NIST at the top of this file.
            whole_K[prefixes_K == tokens.vocabulary["0"]] = words
        bits_K = np.log2(np.maximum(whole_K, 1) / np.maximum(above_K, 1))  # not used where an n-gram is in no reference
        lines, codes, matched = _match(codes_G, lines_G, is_reply_G, owners_R, num)
        columns.append(
            (
                np.bincount(lines, weights=matched, minlength=num),
                np.bincount(lines_G[is_reply_G], minlength=num).astype(np.float64),
                np.bincount(lines, weights=matched * bits_K[codes], minlength=num),
            )
        )
        counts_K = above_K
    matches_BN, totals_BN, information_BN = (np.stack(column, axis=-1) for column in zip(*columns, strict=True))
    lengths = np.bincount(tokens.lines_T, minlength=len(texts)).astype(np.float64)
    closest_B = _closest(lengths[:num], lengths[num:], owners_R)
    references_B = np.bincount(owners_R, weights=lengths[num:], minlength=num) / np.bincount(owners_R, minlength=num)
    return Overlap(matches_BN, totals_BN, information_BN, closest_B, references_B)


def _match(
    codes_G: np.ndarray, lines_G: np.ndarray, is_reply_G: np.ndarray, owners_R: np.ndarray, num: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lines, codes, clipped counts) of the replies' n-grams that stand in a reference of the same line."""
    width = int(codes_G.max(initial=0)) + 1
    texts, codes, counts = count_pairs(lines_G[~is_reply_G] - num, codes_G[~is_reply_G])
    keys = owners_R[texts] * width + codes
    order = np.lexsort((counts, keys))
    keys, counts = keys[order], counts[order]
    last = np.append(keys[1:] != keys[:-1], True)[: len(keys)]  # the largest count of each line and n-gram
    keys, most = keys[last], counts[last]
    lines, codes, counts = count_pairs(lines_G[is_reply_G], codes_G[is_reply_G])
    if not len(keys):
        return lines[:0], codes[:0], counts[:0]
    places = np.minimum(np.searchsorted(keys, lines * width + codes), len(keys) - 1)
    found = keys[places] == lines * width + codes
    return lines[found], codes[found], np.minimum(counts, most[places])[found]


def _closest(replies_B: np.ndarray, lengths_R: np.ndarray, owners_R: np.ndarray) -> np.ndarray:
    """The reference length of each line that is nearest to its reply's; of two equally near the shorter."""
    order = np.lexsort((lengths_R, np.abs(lengths_R - replies_B[owners_R]), owners_R))
    first = np.searchsorted(owners_R[order], np.arange(len(replies_B)))
    return lengths_R[order][first]


def bleu(overlap: Overlap) -> np.ndarray:
    """Cumulative BLEU-1…N in [0, 1] of the sums of `count_overlap`'s rows (Papineni et al. 2002; mteval's smoothing).

    Args:
      overlap: sums over lines (`total`), shapes (…, N) and (…).

    Returns:
      float64, (…, N).
    """
    matches, totals = overlap.matches_BN, overlap.totals_BN
    missed = (matches == 0) & (totals > 0)
    halvings = np.cumsum(missed, axis=-1)
    hits = np.where(missed, 0.5**halvings, matches)
    logs = np.where(totals > 0, np.log(np.where(totals > 0, hits, 1.0) / np.maximum(totals, 1.0)), 0.0)
    means = np.cumsum(logs, axis=-1) / np.arange(1, matches.shape[-1] + 1)[(None,) * (matches.ndim - 1)]
    lengths = totals[..., 0]
    brevity = np.where(lengths > 0, np.exp(np.minimum(0.0, 1.0 - overlap.closest_B / np.maximum(lengths, 1.0))), 0.0)
    return np.exp(means) * brevity[..., None]


def nist(overlap: Overlap) -> np.ndarray:
    """Cumulative NIST-1…N of the sums of `count_overlap`'s rows (Doddington 2002).

    The length factor is exp(β · ln²(min(reply / mean reference, 1))), with β such that it is 1/2 at 2/3.

    Args:
      overlap: sums over lines (`total`), shapes (…, N) and (…).

    Returns:
      float64, (…, N).
    """
    gains = np.cumsum(overlap.information_BN / np.maximum(overlap.totals_BN, 1.0), axis=-1)
    lengths, wanted = overlap.totals_BN[..., 0], overlap.references_B
    some = (lengths > 0) & (wanted > 0)
    ratios = np.where(some, np.minimum(lengths / np.where(wanted > 0, wanted, 1.0), 1.0), 1.0)
    beta = np.log(0.5) / np.log(1.5) ** 2
    factors = np.where(some, np.exp(beta * np.log(ratios) ** 2), 0.0)
    return gains * factors[..., None]


def total(overlap: Overlap, weights: np.ndarray | None = None) -> Overlap:
    """The sum of all rows, or of rows taken `weights` (…, B) times each: (…, N) and (…)."""
    if weights is None:
        return Overlap(*(column.sum(axis=0) for column in overlap))
    return Overlap(*(weights @ column for column in overlap))
