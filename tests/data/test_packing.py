"""Packing: every example once and whole, rows full, the same rows each time, nothing predicted across examples."""

import numpy as np
import pytest

from dialogpt_jax.data.examples import Example
from dialogpt_jax.data.packing import join, pack, plan_rows


def drawn_examples(count=300, longest=32, seed=0):
    """The tokens of each are its number."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        size = int(rng.integers(2, longest + 1))
        weights_T = rng.choice([0.0, 0.3, 1.0], size).astype(np.float32)
        weights_T[0] = 0
        out.append(Example(np.full(size, number, np.int32), weights_T))
    return out


def pieces(row):
    return [row.segments == number for number in range(row.segments.max() + 1)]


def test_the_worked_example():
    tokens = [[1, 2, 3, 4, 0], [5, 6, 0], [7, 8, 9, 0]]
    found = list(pack([Example(np.array(t, np.int32), np.zeros(len(t), np.float32)) for t in tokens], 8))
    assert [(row.tokens_T.tolist(), row.segments.tolist()) for row in found] == [
        ([1, 2, 3, 4, 0, 5, 6, 0], [0, 0, 0, 0, 0, 1, 1, 1]),
        ([7, 8, 9, 0], [0, 0, 0, 0]),
    ]


def test_every_example_is_in_one_row_once_and_whole():
    examples = drawn_examples()
    rows = list(pack(examples, 40, chunk=128))
    seen = []
    for row in rows:
        assert len(row.tokens_T) == len(row.weights_T) == len(row.segments) <= 40
        assert (row.tokens_T.dtype, row.weights_T.dtype, row.segments.dtype) == (np.int32, np.float32, np.int32)
        assert (np.diff(row.segments) >= 0).all()  # one after another
        for inside in pieces(row):
            example = examples[row.tokens_T[inside][0]]
            np.testing.assert_array_equal(row.tokens_T[inside], example.tokens_T)
            np.testing.assert_array_equal(row.weights_T[inside], example.weights_T)
            seen.append(int(row.tokens_T[inside][0]))
    assert sorted(seen) == list(range(len(examples)))
    assert max(row.segments.max() for row in rows) > 2


def test_rows_are_nearly_full_and_the_same_each_time():
    examples = drawn_examples(2000)
    rows = list(pack(examples, 64))
    tokens = sum(len(e.tokens_T) for e in examples)
    assert tokens / (64 * len(rows)) > 0.98
    again = list(pack(iter(examples), 64))
    assert all(
        np.array_equal(a, b) for one, other in zip(rows, again, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_a_chunk_is_packed_without_those_after_it():
    examples = drawn_examples(200)
    whole = [row.tokens_T.tolist() for row in pack(examples, 40, chunk=64)]
    begin = [row.tokens_T.tolist() for row in pack(examples[:64], 40, chunk=64)]
    assert whole[: len(begin)] == begin


def test_the_best_fit_is_taken():
    # 6 leaves 4, 5 leaves 5; 4 goes to the first though both have room, and 5 then fills the second.
    assert plan_rows([6, 4, 5, 5], 10) == [[0, 1], [2, 3]]
    assert plan_rows([], 10) == []
    assert plan_rows([10, 10], 10) == [[0], [1]]


def test_what_cannot_be_packed_is_an_error():
    with pytest.raises(ValueError, match="example 1 has 11 tokens; a row holds 10"):
        plan_rows([3, 11], 10)
    with pytest.raises(ValueError, match=r"first token weighs 0\.5 as a target; it must weigh 0"):
        join([Example(np.array([1, 2]), np.array([0, 1.0])), Example(np.array([1, 2]), np.array([0.5, 1.0]))])
