"""Dialogues to training examples: turns of token ids in; tokens and the weight of each as a target out.

The paper's objective (arXiv 1911.00536, section 3.1): p(T2 … TN | T1), every turn after the first given all before it,
each with the EOS that ends it.

    turns           [5 6] [7] [8 9]                     EOS = 0
    tokens_T        5  6  0  7  0  8  9  0
    weights_T       0  0  0  1  1  1  1  1              the first turn is context; an EOS after a trained turn is a target

A dialogue longer than `max_length` becomes several examples. Each begins with the last turn of the one before, as
context, so that every turn after the first is a target exactly once:

    max_length 6    5  6  0  7  0   |   7  0  8  9  0
                    0  0  0  1  1   |   0  0  1  1  1

Letters: T tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
    """One sequence.

    Attributes:
      tokens_T: int32.
      weights_T: float32; weight of token t as a target, predicted from the tokens before it. `weights_T[0]` is 0.
    """

    tokens_T: np.ndarray
    weights_T: np.ndarray


def windows(turns: Sequence[Sequence[int]], *, eos: int, max_length: int, context: int = 0) -> Iterator[Example]:
    """The examples of one dialogue, each at most `max_length` tokens.

    Args:
      turns: token ids of each turn, without EOS. A dialogue of one turn has no target and gives nothing.
      eos: ends each turn.
      max_length: at least 2. A context that leaves no room for one turn is cut from its start, a target from its end.
      context: a later window begins with as many whole turns of the one before as fit into this many tokens; with
        one, however long. Training wants few (each is computed for its targets), an evaluation half of `max_length`.
    """
    ended = [[*turn, eos] for turn in turns]
    first = 1  # the first target of the window
    while first < len(ended):
        begin = first - 1
        while begin > 0 and sum(map(len, ended[begin - 1 : first])) <= context:
            begin -= 1
        before = [token for turn in ended[begin:first] for token in turn]
        targets: list[int] = []
        stop = first
        while stop < len(ended) and len(before) + len(targets) + len(ended[stop]) <= max_length:
            targets += ended[stop]
            stop += 1
        if not targets:
            targets = ended[first][: max_length - 1]
            before, stop = before[len(targets) - max_length :], first + 1
        tokens_T = np.array([*before, *targets], np.int32)
        weights_T = np.array([0.0] * len(before) + [1.0] * len(targets), np.float32)
        yield Example(tokens_T, weights_T)
        first = stop


def examples(dialogues: Iterable[Sequence[Sequence[int]]], *, eos: int, max_length: int) -> list[Example]:
    """`windows` of every dialogue, in order."""
    return [e for turns in dialogues for e in windows(turns, eos=eos, max_length=max_length)]
