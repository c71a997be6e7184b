"""Conversations of bots flow in; what becomes of their replies turn by turn comes out: a table, values or a picture.

At each turn, over all conversations that have it: `repeating`, the share of replies that hold a 4-gram of words twice;
`said before`, the share that are, word for word, an earlier turn of their conversation; Dist-1 and Dist-2 of these replies
together; `length` in words; `ended`, the share that ended by themselves; `bits per byte`, −log2 p of the replies' tokens
under the model that said them, whatever warped them, over their UTF-8 bytes: what it found likely itself. It falls where
a bot goes round in circles.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dialogpt_jax.chat.selfchat import SPEAKERS, Conversation
from dialogpt_jax.evaluation import diversity
from dialogpt_jax.evaluation.intervals import Estimate, estimates, interval
from dialogpt_jax.evaluation.measures import RESAMPLES
from dialogpt_jax.whole_writes import whole_file

DIST = 2
SHARES = ("repeating", "said before", "ended")
NAMES = ("repeating", "said before", "Dist-1", "Dist-2", "length", "ended", "bits per byte")


class TurnMeasures(NamedTuple):
    """The measures of one turn.

    Attributes:
      turn: its number, from 1; the opening is not counted.
      speaker: "bot" or "other".
      replies: how many conversations have it.
      found: the measures, in the order of `NAMES`.
    """

    turn: int
    speaker: str
    replies: int
    found: list[Estimate]


def measure_turns(
    conversations: Sequence[Conversation], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[TurnMeasures]:
    """The measures of each turn; intervals draw, or leave out, whole conversations.

    Args:
      conversations: of `self_chat`.
      resamples: of the bootstrap; 0 leaves its intervals out.
      seed: of the bootstrap.
    """
    longest = max((len(talk.answers) for talk in conversations), default=0)
    return [
        _measure(turn, [talk for talk in conversations if len(talk.answers) > turn], resamples, seed)
        for turn in range(longest)
    ]


def _measure(turn: int, talks: Sequence[Conversation], resamples: int, seed: int) -> TurnMeasures:
    answers = [talk.answers[turn] for talk in talks]
    lines = [answer.text.split() for answer in answers]
    earlier = [[text.split() for text in talk.turns[: len(talk.opening) + turn]] for talk in talks]
    columns_BN = np.stack(
        [
            np.ones(len(lines)),
            diversity.repetition(lines) > 0,
            [line in before for line, before in zip(lines, earlier, strict=True)],
            diversity.lengths(lines),
            [answer.finished for answer in answers],
            [-answer.logprob / np.log(2) for answer in answers],
            [len(answer.text.encode()) for answer in answers],
        ],
        axis=-1,
    ).astype(np.float64)

    def score(sums: np.ndarray) -> np.ndarray:
        ones, *shares, bits, num_bytes = np.moveaxis(sums, -1, 0)
        return np.stack([*(share / ones for share in shares), bits / num_bytes], axis=-1)

    names = ["repeating", "said before", "length", "ended", "bits per byte"]
    found = {one.name: one for one in estimates(names, score, (columns_BN,), resamples=resamples, seed=seed)}
    (_, values_N), (_, left_out_BN) = (f(lines, orders=DIST) for f in (diversity.diversity, diversity.leave_one_out))
    for n in range(DIST):
        found[f"Dist-{n + 1}"] = Estimate(f"Dist-{n + 1}", float(values_N[n]), "jackknife", left_out_BN[:, n])
    return TurnMeasures(turn + 1, SPEAKERS[turn % 2], len(talks), [found[name] for name in NAMES])


def as_text(measured: Sequence[TurnMeasures]) -> str:
    """A table for a terminal, a turn a row, without the intervals."""
    rows = [["turn", "said by", "replies", *NAMES]]
    for one in measured:
        rows.append([f"{one.turn}", one.speaker, f"{one.replies:,}", *map(_cell, one.found)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
    return "\n".join([head, "-" * len(head), *lines])


def as_values(measured: Sequence[TurnMeasures]) -> list[dict[str, Any]]:
    """The same in full precision with the intervals, for JSON; what is not known is `None`."""
    return [
        {"turn": one.turn, "speaker": one.speaker, "replies": one.replies}
        | {estimate.name: _values(estimate) for estimate in one.found}
        for one in measured
    ]


def save_plot(
    measured: Sequence[TurnMeasures], path: Path, *, title: str, names: Sequence[str] = ("bot", "other")
) -> None:
    """The measures by turn as a picture, each with its 95 % interval.

    Args:
      measured: of `measure_turns`.
      path: of the PNG.
      title: what stands above it.
      names: of the two speakers, or one where both are the same.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    panels = (
        ("share of the replies", SHARES),
        ("different words and pairs of words", ("Dist-1", "Dist-2")),
        ("words in a reply", ("length",)),
        ("bits per byte, under the model that says it", ("bits per byte",)),
    )
    for axes, (label, of_panel) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for number, name in enumerate(of_panel):
            _draw(axes, measured, name, color=f"C{number}", two=len(names) > 1)
        axes.set(title=label, xlabel="turn")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        if len(of_panel) > 1:
            axes.set_ylim(-0.03, 1.04)
            axes.legend(frameon=False)
    who = [f"filled: {names[0]}", f"hollow: {names[1]}"] if len(names) > 1 else list(names)
    figure.suptitle("\n".join([title, *who]), fontsize="medium", parse_math=False)
    with whole_file(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None})


def _draw(axes: Any, measured: Sequence[TurnMeasures], name: str, *, color: str, two: bool) -> None:
    found = [one.found[NAMES.index(name)] for one in measured]
    turns, values = [one.turn for one in measured], [one.value for one in found]
    low, high = zip(*map(interval, found), strict=True)
    axes.fill_between(turns, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(turns, values, color=color, label=name)
    for which in range(2):
        face = "white" if which and two else color
        axes.plot(turns[which::2], values[which::2], "o", markerfacecolor=face, color=color)


def _cell(estimate: Estimate) -> str:
    if estimate.name in SHARES:
        return f"{estimate.value:.1%}"
    return f"{estimate.value:.1f}" if estimate.name == "length" else f"{estimate.value:.3f}".replace("nan", "–")


def _values(estimate: Estimate) -> dict[str, float | None]:
    low, high = interval(estimate)
    numbers = {"value": estimate.value, "low": low, "high": high}
    return {name: None if np.isnan(value) else float(value) for name, value in numbers.items()}
