"""Examples to batches: a batch is a function of (seed, step), so a run that resumes sees what it would have seen.

The whole epoch is planned from the lengths of all examples, identically in every process: which examples share a batch,
in which order, padded to which length. A process then reads only the rows that it needs. So the step is the only
position, and another number of processes goes on at the very next example.

    examples ─lengths→ plan of an epoch: [(T, the batch's examples), …] ─rows of a step→ Batch

Letters: B rows, T tokens.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from dialogpt_jax.data.examples import Example
from dialogpt_jax.errors import counted

T = TypeVar("T")
Rows = Any  # an array, NumPy's where it is read and jax's where it is used, or the shape of one


class Batch(NamedTuple):
    """Rows padded at their right; a pad has weight 0 and an id in range.

    Attributes:
      tokens_BT: int32.
      weights_BT: float32, weight of each token as a target.
      segments_BT: int32, the number of each token's example within its row, pads −1; `None` where a row is one example.

    Example:
      >>> batch = dg.Batch(np.array([[5, 6, 7, 0], [5, 8, 0, 0]]), np.array([[0.0, 1, 1, 0], [0.0, 1, 0, 0]]))
      >>> batch.tokens_BT.shape
      (2, 4)
    """

    tokens_BT: Rows
    weights_BT: Rows
    segments_BT: Rows | None = None


class Planned(NamedTuple):
    """One batch before it is read: the length of its rows, and the number of the example in each."""

    length: int
    members_B: np.ndarray


class Planner(Protocol):
    """How an epoch is divided into batches: from the length of each example and a generator, to the batches in order."""

    def __call__(self, sizes: np.ndarray, rng: np.random.Generator) -> list[Planned]: ...


class Buckets(NamedTuple):
    """Examples of similar length share a batch, and every batch costs about the same.

    A bucket of length T has `rows · length / T` rows, rounded down to a multiple of `multiple`. Examples are drawn in
    random order; what does not fill a batch of its bucket goes up into the next longer one, and the last batch is filled
    by examples of the same epoch: see `filled`. The batches come in random order. Where there are so few examples that not
    one batch is full, an epoch is one smaller batch of them all.

    Attributes:
      rows: of a batch at the full length.
      length: the longest row.
      widths: how many buckets, each as much longer than the one before; each is a shape, a program to compile.
      multiple: what the rows of every batch are divided by: devices times parts of the batch.
    """

    rows: int
    length: int
    widths: int = 8
    multiple: int = 8

    def shapes(self, longest: int) -> list[tuple[int, int]]:
        """(B, T) of each bucket up to the one that holds `longest`."""
        width = -(-self.length // self.widths)
        lengths = [min(width * (i + 1), self.length) for i in range(-(-min(longest, self.length) // width))]
        return [(max(self.rows * self.length // T // self.multiple, 1) * self.multiple, T) for T in lengths]

    def __call__(self, sizes: np.ndarray, rng: np.random.Generator) -> list[Planned]:
        shapes = self.shapes(int(sizes.max()))
        bucket_of = np.searchsorted([length for _, length in shapes], sizes)
        left, plan = np.zeros(0, np.int64), []
        for bucket, (rows, length) in enumerate(shapes):
            members = rng.permutation(np.concatenate([left, np.flatnonzero(bucket_of == bucket)]))
            full = len(members) // rows * rows
            plan += [Planned(length, members[i : i + rows]) for i in range(0, full, rows)]
            left = members[full:]
        if len(left):
            rows, length = shapes[-1]
            rows = rows if plan else -(-len(left) // self.multiple) * self.multiple
            plan.append(Planned(length, filled(left, rows, len(sizes), rng)))
        return [plan[i] for i in rng.permutation(len(plan))]


class SortedWindows(NamedTuple):
    """As microsoft/DialoGPT's `data_loader.py` does it: windows of 100 batches are sorted by length and cut into batches.

    A batch is padded to its longest row, rounded up to a multiple of 8. Each has `rows` rows, so short ones cost less, and
    there are as many programs as multiples of 8. The last is filled by examples of the same epoch (see `filled`), where
    theirs is dropped. Fewer examples than a batch are one smaller batch.

    Attributes:
      rows: of a batch.
      window: batches that are sorted together.
      pad_multiple: what the length of a row is rounded up to.
      multiple: what the rows of a smaller batch are divided by.
    """

    rows: int
    window: int = 100
    pad_multiple: int = 8
    multiple: int = 1

    def __call__(self, sizes: np.ndarray, rng: np.random.Generator) -> list[Planned]:
        order = rng.permutation(len(sizes))
        plan: list[Planned] = []
        span = self.rows * self.window
        for start in range(0, len(order), span):
            window = order[start : start + span]
            window = window[np.argsort(-sizes[window], kind="stable")]
            for i in range(0, len(window), self.rows):
                members = window[i : i + self.rows]
                if len(members) < self.rows:
                    rows = self.rows if plan else -(-len(members) // self.multiple) * self.multiple
                    members = filled(members, rows, len(sizes), rng)
                length = -(-int(sizes[members].max()) // self.pad_multiple) * self.pad_multiple
                plan.append(Planned(length, members))
        return [plan[i] for i in rng.permutation(len(plan))]


def filled(left: np.ndarray, rows: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """The last examples of an epoch of `count`, up to `rows` with others of it, drawn; none twice before all are once.

    So every example is seen in every epoch, and the batch is a function of the seed and the step as all are.

        90 examples, the last 2 left, 4 rows: [17 88 89 3]      3 examples, all left, 8 rows: [2 0 1 1 0 2 1 0]
    """
    order = rng.permutation(count)
    order = order[np.argsort(np.isin(order, left), kind="stable")]  # the others first
    return rng.permutation(np.concatenate([left, np.resize(order, rows - len(left))]))


class Batches:
    """All batches of a run, indexed by step, over as many epochs as are asked for.

    Args:
      examples: the epoch; where they have `.lengths`, those are taken, and nothing is read to plan.
      planner: `Buckets` or `SortedWindows`.
      seed: of the order.

    Raises:
      ValueError: there is no example.
    """

    def __init__(self, examples: Sequence[Example], planner: Planner, *, seed: int):
        self._examples, self._planner, self._seed = examples, planner, seed
        self._sizes = lengths_of(examples)
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)
        if not len(self._sizes):
            raise ValueError("there are no examples to make batches of")
        self.per_epoch = len(self._epoch(0))

    @property
    def rows_of_whole_epoch(self) -> int:
        """Where every batch is all examples, since they do not fill one: its rows; 0 elsewhere."""
        members_B = self.planned(0).members_B
        return len(members_B) if self.per_epoch == 1 and len(np.unique(members_B)) == len(self._sizes) else 0

    def planned(self, step: int) -> Planned:
        """Which examples make the batch of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.per_epoch)
        return self._epoch(epoch)[index]

    def tokens(self, step: int) -> int:
        """How many tokens the batch of a step has, pads not counted."""
        return int(self._sizes[self.planned(step).members_B].sum())

    def __getitem__(self, step: int) -> Batch:
        """The whole batch of a step."""
        return self.read(step, slice(None))

    def read(self, step: int, rows: slice | np.ndarray) -> Batch:
        """Some rows of the batch of a step; only they are read."""
        length, members_B = self.planned(step)
        return collate([self._examples[int(i)] for i in members_B[rows]], length)

    def _plan_epoch(self, epoch: int) -> list[Planned]:
        return self._planner(self._sizes, np.random.default_rng((self._seed, epoch)))


def lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """Tokens of each example: what they say themselves (`.lengths`), or counted."""
    lengths = getattr(examples, "lengths", None)
    return np.array([len(e.tokens_T) for e in examples], np.int64) if lengths is None else np.asarray(lengths, np.int64)


def examples_hash(examples: Sequence[Example]) -> str:
    """Tells other data from these: a hash of all lengths, and of the tokens and weights of up to 64 examples."""
    sizes = lengths_of(examples)
    digest = hashlib.sha256(sizes.tobytes())
    for i in np.linspace(0, len(sizes) - 1, min(64, len(sizes))).astype(int):
        digest.update(np.ascontiguousarray(examples[int(i)].tokens_T, np.int32).tobytes())
        digest.update(np.ascontiguousarray(examples[int(i)].weights_T, np.float32).tobytes())
    return digest.hexdigest()[:16]


def collate(rows: Sequence[Example], length: int) -> Batch:
    """Pads examples to `length`."""
    shape = (len(rows), length)
    tokens_BT, weights_BT = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    packed = any(example.segments is not None for example in rows)
    segments_BT = np.full(shape, -1, np.int32) if packed else None
    for row, example in enumerate(rows):
        size = len(example.tokens_T)
        tokens_BT[row, :size] = example.tokens_T
        weights_BT[row, :size] = example.weights_T
        if segments_BT is not None:
            segments_BT[row, :size] = 0 if example.segments is None else example.segments
    return Batch(tokens_BT, weights_BT, segments_BT)


def fill_up(rows: Sequence[T], size: int) -> list[T]:
    """A last, smaller batch with its first row repeated until it has `size`: one shape, so one program for all batches.

    What comes out for the rows that were added is left out by the caller.

        [a b], size 4:    [a b a a]
    """
    return [*rows, *[rows[0]] * (size - len(rows))]


def pad_right(rows: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids as one array, int32 (B, width), 0 behind each row's end; and the rows' lengths, int32 (B,)."""
    tokens_BT = np.zeros((len(rows), width), np.int32)
    for row, tokens in enumerate(rows):
        tokens_BT[row, : len(tokens)] = tokens
    return tokens_BT, np.array([len(tokens) for tokens in rows], np.int32)


def rows_multiple(batch_size: int, *, accumulate: int, shards: int) -> int:
    """What the rows of every batch are divided by: the parts of a batch times the devices that share it.

    Where the batch size allows, a multiple of 8, so that most other meshes can go on where this one stopped.

    Raises:
      ValueError: they do not divide the batch size.
    """
    parts = accumulate * shards
    if batch_size % parts:
        raise ValueError(
            f"a batch of {counted(batch_size, 'examples')} is not divided by {counted(accumulate, 'parts')} on "
            f"{counted(shards, 'devices')}; take a multiple of {parts}"
        )
    return math.gcd(batch_size, math.lcm(8, parts))


def read_ahead(load: Callable[[int], Batch], first: int, last: int, *, ahead: int = 4) -> Iterator[Batch]:
    """`load(step)` for the steps from `first` to before `last`, in order, read on a thread while the device computes."""
    import grain

    class Steps:
        def __len__(self) -> int:
            return max(last - first, 0)

        def __getitem__(self, index) -> Batch:
            return load(first + int(index))

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(Steps()).to_iter_dataset(options))
