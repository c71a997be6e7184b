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

A turn's weight is that of each of its tokens and of its EOS. What weighs nothing and comes last is left out, and so is
an example without a target:

    weights 1, 0.3, 0       5  6  0   7   0             the first turn's weight is never used
                            0  0  0  0.3 0.3

Letters: T tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dialogpt_jax.arguments import shown
from dialogpt_jax.data.dialogue_value import MAX_WEIGHT, DataError, Dialogue
from dialogpt_jax.text.dialogue import ASSISTANT
from dialogpt_jax.text.tokenizer import MOST_ID

REPLIES, ALL, LAST = "replies", "all", "last"
WHICH_TURNS = (REPLIES, ALL, LAST)  # what is no speaker's name
MOST_JOINED = 5  # dialogues in one
MOST_TIMES = 1000  # that each stands among others; some 3 do
Weighed = tuple[
    Sequence[Sequence[int]], Sequence[float]
]  # a dialogue's turns as ids, and the weight of each as a target


class _Fields(NamedTuple):
    tokens_T: np.ndarray
    weights_T: np.ndarray
    segments: np.ndarray | None = None


class Example(_Fields):
    """One sequence.

    Attributes:
      tokens_T: int32.
      weights_T: float32; weight of token t as a target, predicted from the tokens before it. `weights_T[0]` is 0.
      segments: int32, per token the number of its example among those packed into this row, from 0 (`packing.py`);
        `None` where the row is one example.

    Lists may be given for each.

    Raises:
      DataError: they are not whole numbers from 0, numbers from 0 and whole numbers, as many of each.

    Example:
      >>> dg.Example(np.array([5, 6, 7], np.int32), np.array([0, 1, 1], np.float32)).weights_T.sum()
      np.float32(2.0)
    """

    __slots__ = ()

    def __new__(cls, tokens_T: Any, weights_T: Any, segments: Any = None) -> "Example":
        tokens_T = _numbers("tokens_T", tokens_T, "iu", MOST_ID, "a list of token ids, whole numbers from 0")
        if tokens_T.ndim != 1:
            raise DataError(f"tokens_T is {shown(tokens_T)}; give a list of token ids, whole numbers from 0")
        weights_T = _numbers("weights_T", weights_T, "iuf", MAX_WEIGHT, "a finite number from 0 for each token")
        if segments is not None:
            wanted = "the number of each token's example, whole numbers from 0"
            segments = _numbers("segments", segments, "iu", MOST_ID, wanted).astype(np.int32)
        for name, values_T in (("weights_T", weights_T), ("segments", segments)):
            if values_T is not None and values_T.shape != tokens_T.shape:
                raise DataError(f"{name} has the shape {values_T.shape}; give one for each of {len(tokens_T)} tokens")
        return super().__new__(cls, tokens_T.astype(np.int32), weights_T.astype(np.float32), segments)


