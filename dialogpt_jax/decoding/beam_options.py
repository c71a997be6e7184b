"""How beams are searched, as a caller says it: numbers and words in, checked options out. Nothing here imports jax.

Whatever searches, a bot, a chat, a command, takes `beams` and these words, and hands them to `beam_options`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

from dialogpt_jax.arguments import MOST, as_number, as_whole_number, shown

DIVERSITY = 0.5
EARLY_STOPPING_WORDS: Mapping[str, bool | str] = {"no": False, "yes": True, "never": "never"}  # as one types them
EARLY_STOPPING: Mapping[bool | str, int] = {False: 0, True: 1, "never": 2}


@dataclasses.dataclass(frozen=True)
class BeamOptions:
    """A beam search.

    Attributes:
      beams: so many beginnings of a reply are followed at once, from 1.
      length_penalty: a score is the sum of log-probabilities over length ** this; over 0 favours long replies.
      early_stopping: when the search has as many finished replies as beams, it is done: `True`, at once; `False`, when the
        best beam is not better than the worst of them as it stands; "never", when it could not become better at any length.
      beam_groups: the beams are searched in so many groups of one size, which say different things (diverse beam search,
        Vijayakumar et al. 2016); 1 is plain beam search.
      diversity_penalty: with groups: what a token loses for each beam of an earlier group that has just said it; `None` is
        0.5 (the paper's section 5 has 0.2 to 0.8).

    Raises:
      ValueError: one of them is something else, or they do not go together.
    """

    beams: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    beam_groups: int = 1
    diversity_penalty: float | None = None

    def __post_init__(self) -> None:
        as_whole_number("beams", self.beams, least=1, most=MOST)
        as_number("length_penalty", self.length_penalty, least=-100.0, below=100.0)
        stopping = self.early_stopping
        if not isinstance(stopping, bool | np.bool_ | str) or stopping not in EARLY_STOPPING:
            raise ValueError(f"early_stopping is {shown(stopping)}; give True, False or 'never'")
        groups = as_whole_number("beam_groups", self.beam_groups, least=1, most=MOST)
        if self.beams % groups:
            raise ValueError(f"beams is {self.beams} and beam_groups {groups}; give a number of groups that divides it")
        if self.diversity_penalty is not None:
            penalty = as_number("diversity_penalty", self.diversity_penalty, below=1e4)
            if groups == 1 or penalty == 0:
                why = "goes with beam_groups over 1" if groups == 1 else "is 0: all groups would find the same"
                raise ValueError(f"diversity_penalty {why}; leave it out, or give both, such as 2 and 0.5")

    @property
    def diversity(self) -> float:
        """The penalty as a number."""
        return DIVERSITY if self.diversity_penalty is None else float(self.diversity_penalty)


class BeamWords(TypedDict, total=False):
    """What may be said of a search beside its `beams`; as in `BeamOptions`."""

    length_penalty: float
    early_stopping: bool | str
    beam_groups: int
    diversity_penalty: float | None


def beam_options(beams: Any, words: BeamWords | Mapping[str, Any]) -> BeamOptions | None:
    """How beams are searched; `None` without beams.

    Args:
      beams: how many, or the options themselves.
      words: as in `BeamWords`.

    Raises:
      TypeError: a word that is none of them.
      ValueError: one of them without beams, or out of range.
    """
    known = ", ".join(BeamWords.__annotations__)
    for name in words:
        if name not in BeamWords.__annotations__:
            raise TypeError(f"{name} is no argument; with beams there are {known}")
        if beams is None:
            raise ValueError(f"{name} goes with beams; give both, such as beams=4, or leave it out")
    if beams is None:
        return None
    if isinstance(beams, BeamOptions):
        return dataclasses.replace(beams, **words)
    return BeamOptions(beams, **words)


def change_beams(options: BeamOptions | None, changes: Mapping[str, Any]) -> BeamOptions | None:
    """Options with some of them changed; `beams` among the changes begins a search, or with `None` ends it."""
    words = dict(changes)
    before = {} if options is None else dataclasses.asdict(options)
    beams = words.pop("beams", before.pop("beams", None))
    return beam_options(beams, words if beams is None else before | words)


def check_room(options: BeamOptions, vocab_size: int) -> None:
    """Whether a vocabulary has the two continuations a beam that a step looks at.

    Raises:
      ValueError: it has not.
    """
    if 2 * options.beams > vocab_size:
        most = vocab_size // 2
        raise ValueError(f"beams is {options.beams}; a vocabulary of {vocab_size} has room for {most}")


def describe_beams(options: BeamOptions) -> str:
    """What is not as it is by default, for a person: `4 beams, length_penalty 0.8`."""
    said = [f"{options.beams} beams"]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name != "beams" and value != field.default:
            said.append(f"{field.name} {value}" if isinstance(value, str | bool) else f"{field.name} {value:g}")
    return ", ".join(said)
