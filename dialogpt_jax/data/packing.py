"""Short examples to full rows: examples in, rows of several whole examples out, with no example cut.

    max_length 8     [1 2 3 4 0] [5 6 0] [7 8 9 0]
    tokens_T         1 2 3 4 0 5 6 0        7 8 9 0
    segments         0 0 0 0 0 1 1 1        0 0 0 0         attention stays within a segment; positions restart in each

The loss of a row is that of its examples alone: the first token of each has weight 0, so that nothing is predicted from
the example before it.

Letters: T tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from dialogpt_jax.data.examples import Example

CHUNK = 8192  # examples that are packed together: memory stays bounded, and a fuller choice fills rows no better


def pack(examples: Iterable[Example], max_length: int, *, chunk: int = CHUNK) -> Iterator[Example]:
    """Rows of at most `max_length` tokens that hold each example once, whole, with `segments`.

    The longest example goes first, into the row it fills best: the same rows whenever the examples are the same.

    Args:
      examples: in order; each at most `max_length` tokens, its first weight 0.
      max_length: tokens of a row, at most.
      chunk: so many examples are packed together, then the next.

    Raises:
      ValueError: an example is too long, or its first token is a target.
    """
    source = iter(examples)
    while some := list(islice(source, chunk)):
        for row in plan_rows([len(e.tokens_T) for e in some], max_length):
            yield join([some[index] for index in row])


def join(examples: Sequence[Example]) -> Example:
    """One row of several examples.

    Raises:
      ValueError: the first token of one is a target: in the row it would be predicted from the example before.
    """
    for example in examples:
        if example.weights_T[0]:
            raise ValueError(f"an example's first token weighs {example.weights_T[0]:g} as a target; it must weigh 0")
    return Example(
        np.concatenate([e.tokens_T for e in examples]),
        np.concatenate([e.weights_T for e in examples]),
        np.repeat(np.arange(len(examples), dtype=np.int32), [len(e.tokens_T) for e in examples]),
    )


def plan_rows(lengths: Sequence[int] | np.ndarray, max_length: int) -> list[list[int]]:
    """Which examples share a row, best fit decreasing: the numbers of the examples of each row.

    Args:
      lengths: of the examples, in tokens.
      max_length: of a row.

    Raises:
      ValueError: an example is longer than a row.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(max_length + 1)]  # rows, by how many tokens are free
    for index in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        length = int(lengths[index])
        if length > max_length:
            raise ValueError(f"example {index} has {length} tokens; a row holds {max_length}")
        free = next((room for room in range(length, max_length + 1) if with_room[room]), None)
        if free is None:
            row, free = len(rows), max_length
            rows.append([])
        else:
            row = with_room[free].pop()
        rows[row].append(index)
        with_room[free - length].append(row)
    return rows
