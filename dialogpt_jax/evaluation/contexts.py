"""Dialogues to questions for a model: turns in, contexts and the true next turns out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Context(NamedTuple):
    """A dialogue that stops before a turn.

    Attributes:
      turns: the texts before it, at least one.
      truth: the turn that came next.
      dialogue: index of the dialogue it was cut from.
    """

    turns: list[str]
    truth: str
    dialogue: int


def cut(dialogues: Sequence[Sequence[str]], count: int, *, seed: int = 0) -> list[Context]:
    """`count` contexts: each dialogue in order cut once before a drawn turn, then each once more, until there are enough.

    Dialogues of one turn are passed over; where a dialogue runs out of turns it is left out of later rounds.

    Raises:
      ValueError: the dialogues do not hold that many.
    """
    usable = [d for d, turns in enumerate(dialogues) if len(turns) > 1]
    orders = {d: 1 + np.random.default_rng((seed, d)).permutation(len(dialogues[d]) - 1) for d in usable}
    most = sum(len(order) for order in orders.values())
    if count > most:
        raise ValueError(f"{count} contexts were asked for; the {len(dialogues)} dialogues hold {most}")
    contexts: list[Context] = []
    for place in range(max(map(len, orders.values()), default=0)):
        for d in usable:
            if place < len(orders[d]) and len(contexts) < count:
                at = int(orders[d][place])
                contexts.append(Context(list(dialogues[d][:at]), dialogues[d][at], d))
    return contexts
