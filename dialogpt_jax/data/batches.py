"""Examples to batches: a batch is a function of (seed, step), so a run that resumes sees what it would have seen.

Examples of similar length share a batch. A bucket of length T has `tokens_per_batch // T` rows, so every batch costs
about the same and there is one compiled program per bucket. In each epoch the examples of a bucket are permuted, what
does not fill a batch is left out for that epoch, and the batches of all buckets are permuted.

Letters: B rows, T tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dialogpt_jax.data.examples import Example


class Batch(NamedTuple):
    """Rows padded at their right; a pad has weight 0 and an id in range.

    Attributes:
      tokens_BT: int32.
      weights_BT: float32, weight of each token as a target.
    """

    tokens_BT: np.ndarray
    weights_BT: np.ndarray


def collate(rows: Sequence[Example], length: int) -> Batch:
    """Pads examples to `length`."""
    tokens_BT = np.zeros((len(rows), length), np.int32)
    weights_BT = np.zeros((len(rows), length), np.float32)
    for row, example in enumerate(rows):
        tokens_BT[row, : len(example.tokens_T)] = example.tokens_T
        weights_BT[row, : len(example.weights_T)] = example.weights_T
    return Batch(tokens_BT, weights_BT)


class Batches:
    """All batches of a run, indexed by step.

    Args:
      examples: the epoch.
      lengths: the buckets, ascending; the last must hold the longest example.
      tokens_per_batch: rows times length, at most.
      seed: of the permutations.

    Raises:
      ValueError: an example is longer than the last bucket, or no bucket has enough examples for one batch.
    """

    def __init__(self, examples: Sequence[Example], *, lengths: Sequence[int], tokens_per_batch: int, seed: int):
        self._examples, self._seed = examples, seed
        sizes = np.array([len(e.tokens_T) for e in examples])
        if sizes.size and sizes.max() > lengths[-1]:
            raise ValueError(f"an example has {sizes.max()} tokens; the longest bucket holds {lengths[-1]}")
        bucket_of = np.searchsorted(lengths, sizes)
        self._buckets = [
            (length, max(1, tokens_per_batch // length), np.flatnonzero(bucket_of == i))
            for i, length in enumerate(lengths)
        ]
        self.per_epoch = sum(len(members) // rows for _, rows, members in self._buckets)
        if self.per_epoch == 0:
            raise ValueError(f"{len(examples)} examples do not fill one batch of {tokens_per_batch} tokens")
        self._epoch = -1
        self._plan: list[tuple[int, np.ndarray]] = []

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self._plan_epoch(epoch)
        length, members = self._plan[index]
        return collate([self._examples[i] for i in members], length)

    def _plan_epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        rng = np.random.default_rng((self._seed, epoch))
        plan = []
        for length, rows, members in self._buckets:
            order = rng.permutation(members)
            plan += [(length, order[i : i + rows]) for i in range(0, len(order) - rows + 1, rows)]
        return [plan[i] for i in rng.permutation(len(plan))]
