"""Ent-n, Dist-n, length and repetition: by hand, by the published human row, and by leaving lines out one by one."""

import math

import numpy as np
import pytest

from dialogpt_jax.evaluation.diversity import diversity, leave_one_out, lengths, repetition
from dialogpt_jax.evaluation.ngrams import grams, number_words

ROUNDING = 1e-12  # two sums of the same float64 numbers in another order
LINES = [line.split() for line in ("a b a b", "", "a b c", "c")]


def test_by_hand():
    """Words: a 3, b 3, c 2 of 8. Pairs: ab 3, ba 1, bc 1 of 5. Threes: aba, bab, abc. Fours: abab."""
    entropies, distincts = diversity(LINES)
    words = -(3 * math.log(3 / 8) * 2 + 2 * math.log(2 / 8)) / 8
    pairs = -(3 * math.log(3 / 5) + 2 * math.log(1 / 5)) / 5
    np.testing.assert_allclose(entropies, [words, pairs, math.log(3), 0.0], atol=ROUNDING)
    np.testing.assert_allclose(distincts, [3 / 8, 3 / 5, 1, 1], atol=ROUNDING)
    np.testing.assert_array_equal(lengths(LINES), [4, 0, 3, 1])


def test_no_ngram_crosses_a_line():
    codes = [len(found.codes_G) for found in grams(number_words([["a"], ["b", "c"], ["d"]]), 3)]
    assert codes == [4, 1, 0]


def test_case_is_kept_and_no_ngram_is_nan():
    entropies, distincts = diversity([["A"], ["a"]])
    assert entropies[0] == pytest.approx(math.log(2))
    assert np.isnan(entropies[1:]).all()
    assert np.isnan(distincts[1:]).all()


def test_the_published_human_row(shared):
    """README of DialoGPT, 6k test, human: Ent-4 11, Dist-1 14.50 %, Dist-2 63.00 %, length 13.1."""
    lines = [line.split() for line in (shared / "data/human.ref.6k.txt").read_text(encoding="utf-8").splitlines()]
    entropies, distincts = diversity(lines)
    assert len(lines) == 6000
    np.testing.assert_allclose(entropies, [6.864963, 10.213254, 10.970525, 10.995100], atol=5e-7)
    np.testing.assert_allclose(distincts[:2], [0.145482, 0.629633], atol=5e-7)
    assert lengths(lines).mean() == pytest.approx(13.100167, abs=5e-7)


def test_leave_one_out_is_leaving_one_out():
    lines = [*LINES, ["d", "d", "d"]]  # `d` stands only in this line, and more than once
    found = leave_one_out(lines)
    for b in range(len(lines)):
        for column, expected in zip(found, diversity(lines[:b] + lines[b + 1 :]), strict=True):
            np.testing.assert_allclose(column[b], expected, atol=ROUNDING)


def test_repetition_by_hand():
    """`a b a b a b` has the fours abab baba abab: 1/3 repeated. `x x x x x`: xxxx xxxx: 1/2. Two words: none."""
    lines = [line.split() for line in ("a b a b a b", "x x x x x", "a a", "", "a b c d e")]
    np.testing.assert_allclose(repetition(lines), [1 / 3, 1 / 2, 0, 0, 0], atol=ROUNDING)
    np.testing.assert_array_equal(repetition([["a"], []]), 0.0)
