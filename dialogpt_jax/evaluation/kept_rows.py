"""Batches of work flow in; their rows come out, and stand in a file as they come, from which an interrupted run goes on.

batches ─file.read→ those that are not in it whole ─make→ rows, a batch or several at a time ─file.line→ file, again whole
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dialogpt_jax.errors import naming
from dialogpt_jax.whole_writes import only_writer

Row = TypeVar("Row", bound=tuple[Any, ...])  # the first of its values is its number


class RepliesFileError(ValueError):
    """A file of replies that cannot be gone on with; the message names file and line."""


class KeptFile(Protocol[Row]):
    """A file of rows, each a line, behind a head of one line or none."""

    @property
    def path(self) -> str | os.PathLike[str]: ...

    def head(self) -> str: ...

    def line(self, row: Row, /) -> str: ...

    def read(self) -> Mapping[int, Row]:
        """The rows by their numbers; none where there is no file, or a part of a first line."""
        ...


def make_rows(
    file: KeptFile[Row] | None,
    batches: Sequence[Sequence[int]],
    make: Callable[[list[Sequence[int]]], Iterator[Sequence[Row]]],
    progress: Callable[[Sequence[Row], int], None] | None = None,
) -> list[Row]:
    """All rows in the order of their numbers: those that the file holds already, and the others.

    While it runs, lines stand in the order in which they came; when it is done, in that of their numbers.

    Args:
      file: where rows are kept; none by default.
      batches: the numbers of the rows that are made together.
      make: gives the rows of some batches as they come, whole batches at a time.
      progress: called with the rows that came new and the number that is still to come.

    Raises:
      ValueError: a file of another run, or broken (`RepliesFileError`); another process is writing to it (`BusyError`).
    """
    with contextlib.nullcontext() if file is None else only_writer(_plain_file(file.path)):
        found = {} if file is None else file.read()
        # Only whole batches count: a batch that is made again in part could round differently.
        whole = [all(i in found for i in batch) for batch in batches]
        done = {i: found[i] for batch, kept in zip(batches, whole, strict=True) if kept for i in batch}
        left = [batch for batch, kept in zip(batches, whole, strict=True) if not kept]
        if file is not None:
            save_rows(file, done.values())
        missing = sum(map(len, left))
        with contextlib.nullcontext() if file is None else _append_to(file) as opened:
            for rows in make(left):
                done.update((row[0], row) for row in rows)
                missing -= len(rows)
                if file is not None and opened is not None:
                    with naming(file.path):
                        opened.writelines(map(file.line, rows))
                        opened.flush()
                if progress is not None:
                    progress(rows, missing)
        if file is not None:
            save_rows(file, done.values())
    return [done[i] for i in sorted(done)]


def save_rows(file: KeptFile[Row], rows: Iterable[Row]) -> None:
    """Writes the rows in the order of their numbers, all at once: killed, the old file stays."""
    path = Path(file.path).resolve()  # of a link, what it leads to is replaced
    part = path.with_name(path.name + ".part")
    with naming(file.path), part.open("w", encoding="utf-8", newline="\n") as opened:
        opened.write(file.head())
        opened.writelines(file.line(row) for row in sorted(rows, key=lambda row: row[0]))
    os.replace(part, path)


def _append_to(file: KeptFile[Any]):
    return Path(file.path).open("a", encoding="utf-8", newline="\n")


def _plain_file(out: str | os.PathLike[str]) -> Path:
    if Path(out).exists() and not Path(out).is_file():
        raise RepliesFileError(f"{out}: no plain file, and replies are sorted into one in the end; name another place")
    return Path(out)
