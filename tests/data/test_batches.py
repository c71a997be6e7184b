"""Batches: a function of (seed, step), padded without weight, planned alike by everyone, each example in every epoch."""

import collections

import numpy as np
import pytest

from dialogpt_jax.data.batches import (
    Batch,
    Batches,
    Buckets,
    SortedWindows,
    collate,
    examples_hash,
    fill_up,
    pad_right,
    read_ahead,
    rows_multiple,
)
from dialogpt_jax.data.examples import Example

BUCKETS = Buckets(rows=4, length=32, widths=4, multiple=2)


def drawn_examples(count=90, seed=0):
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


def make(examples, seed=0, planner=BUCKETS):
    return Batches(examples, planner, seed=seed)


def same(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one[:2], other[:2], strict=True))


def sizes(batch: Batch) -> np.ndarray:
    return (batch.tokens_BT > 0).sum(axis=1)


def test_collate_pads_at_the_right_with_no_weight():
    tokens_BT, weights_BT, segments_BT = collate(
        [Example(np.array([5, 6, 7]), np.array([0, 1, 0.3])), drawn_examples(1)[0]], 40
    )
    assert (tokens_BT.shape, tokens_BT.dtype, weights_BT.dtype) == ((2, 40), np.int32, np.float32)
    assert tokens_BT[0].tolist() == [5, 6, 7] + [0] * 37
    np.testing.assert_array_equal(weights_BT[0], np.array([0, 1, 0.3] + [0] * 37, np.float32))
    assert segments_BT is None


def test_collate_marks_the_pads_of_packed_rows_as_of_no_segment():
    packed = Example(np.array([5, 6, 7]), np.array([0, 1, 0]), np.array([0, 0, 1], np.int32))
    batch = collate([packed, drawn_examples(1)[0]], 40)
    assert batch.segments_BT.dtype == np.int32
    assert batch.segments_BT[0].tolist() == [0, 0, 1] + [-1] * 37
    size = int(sizes(batch)[1])
    assert batch.segments_BT[1].tolist() == [0] * size + [-1] * (40 - size)


@pytest.mark.parametrize("planner", [BUCKETS, SortedWindows(4, window=3)])
def test_a_batch_is_a_function_of_seed_and_step(planner):
    examples = drawn_examples()
    batches = make(examples, planner=planner)
    steps = 3 * batches.per_epoch
    seen = [batches[step] for step in range(steps)]
    for step in (0, steps - 1, 2, batches.per_epoch, batches.per_epoch - 1):  # in any order, by another object
        assert same(make(examples, planner=planner)[step], seen[step])
        assert same(batches[step], seen[step])
    other = make(examples, seed=1, planner=planner)
    assert not all(same(other[step], seen[step]) for step in range(batches.per_epoch))


@pytest.mark.parametrize("planner", [BUCKETS, SortedWindows(4, window=3)])
@pytest.mark.parametrize("count", [88, 89, 90, 91])
def test_each_example_is_seen_at_least_once_an_epoch_and_the_fill_ins_of_one_batch_are_the_only_repeats(planner, count):
    batches = make(drawn_examples(count), planner=planner)
    orders, repeats, fill_ins = [], set(), set()
    for epoch in range(12):
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        rows = [batches[step].tokens_BT[:, 0].tolist() for step in steps]
        assert all(len(set(numbers)) == len(numbers) for numbers in rows)
        times = collections.Counter(number for numbers in rows for number in numbers)
        assert set(times) == set(range(1, count + 1))
        assert max(times.values()) <= 2
        twice = {number for number, n in times.items() if n == 2}
        assert any(twice <= set(numbers) for numbers in rows)
        repeats.add(len(twice))
        fill_ins.add(tuple(sorted(twice)))
        orders.append(str(rows))
    assert len(repeats) == 1  # an epoch has as many batches as the one before
    assert max(repeats) < 4
    assert max(repeats) == -count % 4 or planner is BUCKETS
    assert len(fill_ins) > 6 or not max(repeats)
    assert len(set(orders)) == len(orders)  # and they are others


def test_batches_cost_about_the_same_and_their_rows_divide():
    batches = make(drawn_examples())
    shapes = {batches[step].tokens_BT.shape for step in range(batches.per_epoch)}
    assert shapes == {(16, 8), (8, 16), (4, 24), (4, 32)} == set(BUCKETS.shapes(32))
    for step in range(batches.per_epoch):
        batch = batches[step]
        np.testing.assert_array_equal(batch.weights_BT.sum(axis=1), sizes(batch) - 1)
        assert batches.tokens(step) == sizes(batch).sum()
        fits = np.searchsorted([8, 16, 24, 32], sizes(batch))
        own = [8, 16, 24, 32].index(batch.tokens_BT.shape[1])
        assert fits.max() <= own
        assert (fits == own).any() or own == 3  # what a shorter bucket could not fill, beside the bucket's own


def test_lengths_are_mixed_over_an_epoch():
    batches = make(drawn_examples(400))
    lengths = [batches.planned(step).length for step in range(batches.per_epoch)]
    assert lengths != sorted(lengths)
    assert lengths != sorted(lengths, reverse=True)


def test_a_corpus_of_a_few_short_dialogues_still_fills_batches():
    few = [e for e in drawn_examples() if len(e.tokens_T) < 30][:9]
    batches = make(few)
    assert batches.per_epoch == 3
    assert {batches[step].tokens_BT.shape[0] for step in range(3)} == {4}


