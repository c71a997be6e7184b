"""Batches: a function of (seed, step), padded without weight, each example once an epoch."""

import collections

import numpy as np
import pytest

from dialogpt_jax.data.batches import Batch, Batches, collate
from dialogpt_jax.data.examples import Example

LENGTHS = (8, 16, 32)


def drawn_examples(count=60, seed=0):
    """The first token of an example is its number plus one; a length of 2 to 32."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        size = int(rng.integers(2, 33))
        tokens_T = np.full(size, i + 1, np.int32)
        weights_T = np.ones(size, np.float32)
        weights_T[0] = 0
        out.append(Example(tokens_T, weights_T))
    return out


def make(examples, seed=0, tokens_per_batch=64):
    return Batches(examples, lengths=LENGTHS, tokens_per_batch=tokens_per_batch, seed=seed)


def same(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_collate_pads_at_the_right_with_no_weight():
    tokens_BT, weights_BT = collate([Example(np.array([5, 6, 7]), np.array([0, 1, 1])), drawn_examples(1)[0]], 40)
    assert (tokens_BT.shape, tokens_BT.dtype, weights_BT.dtype) == ((2, 40), np.int32, np.float32)
    assert tokens_BT[0].tolist() == [5, 6, 7] + [0] * 37
    assert weights_BT[0].tolist() == [0, 1, 1] + [0] * 37


def test_a_batch_is_a_function_of_seed_and_step():
    examples = drawn_examples()
    batches = make(examples)
    steps = 3 * batches.per_epoch
    seen = [batches[step] for step in range(steps)]
    for step in (0, steps - 1, 2, batches.per_epoch, batches.per_epoch - 1):  # in any order, by another object
        assert same(make(examples)[step], seen[step])
        assert same(batches[step], seen[step])
    other = make(examples, seed=1)
    assert not all(same(other[step], seen[step]) for step in range(batches.per_epoch))


def test_each_example_is_seen_at_most_once_an_epoch_and_all_in_the_long_run():
    examples = drawn_examples()
    batches = make(examples)
    ever = set()
    orders = []
    for epoch in range(12):
        numbers = [
            int(n)
            for step in range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
            for n in batches[step].tokens_BT[:, 0]
        ]
        assert max(collections.Counter(numbers).values()) == 1
        ever |= set(numbers)
        orders.append(numbers)
    assert ever == set(range(1, len(examples) + 1))
    assert len({tuple(order) for order in orders}) == len(orders)  # an epoch is not the one before


def test_batches_cost_about_the_same_and_hold_what_fits_their_bucket():
    batches = make(drawn_examples())
    shapes = set()
    for step in range(batches.per_epoch):
        tokens_BT, weights_BT = batches[step]
        shapes.add(tokens_BT.shape)
        longest = int((tokens_BT > 0).sum(axis=1).max())
        assert next(n for n in LENGTHS if n >= longest) <= tokens_BT.shape[1]
        assert all(n > tokens_BT.shape[1] // 2 or tokens_BT.shape[1] == 8 for n in (tokens_BT > 0).sum(axis=1))
        np.testing.assert_array_equal(weights_BT.sum(axis=1), (tokens_BT > 0).sum(axis=1) - 1)
    assert shapes == {(8, 8), (4, 16), (2, 32)}


def test_what_gives_no_batch_is_an_error_with_its_numbers():
    with pytest.raises(ValueError, match="an example has 33 tokens; the longest bucket holds 32"):
        make([Example(np.ones(33, np.int32), np.ones(33, np.float32))])
    with pytest.raises(ValueError, match="3 examples do not fill one batch of 512 tokens"):
        make(drawn_examples(3), tokens_per_batch=512)
    with pytest.raises(ValueError, match="0 examples"):
        make([])
