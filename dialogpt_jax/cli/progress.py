"""How far a long command is: counts in, a moving bar on a terminal out, or a line now and then where stderr is a file."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from dialogpt_jax.errors import counted

SECONDS = 15.0  # between two lines


@contextlib.contextmanager
def show_progress(what: str, smaller: str) -> Iterator[Callable[[int, int, int], None]]:
    """A function of what came new, what is left, and how many smaller things the new ones held; all on stderr.

    At the end one line says what was made in which time.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        with _shown(what, smaller, lambda *_: None, every=SECONDS) as progress:
            yield progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None, rate="")

        def move(done: int, total: int, rate: str) -> None:
            bars.update(task, completed=done, total=total, rate=rate)

        with _shown(what, smaller, move, every=None) as progress:
            yield progress


@contextlib.contextmanager
def _shown(what: str, smaller: str, move: Callable[[int, int, str], None], *, every: float | None):
    began = told = time.monotonic()
    done = held = 0

    def progress(new: int, left: int, inside: int) -> None:
        nonlocal done, held, told
        done, held = done + new, held + inside
        now = time.monotonic()
        rate = f"{held / max(now - began, 1e-9):,.0f} {smaller}/s"
        move(done, done + left, rate)
        if every is not None and left and now - told >= every:
            told = now
            minutes = left * (now - began) / max(done, 1) / 60
            print(f"{done:,} of {done + left:,} {what}, {rate}, {minutes:,.0f} min left", file=sys.stderr, flush=True)

    try:
        yield progress
    finally:
        spent = time.monotonic() - began
        if done:
            rate = f"{held / max(spent, 1e-9):,.0f} {smaller}/s"
            print(
                f"{counted(done, what)}, {counted(held, smaller)} in {spent:.1f} s: {rate}", file=sys.stderr, flush=True
            )
