"""How one of several replies is chosen, as a caller says it: a rule and numbers in, checked options out.

Nothing here imports jax, for the help of a command shows the defaults.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dialogpt_jax.arguments import MOST, as_number, as_whole_number, shown
from dialogpt_jax.decoding.sampling import PAPER, Sampling
from dialogpt_jax.replies.settings import DEFAULT_SAMPLING

SENSE = "sense"
RULES = ("mmi", "pmi", "rpt", "likelihood", SENSE)
LAST, ALL = SOURCES = ("last", "all")
SUM, MEAN = MIXES = ("sum", "mean")

# Of several replies the most sensible is given: they have to differ, and at 0.7 and 1.0 it was the best less often.
SENSE_SAMPLING = dataclasses.replace(DEFAULT_SAMPLING, temperature=0.5)

# turns, texts of the candidates → a number each, the higher the better
RankFunction = Callable[[list[str], list[str]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Rank:
    """How one of several hypotheses is chosen.

    Attributes:
      by: "mmi", what a backward model makes of them (Zhang et al. 2019, section 3.2); "pmi", what the context adds to the
        probability of each (Li et al. 2016); "rpt", what a ranker makes of them (DialogRPT, Gao et al. 2020); "likelihood",
        log-probability a token; "sense", how sensible they are by a head on the model's own cache, which the bundled model
        has (`dg.SenseHead`); or a function of (turns, texts) that gives a number for each text, the higher the better.
      hypotheses: how many are proposed; 16 in the paper.
      backward_weight: λ of "mmi", 0 to 1: λ · log P(source | reply) + (1 − λ) · log P(reply | context). 1 is the paper's,
        which asks for no sense; 0.5 by the marks of forty replies (the backward model's card).
      mix: of what, where λ is less than 1: the "sum" over all tokens, as it is written, or the "mean" of each a token.
        A sum takes the shortest replies, since each token costs (Li et al. 2016, section 4.5, reward length against it).
        With the bundled pair, λ 0.5 and 1,000 contexts, a mean's NIST-4 is five times a sum's (the backward model's card).
      source: what the backward model is asked for: the "last" turn, or "all" of them.
      temperature: 0 takes the best; over 0 draws by softmax(score / temperature).

    Raises:
      ValueError: one of them is something else.

    Example:
      >>> dg.Rank("mmi", backward_weight=1).hypotheses
      16
    """

    by: str | RankFunction = "mmi"
    hypotheses: int = 16
    backward_weight: float = 0.5
    mix: str = SUM
    source: str = LAST
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not callable(self.by) and (not isinstance(self.by, str) or self.by not in RULES):
            raise ValueError(f"rank is by {shown(self.by)}; give {', '.join(RULES)}, or a function of (turns, texts)")
        as_whole_number("hypotheses", self.hypotheses, least=1, most=MOST)
        as_number("backward_weight", self.backward_weight, most=1.0)
        as_number("temperature", self.temperature)
        if not isinstance(self.source, str) or self.source not in SOURCES:
            raise ValueError(f"source is {shown(self.source)}; give 'last' or 'all'")
        if not isinstance(self.mix, str) or self.mix not in MIXES:
            raise ValueError(f"mix is {shown(self.mix)}; give 'sum' or 'mean'")

    @property
    def proposed_by(self) -> Sampling:
        """How the hypotheses are drawn where nobody says so: as in the paper, or for "sense" like a plain reply, warmer."""
        return SENSE_SAMPLING if self.by == SENSE else PAPER

    @property
    def rule(self) -> str:
        """The rule's name; of a function, its own."""
        return self.by if isinstance(self.by, str) else getattr(self.by, "__name__", "function")


# The fields as a chat's settings call them.
SETTINGS = {
    "rank": "by",
    "hypotheses": "hypotheses",
    "backward_weight": "backward_weight",
    "mix": "mix",
    "source": "source",
    "rank_temperature": "temperature",
}


def change_rank(rank: "Rank | None", changes: Mapping[str, Any]) -> "Rank | None":
    """Options with some `SETTINGS` changed; `rank` among the changes begins to rank, or with `None` ends it.

    Raises:
      ValueError: one of the others where nothing is ranked, or out of range.
    """
    fields = {SETTINGS[name]: value for name, value in changes.items()}
    if rank is None and "by" not in fields:
        for name in changes:
            raise ValueError(f"{name} goes with a rank; say rank mmi, too")
        return None
    if fields.get("by", "") is None:
        return None
    return Rank(**fields) if rank is None else dataclasses.replace(rank, **fields)


def describe_rank(rank: "Rank") -> str:
    """For a person: `the best of 16 by mmi`, and what is not as it is by default."""
    said = [f"the best of {rank.hypotheses} by {rank.rule}"]
    for name, field in SETTINGS.items():
        value = getattr(rank, field)
        if field not in ("by", "hypotheses") and value != getattr(Rank, field):
            said.append(f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}")
    return ", ".join(said)


def as_rank(rank: "str | RankFunction | Rank") -> Rank:
    """The options that a caller means by a rule's name, a function, or options.

    Raises:
      ValueError: it is none of them.
    """
    return rank if isinstance(rank, Rank) else Rank(rank)