def _numbers(name: str, value: Any, kinds: str, most: float, wanted: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of several lengths
        array = np.zeros(0, object)
    if array.dtype.kind not in kinds or not ((array >= 0) & (array <= most)).all():
        raise DataError(f"{name} is {shown(value)}; give {wanted}")
    return array


def windows(
    turns: Sequence[Sequence[int]],
    *,
    eos: int,
    max_length: int,
    context: int = 0,
    weights: Sequence[float] | None = None,
) -> Iterator[Example]:
    """The examples of one dialogue, each at most `max_length` tokens.

    Args:
      turns: token ids of each turn, without EOS. A dialogue of one turn has no target and gives nothing.
      eos: ends each turn.
      max_length: at least 2. A context that leaves no room for one turn is cut from its start, a target from its end.
      context: a later window begins with as many whole turns of the one before as fit into this many tokens; with
        one, however long. Training wants few (each is computed for its targets), an evaluation half of `max_length`.
      weights: of each turn as a target, from 0; the first is not used. 1 each by default.
    """
    ended = [[*turn, eos] for turn in turns]
    weighed = [1.0] * len(ended) if weights is None else list(weights)
    first = 1  # the first target of the window
    while first < len(ended):
        begin = first - 1
        while begin > 0 and sum(map(len, ended[begin - 1 : first])) <= context:
            begin -= 1
        before = [token for turn in ended[begin:first] for token in turn]
        targets: list[int] = []
        values: list[float] = []
        stop = first
        while stop < len(ended) and len(before) + len(targets) + len(ended[stop]) <= max_length:
            targets += ended[stop]
            values += [weighed[stop]] * len(ended[stop])
            stop += 1
        if not targets:
            targets = ended[first][: max_length - 1]
            values = [weighed[first]] * len(targets)
            before, stop = before[len(targets) - max_length :], first + 1
        first = stop
        while values and not values[-1]:  # no target, and nothing here after it needs it as context
            values.pop()
        if values:
            tokens = [*before, *targets[: len(values)]]
            yield Example(np.array(tokens, np.int32), np.array([0.0] * len(before) + values, np.float32))


def examples(dialogues: Iterable[Sequence[Sequence[int]]], *, eos: int, max_length: int) -> list[Example]:
    """`windows` of every dialogue, in order."""
    return [e for turns in dialogues for e in windows(turns, eos=eos, max_length=max_length)]


def order_and_weigh(dialogue: Dialogue, *, train_on: str = REPLIES, reverse: bool = False) -> Dialogue:
    """The turns in the order in which they are trained, each with its weight as a target.

        turns          A: "Hi!"   B: "Hello."   A: "Bye."       no weights given
        replies        0          1             1               what "assistant" says, where somebody is called so and
                                                                      the turns are not reversed; else all
        all            0          1             1               every turn after the first
        last           0          0             1
        "B"            0          1             0               a speaker's turns, but for the first of the dialogue

    Given weights are multiplied in: `last` of a last turn that weighs 0.3 is 0.3.

    `reverse` gives the data of a backward model, p(source | reply), for MMI. The turns stand in reversed order with their
    weights, as in Microsoft's `prepro.py --reverse`, and everything else is as for a dialogue said in this order. The
    reply comes first and is only context; then the turn it answers, and so on back to the beginning:

        turns          "Hi!"   "Hello."   "Bye."
        reversed       Bye. EOS Hello. EOS Hi! EOS
        all            0    0   1      1   1   1                what scores a reply: the log-probability of all turns
        last           0    0   0      0   1   1                before it, newest first, given the reply and its EOS

    Args:
      dialogue: what was said.
      train_on: "replies", "all", "last", or the name of a speaker.
      reverse: whether the last turn comes first.
    """
    turns, speakers, weights = dialogue.turns, dialogue.speakers, dialogue.weights or (1.0,) * len(dialogue.turns)
    if reverse:
        turns, weights = turns[::-1], weights[::-1]
        speakers = None if speakers is None else speakers[::-1]
    if train_on == REPLIES:
        train_on = ASSISTANT if ASSISTANT in (dialogue.speakers or ()) and not reverse else ALL
    if train_on == LAST:
        chosen = [number == len(turns) - 1 for number in range(len(turns))]
    else:
        chosen = [number > 0 for number in range(len(turns))]
        if train_on != ALL:
            chosen = [c and speakers is not None and speakers[n] == train_on for n, c in enumerate(chosen)]
    weights = tuple(weight if c else 0.0 for weight, c in zip(weights, chosen, strict=True))
    return Dialogue(turns, speakers, weights)


def dialogue_examples(
    turns: Sequence[Sequence[int]], weights: Sequence[float], *, eos: int, max_length: int
) -> list[Example]:
    """The examples of one dialogue that `order_and_weigh` has ordered, its turns encoded.

    A dialogue with one target, its last turn, is one example with as many whole turns of context as fit:

        turns [5 6] [7] [8 9], weights 0 0 1, max_length 6      7 0 8 9 0       any other: see `windows`
                                                                0 0 1 1 1

    Args:
      turns: token ids of each, without EOS.
      weights: of each turn as a target.
      eos: ends each turn.
      max_length: of an example, in tokens.
    """
    if len(turns) > 2 and not any(weights[1:-1]):
        total = sum(len(turn) + 1 for turn in turns)
        begin = 0
        while total > max_length and begin < len(turns) - 2:
            total -= len(turns[begin]) + 1
            begin += 1
        turns, weights = turns[begin:], weights[begin:]
    return list(windows(turns, eos=eos, max_length=max_length, weights=weights))


def joined_dialogues(dialogues: Sequence[Weighed], *, max_length: int, rng: np.random.Generator) -> Iterator[Weighed]:
    """The dialogues in a drawn order, two to five of them joined to one, as far as `max_length` tokens go.

    A model that has learned single exchanges only has never seen a reply deep in a chat, and derails there. Joined, it
    has: what was said before stays in sight, and is about something else. The first turn of each is context, as it was:

        [1] [2 3]   and   [4] [5]         →     [1] [2 3] [4] [5]
         0    1            0   1                 0    1    0   1

    Args:
      dialogues: turns of token ids, without EOS, and the weight of each turn as a target; of what `order_and_weigh` gives.
      max_length: of an example, in tokens. A dialogue that has no room beside another is left out here.
      rng: of the order, and of how many are joined.
    """
    order = rng.permutation(len(dialogues)).tolist()
    while order:
        most, used, size = int(rng.integers(2, MOST_JOINED + 1)), 0, 0
        turns: list[Sequence[int]] = []
        weights: list[float] = []
        while order and used < most:
            more, weighed = dialogues[order[-1]]
            size += sum(len(turn) + 1 for turn in more)
            if used and size > max_length:
                break
            order.pop()
            turns, weights, used = [*turns, *more], [*weights, *weighed], used + 1
        if used > 1 and any(weights):
            yield turns, weights