def test_shapes_end_where_the_longest_example_does():
    assert Buckets(rows=32, length=256).shapes(100) == [(256, 32), (128, 64), (80, 96), (64, 128)]
    assert Buckets(rows=4, length=100, widths=1, multiple=4).shapes(3) == [(4, 100)]


def test_the_paper_s_windows_are_sorted_by_length_and_padded_to_eight():
    batches = make(drawn_examples(), planner=SortedWindows(4, window=3))
    spreads = []
    for step in range(batches.per_epoch):
        batch = batches[step]
        assert batch.tokens_BT.shape == (4, -(-int(sizes(batch).max()) // 8) * 8)
        spreads.append(np.ptp(sizes(batch)))
    unsorted = [np.ptp([len(e.tokens_T) for e in drawn_examples()[i : i + 4]]) for i in range(0, 88, 4)]
    assert np.mean(spreads) < 0.6 * np.mean(unsorted)


def test_a_part_of_a_batch_reads_only_its_rows():
    examples = drawn_examples()
    read = []

    class Watched(list):
        lengths = np.array([len(e.tokens_T) for e in examples])

        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    batches = make(Watched(examples))
    assert read == []  # lengths are enough to plan
    whole = make(examples)[3]
    for rows in (slice(1, 3), np.array([0, 3])):
        read.clear()
        part = batches.read(3, rows)
        assert len(read) == 2
        assert np.array_equal(part.tokens_BT, whole.tokens_BT[rows])


def test_steps_are_read_ahead_in_order():
    assert list(read_ahead(lambda step: step * 10, 3, 8)) == [30, 40, 50, 60, 70]
    assert list(read_ahead(lambda step: step, 5, 5)) == []


def test_an_error_while_reading_ahead_arrives():
    def load(step):
        if step == 2:
            raise OSError("the disk is gone")
        return step

    with pytest.raises(OSError, match="the disk is gone"):
        list(read_ahead(load, 0, 5))


def test_data_is_known_by_its_fingerprint():
    one, other = drawn_examples(), drawn_examples()
    assert examples_hash(one) == examples_hash(other)
    weights_T = other[0].weights_T.copy()
    weights_T[1] = 0.3
    assert examples_hash([other[0]._replace(weights_T=weights_T), *other[1:]]) != examples_hash(one)
    assert examples_hash(one[:-1]) != examples_hash(one)
    assert examples_hash([*one[:-1], one[-1]._replace(tokens_T=one[-1].tokens_T + 1)]) != examples_hash(one)


def test_rows_divide_by_parts_and_devices_and_where_they_can_by_eight():
    assert rows_multiple(32, accumulate=1, shards=1) == 8
    assert rows_multiple(32, accumulate=2, shards=8) == 16
    assert rows_multiple(6, accumulate=3, shards=1) == 6
    assert rows_multiple(3, accumulate=1, shards=1) == 1
    with pytest.raises(
        ValueError, match="a batch of 12 examples is not divided by 1 part on 8 devices; take a multiple of 8"
    ):
        rows_multiple(12, accumulate=1, shards=8)


@pytest.mark.parametrize("planner", [BUCKETS, SortedWindows(4, multiple=2), Buckets(32, 32, 4, 8)])
@pytest.mark.parametrize("count", [1, 3])
def test_fewer_examples_than_a_batch_are_a_smaller_one(planner, count):
    batches, wanted = make(drawn_examples(count), planner=planner), -(-count // planner.multiple) * planner.multiple
    assert batches.rows_of_whole_epoch == wanted
    for step in range(3):
        first_B = batches[step].tokens_BT[:, 0].tolist()
        assert len(first_B) == wanted
        assert set(first_B) == set(range(1, count + 1))
        assert max(map(first_B.count, first_B)) <= -(
            -wanted // count
        )  # an extra row is none thrice before all are twice
        assert same(batches[step], make(drawn_examples(count), planner=planner)[step])
    assert make(drawn_examples(90)).rows_of_whole_epoch == 0
    assert make(drawn_examples(4), planner=SortedWindows(4)).rows_of_whole_epoch == 4


def test_forty_five_short_chats_fill_no_batch_of_their_bucket():
    """A bucket of a quarter of the length has four times the rows."""
    short = [Example(e.tokens_T[:8], e.weights_T[:8]) for e in drawn_examples(45)]
    batches = make(short, planner=Buckets(rows=32, length=32, widths=4, multiple=8))
    assert (batches.per_epoch, batches.planned(0).length, len(batches.planned(0).members_B)) == (1, 8, 48)


def test_no_example_is_an_error():
    with pytest.raises(ValueError, match="there are no examples to make batches of"):
        make([])


def test_a_last_batch_is_filled_with_its_first_row_and_rows_are_padded_at_their_right():
    assert fill_up(["a", "b"], 4) == ["a", "b", "a", "a"]
    assert fill_up(["a", "b"], 2) == ["a", "b"]
    tokens_BT, lengths_B = pad_right([[5, 6], [7, 8, 9]], 4)
    assert tokens_BT.tolist() == [[5, 6, 0, 0], [7, 8, 9, 0]]
    assert lengths_B.tolist() == [2, 3]
    assert tokens_BT.dtype == lengths_B.dtype == np.int32
