"""A ranking as a person reads it on a terminal: the hypotheses in, a table of rich out, the winner first.

    wide      score  forward  backward   pmi  tokens  reply, and why          narrow    1  Fine, thanks.
           1  -9.31   -12.04     -9.31  2.10       5  Fine, thanks.                        score -9.31, forward -12.04 …
                                                      given for a score of …               given for a score of …

The winner's tokens have the colours of their log-probabilities, where there are colours.
"""

import sys

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from dialogpt_jax.errors import counted, escape_controls
from dialogpt_jax.ranking.report import COLUMNS, Ranked, Ranking, column_of, figure
from dialogpt_jax.replies.token_colors import LEVELS, spans_of

PIPE = 160  # columns, where the output is no terminal
NARROW = 30  # columns of a terminal that must be left for the text beside the figures


def ranking_table(ranking: Ranking, width: int, *, colors: bool) -> Group:
    """The table of a ranking, for `rich.print` on a terminal that is so wide.

    Args:
      ranking: of at least one hypothesis.
      width: of the terminal.
      colors: whether the winner's tokens are coloured, and the colours explained.
    """
    shown = [name for name in COLUMNS if any(column_of(h, name) is not None for h in ranking)]
    figures = [[figure(column_of(h, name)) for name in shown] + [str(len(h.tokens))] for h in ranking]
    names = [*shown, "tokens"]
    taken = 4 + sum(2 + max(map(len, column)) for column in zip(names, *figures, strict=True))
    wide = width - taken >= NARROW
    table = Table(box=None, pad_edge=False, show_header=wide, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    for name in names if wide else ():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reply, and why", overflow="fold", ratio=1)
    for place, (hypothesis, values) in enumerate(zip(ranking, figures, strict=True), start=1):
        text = _reply(hypothesis, colored=colors and place == 1)
        if not wide:
            text.append("\n" + ", ".join(f"{n} {v}" for n, v in zip(names, values, strict=True) if v), style="dim")
        text.append("\n" + _words(hypothesis), style="dim")
        table.add_row(str(place), *(values if wide else ()), text)
    title = Text(f"{counted(len(ranking), 'hypotheses')} by {ranking.rule}", style="bold")
    return Group(title, table, _figures_mean(shown), *([_legend()] if colors and ranking[0].pieces else []))


def print_ranking(ranking: Ranking, console: Console | None = None) -> None:
    """Prints the table on standard output, or another console, as wide as it is; coloured where that has colours."""
    if console is None:  # a pipe has no width
        console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE)
    colors = console.is_terminal and not console.no_color and console.color_system is not None
    console.print(ranking_table(ranking, console.width, colors=colors))


def _reply(hypothesis: Ranked, *, colored: bool) -> Text:
    if not colored or not hypothesis.pieces:
        return Text(escape_controls(hypothesis.text, keep=""))
    return Text.assemble(
        *((escape_controls(span.text, keep=""), span.level.on_terminal) for span in spans_of(hypothesis))
    )


def _words(hypothesis: Ranked) -> str:
    """Why, with the flags that this does not name already."""
    unsaid = [flag for flag in hypothesis.flags if flag not in hypothesis.why]
    return escape_controls(f"{', '.join(unsaid)}: {hypothesis.why}" if unsaid else hypothesis.why, keep="")


def _figures_mean(shown: list[str]) -> Text:
    meanings = {
        "forward": "log P(reply | what was said)",
        "backward": "log P(what was said | reply)",
        "pmi": "log P(reply | what was said) − log P(reply)",
        "ranker": "the ranker's, 0 to 1",
        "sense": "the sense head's, 0 to 1",
    }
    return Text("; ".join(f"{name}: {meanings[name]}" for name in shown if name in meanings), style="dim")


def _legend() -> Text:
    words = [(f"p ≥ {level.least:g}  " if level.least else f"p < {LEVELS[-2].least:g}", level) for level in LEVELS]
    return Text.assemble("the winner's tokens: ", *((word, level.on_terminal) for word, level in words))
