"""Tokens of many lines flow in; their n-grams come out as integers, so that every count is one NumPy call.

Letters: T tokens of all lines together, G n-grams of one order, K different n-grams of that order.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Tokens(NamedTuple):
    """The tokens of many lines, one after the other: words_T (int64 in [0, vocabulary)), lines_T (int64, rising)."""

    words_T: np.ndarray
    lines_T: np.ndarray
    num_lines: int
    vocabulary: dict[str, int]


class Grams(NamedTuple):
    """The n-grams of one order, each occurrence once.

    codes_G: int64 in [0, K): equal n-grams have equal codes. lines_G: int64, the line of each, rising. prefixes_K:
    int64, the code (in the order below) of the first n − 1 words of each different n-gram; for single words −1.
    """

    codes_G: np.ndarray
    lines_G: np.ndarray
    prefixes_K: np.ndarray


def number_words(lines: Iterable[Sequence[str]]) -> Tokens:
    """Words to integers, in the order in which they appear."""
    vocabulary: dict[str, int] = {}
    words: list[int] = []
    lengths: list[int] = []
    for line in lines:
        lengths.append(len(line))
        words.extend([vocabulary.setdefault(word, len(vocabulary)) for word in line])
    lines_T = np.repeat(np.arange(len(lengths)), lengths)
    return Tokens(np.asarray(words, np.int64), lines_T, len(lengths), vocabulary)


def grams(tokens: Tokens, orders: int) -> Iterator[Grams]:
    """The n-grams of order 1, 2, … `orders`; none crosses a line's end.

    `a b a b` has the words 0 1 0 1, and the bigrams `a b`, `b a`, `a b` with the codes 0 1 0 and the prefixes 0 1.
    """
    words_T, lines_T, num_words = tokens.words_T, tokens.lines_T, max(len(tokens.vocabulary), 1)
    codes_G, prefixes_K = words_T, np.full(len(tokens.vocabulary), -1)
    starts_G = np.arange(len(words_T))  # where each n-gram begins
    yield Grams(codes_G, lines_T, prefixes_K)
    for order in range(2, orders + 1):
        ends_G = starts_G + order - 1
        fits_G = ends_G < len(words_T)
        fits_G[fits_G] = lines_T[ends_G[fits_G]] == lines_T[starts_G[fits_G]]
        starts_G, ends_G = starts_G[fits_G], ends_G[fits_G]
        keys_K, codes_G = np.unique(codes_G[fits_G] * num_words + words_T[ends_G], return_inverse=True)
        yield Grams(codes_G, lines_T[starts_G], keys_K // num_words)


def count_pairs(lines_G: np.ndarray, codes_G: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each code occurs in each line: (lines, codes, counts), sorted by line and code, one entry a pair."""
    width = int(codes_G.max(initial=0)) + 1
    pairs, counts = np.unique(lines_G * width + codes_G, return_counts=True)
    return pairs // width, pairs % width, counts
