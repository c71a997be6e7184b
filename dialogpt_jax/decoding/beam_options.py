"""How beams are searched, as a caller says it: numbers in, checked options out. Nothing here imports jax."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from dialogpt_jax.arguments import MOST, as_number, as_whole_number, shown

EARLY_STOPPING: Mapping[bool | str, int] = {False: 0, True: 1, "never": 2}


@dataclasses.dataclass(frozen=True)
class BeamOptions:
    """A beam search.

    Attributes:
      beams: so many beginnings of a reply are followed at once, from 1.
      length_penalty: a score is the sum of log-probabilities over length ** this; over 0 favours long replies.
      early_stopping: when the search has as many finished replies as beams, it is done: `True`, at once; `False`, when the
        best beam is not better than the worst of them as it stands; "never", when it could not become better at any length.

    Raises:
      ValueError: one of them is something else.
    """

    beams: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self) -> None:
        as_whole_number("beams", self.beams, least=1, most=MOST)
        as_number("length_penalty", self.length_penalty, least=-100.0, below=100.0)
        stopping = self.early_stopping
        if not isinstance(stopping, bool | np.bool_ | str) or stopping not in EARLY_STOPPING:
            raise ValueError(f"early_stopping is {shown(stopping)}; give True, False or 'never'")
