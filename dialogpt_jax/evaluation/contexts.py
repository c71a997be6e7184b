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


def cut(dialogues: Sequence[Sequence[str]], count: int | None = None, *, seed: int = 0) -> list[Context]:
    """At most `count` contexts: each dialogue in order cut once before a drawn turn, then each once more, and so on.

    A dialogue of one turn gives none. Nor does a place where the turn to reply to, or the reply, is empty. Where a
    dialogue runs out of places it is left out of later rounds.

    Args:
      dialogues: lists of turns.
      count: how many at most; all that the dialogues hold by default.
      seed: of the draw. The first contexts are the same whatever `count` is.
    """
    orders = [np.random.default_rng((seed, d)).permutation(max(len(t) - 1, 0)) + 1 for d, t in enumerate(dialogues)]
    places = [
        [at for at in map(int, order) if turns[at - 1].strip() and turns[at].strip()]
        for order, turns in zip(orders, dialogues, strict=True)
    ]
    contexts = [
        Context(list(dialogues[d][: ats[turn]]), dialogues[d][ats[turn]], d)
        for turn in range(max(map(len, places), default=0))
        for d, ats in enumerate(places)
        if turn < len(ats)
    ]
    return contexts[:count]
