"""Replies with the reasons for their order, as values that show themselves: on lines, as a table, as JSON, as a plot."""

import dataclasses
import html
import os
from collections.abc import Iterable
from typing import Any

from dialogpt_jax.arguments import as_path
from dialogpt_jax.ranking.guards import NO_REPLY, gravity
from dialogpt_jax.replies.candidates import Candidate, on_one_line

COLUMNS = ("score", "forward", "backward", "pmi", "ranker", "sense")
_MOST = 32  # replies that are shown


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Ranked(Candidate):
    """A candidate with what is known of it.

    Attributes:
      backward: log P(source | reply) by the backward model; `None` where there is none.
      backward_mean: the same a token of the source.
      ranker: what a ranker says of it, 0 to 1; `None` where there is none.
      repetition: the share of its pairs of words that came before in it.
      number: its place among the proposed; number 0 is what the same sampling gives without a rank.
      flags: what a guard has against it.
      score: by the rule, the higher the better.
      why: in a few words, why it is given, or why not.
    """

    backward: float | None
    ranker: float | None
    repetition: float
    number: int
    flags: tuple[str, ...]
    score: float
    why: str
    backward_mean: float | None = None

    def __repr__(self) -> str:
        return f"Ranked({self.score:.2f} {on_one_line(self.text)}: {self.why})"

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it; a number that is none is `None`."""
        found = dataclasses.asdict(self)
        found |= {name: list(found[name]) for name in ("pieces", "flags")}
        found |= {name: found[name].tolist() for name in ("tokens", "logprobs")}
        return {name: _finite(value) for name, value in found.items()}


class Ranking(list[Ranked]):
    """The hypotheses of one dialogue, the one that is given first.

    Attributes:
      turns: the dialogue.
      rule: by which they are ordered.
      reply: what is said: the first one's text, or where even that may not be, the bot's default reply.

    Example:
      >>> ranking = bot.rank("Any plans for today?", "mmi", seed=1)
      >>> ranking[0].text == bot.reply("Any plans for today?", rank="mmi", seed=1)
      True
      >>> ranking[0].why
      '...'
    """

    def __init__(self, hypotheses: Iterable[Ranked], turns: list[str], rule: str, default: str):
        super().__init__(hypotheses)
        self.turns, self.rule = turns, rule
        self.reply = default if not self or gravity(self[0].flags) >= NO_REPLY else self[0].text

    def __repr__(self) -> str:
        more = [f"… {len(self) - _MOST} more"] if len(self) > _MOST else []
        lines = [f"{h.score:9.2f}  {on_one_line(h.text)}: {h.why}" for h in self[:_MOST]]
        return "\n".join([f"Ranking({self._title()})", *lines, *more])

    def _title(self) -> str:
        return f"{len(self)} {'hypothesis' if len(self) == 1 else 'hypotheses'} by {self.rule}"

    def _repr_html_(self) -> str:
        shown = [name for name in COLUMNS if any(column_of(h, name) is not None for h in self)]
        head = "".join(f"<th>{name}</th>" for name in ["", "reply", *shown, "tokens", "why"])
        rows = "".join(
            f"<tr><td>{place}</td><td style='text-align:left'>{html.escape(h.text)}</td>"
            + "".join(f"<td>{figure(column_of(h, name))}</td>" for name in shown)
            + f"<td>{len(h.tokens)}</td><td style='text-align:left'>{html.escape(h.why)}</td></tr>"
            for place, h in enumerate(self[:_MOST], start=1)
        )
        return f"<table><tr>{head}</tr>{rows}</table>"

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return {"turns": self.turns, "rule": self.rule, "reply": self.reply, "hypotheses": [h.to_dict() for h in self]}

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Forward against backward log-probability, or against pmi, each with its place in the order.

        Args:
          path: writes the picture there; without it, the matplotlib figure is returned.
        """
        from matplotlib.figure import Figure

        name = "backward" if any(h.backward is not None for h in self) else "pmi"
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.subplots()
        numbered = list(enumerate(self, start=1))
        groups = [
            ("given", numbered[:1], "tab:green", "*", 180),
            ("not flagged", [(n, h) for n, h in numbered[1:] if not h.flags], "tab:blue", "o", 40),
            ("flagged", [(n, h) for n, h in numbered[1:] if h.flags], "tab:gray", "x", 40),
        ]
        for label, members, color, marker, size in groups:
            points = [(h.logprob, y, n) for n, h in members if (y := column_of(h, name)) is not None]
            axes.scatter(
                [x for x, _, _ in points], [y for _, y, _ in points], s=size, c=color, marker=marker, label=label
            )
            for x, y, number in points:  # and no texts: they overlap, and a font lacks half of their characters
                axes.annotate(str(number), (x, y), fontsize=8, xytext=(5, 3), textcoords="offset points")
        axes.set_xlabel("log P(reply | context)")
        axes.set_ylabel("log P(source | reply)" if name == "backward" else "log P(reply | context) − log P(reply)")
        axes.set_title(self._title())
        axes.legend()
        if path is None:
            return figure
        figure.savefig(as_path("path", path), dpi=150)
        return None


def column_of(hypothesis: Ranked, name: str) -> float | None:
    """One of the `COLUMNS` of a hypothesis; `None` where it is not known."""
    return hypothesis.logprob if name == "forward" else getattr(hypothesis, name)


def figure(value: float | None) -> str:
    """A number as a table has it."""
    return "" if value is None else f"{value:.2f}"


def _finite(value: Any) -> Any:
    """JSON has no infinities."""
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return [_finite(each) for each in value] if isinstance(value, list) else value
