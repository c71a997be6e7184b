"""A dialogue as data has it: turns, who said each, and what each weighs, in; one checked value, or one clear error, out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dialogpt_jax.arguments import as_plain, shown
from dialogpt_jax.text.dialogue import DialogueError, said_by, why_not_a_turn

MAX_WEIGHT = 3.4e38  # float32's end


class DataError(ValueError):
    """A line that is not a dialogue, or data that nothing can be trained on; the message names file and line."""


@dataclass(frozen=True)
class Dialogue:
    """What was said, in order.

    Attributes:
      turns: the texts; none is empty.
      speakers: who said each, where the file says so.
      weights: how much each counts as a target, where the file says so; elsewhere 1.

    Any sequence may be given for each, and is kept as a tuple; chat messages for `turns`, whose roles are speakers.

    Raises:
      DataError: a turn is no text, or there is not one speaker and one weight, finite and from 0, for each turn.

    Example:
      >>> dg.Dialogue(("Hi!", "Hello, I am Pip."), weights=(0.0, 1.0)).turns
      ('Hi!', 'Hello, I am Pip.')
    """

    turns: tuple[str, ...]
    speakers: tuple[str | None, ...] | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.turns, str):
            raise DataError(f"turns is one text, {shown(self.turns)}; give a list of texts")
        try:
            said = said_by(self.turns)
        except DialogueError as error:
            raise DataError(str(error)) from None
        object.__setattr__(self, "turns", tuple(text for text, _ in said))
        if self.speakers is None and any(role is not None for _, role in said):
            object.__setattr__(self, "speakers", tuple(role for _, role in said))
        for name in ("speakers", "weights"):
            values = as_plain(getattr(self, name))
            if values is None:
                continue
            if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != len(said):
                raise DataError(f"{name} is {shown(values)}; give a list of {len(said)}, one for each turn")
            object.__setattr__(self, name, tuple(values))
        for speaker in self.speakers or ():
            if speaker is not None and not isinstance(speaker, str):
                raise DataError(f"a speaker is {shown(speaker)}; give a name, or None")
            if refusal := why_not_a_turn(speaker):
                raise DataError(refusal)
        for weight in self.weights or ():
            number = isinstance(weight, int | float | np.number) and not isinstance(weight, bool)
            if not number or not 0 <= weight <= MAX_WEIGHT:
                raise DataError(f"a weight is {shown(weight)}; it must be a finite number from 0")


class Dropped(NamedTuple):
    """A line that gives no dialogue.

    Attributes:
      line: its number in the file, from 1.
      reason: what is wrong, with its numbers.
      kind: the same without them, to count by.
    """

    line: int
    reason: str
    kind: str
