"""Files of dialogues to dialogues: JSON, chat messages, tables or Microsoft's TSV, plain or gzipped, in; turns out.

`dialogue_line.py` has the forms. Each line decides its own JSON form; a `.json` may also be one list of such dialogues, and
then a "line" below is a place in the list. Blank lines are skipped; the others keep their numbers. Two readers:
`read_dialogues` is strict and stops at the first line that is not a dialogue; `read_lines` and `parse_line` go on, and say
of each line that they drop why. A broken gzip stops both.
"""

import gzip
import itertools
import json
import os
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dialogpt_jax.data.dialogue_line import (
    JSON,
    JSON_LIST,
    TSV,
    WEIGHTED_TSV,
    Form,
    NoDialogueError,
    columns_of,
    is_number,
    parse_line,
    split_tsv,
)
from dialogpt_jax.data.dialogue_value import DataError, Dialogue, Dropped
from dialogpt_jax.errors import counted
from dialogpt_jax.text.dialogue import ASSISTANT

__all__ = [
    "DataError",
    "Dialogue",
    "Dropped",
    "form_of",
    "held_out",
    "lenient_dialogues",
    "parse_line",
    "read_dialogues",
    "read_lines",
]

# What one line may cost in memory while it is read. A dialogue of 8 MiB has over a million words.
MAX_LINE_BYTES = 8 * 1024 * 1024
_SNIFFED_LINES = 100


def read_dialogues(path: str | os.PathLike[str]) -> Iterator[list[str]]:
    """The turns of each line of a file, in any of the forms.

    Raises:
      OSError: it cannot be read.
      DataError: a line is no dialogue, there is no line, or a gzip file is broken.
    """
    number = 0
    for number, line in enumerate(lenient_dialogues(path), start=1):  # noqa: B007
        if isinstance(line, Dropped):
            raise DataError(f"{path}, {place_in(path)} {line.line}: {line.reason}")
        yield list(line.turns)
    if not number:
        raise DataError(f"{path}, line 1: the file is empty; expected a dialogue a line")


def held_out(path: str | os.PathLike[str], most: int | None = None) -> tuple[list[list[str]], str]:
    """The turns of the first `most` dialogues of a file, and a line that says what was dropped before ("": nothing).

    It reads what training reads, and drops what training drops.

    Raises:
      OSError: it cannot be read.
      DataError: there is no dialogue in it, or a gzip file is broken.
    """
    dialogues: list[list[str]] = []
    dropped: list[Dropped] = []
    for line in lenient_dialogues(path):
        if isinstance(line, Dropped):
            dropped.append(line)
        else:
            dialogues.append(list(line.turns))
            if len(dialogues) == most:
                break
    first = f"{place_in(path)} {dropped[0].line}: {dropped[0].reason}" if dropped else "the file is empty"
    if not dialogues:
        raise NoDialogueError(f"{path}: none of {counted(len(dropped), 'lines')} is a dialogue; {first}")
    lines = len(dropped) + len(dialogues)
    return (
        dialogues,
        f"{path}: dropped {len(dropped):,} of {counted(lines, 'lines')}, the first {first}" if dropped else "",
    )


def dialogues_to_reply_to(path: str | os.PathLike[str]) -> tuple[list[list[str]], str]:
    """The turns of every line of a file, of one turn too, in their order, so that reply i is to line i; and a line that
    says how many of them end with what the assistant itself said ("": none).

    Raises:
      OSError: it cannot be read.
      DataError: a line is no dialogue, there is none, or a gzip file is broken.
    """
    found, own = [], []
    for number, line in _numbered_dialogues(path, least=1):
        if isinstance(line, Dropped):
            raise DataError(
                f"{path}, {place_in(path)} {number}: {line.reason}; mend it, or leave it out; nothing was replied to"
            )
        found.append(list(line.turns))
        if line.speakers and line.speakers[-1] == ASSISTANT:
            own.append(number)
    if not found:
        raise NoDialogueError(f"{path}: the file is empty")
    if not own:
        return found, ""
    many = f"{len(own):,} of {len(found):,} dialogues end" if len(own) > 1 else f"1 of {len(found):,} dialogues ends"
    first = f"{'the first ' * (len(own) > 1)}on {place_in(path)} {own[0]}"
    told = (
        f"{path}: {many} with the assistant's own message, {first}; the reply is to that message as if a user said it"
    )
    return found, f"{told}: leave it out to have it replaced"


def lenient_dialogues(path: str | os.PathLike[str], *, least: int = 2) -> Iterator[Dialogue | Dropped]:
    """Each line of a file, in any of the forms.

    Raises:
      OSError: the file cannot be read.
      DataError: the columns of a table do not say which are the turns, or a gzip file is broken.
    """
    return (line for _, line in _numbered_dialogues(path, least=least))


def _numbered_dialogues(path: str | os.PathLike[str], *, least: int) -> Iterator[tuple[int, Dialogue | Dropped]]:
    form = form_of(path, least=least)
    with Path(path).open("rb") as raw:
        for line in read_lines(raw, path, form):
            yield (
                (line.line, line) if isinstance(line, Dropped) else (line[0], parse_line(*line, form=form, least=least))
            )


def form_of(path: str | os.PathLike[str], *, least: int = 2) -> Form:
    """The form of a file, by its name and its first lines.

    A turn may begin with a number by chance ("2 of them ."), so a `.tsv` has weights if in most of its first 100 lines
    every turn begins with a number.

    Raises:
      OSError: the file cannot be read.
      DataError: the columns of a table do not say which are the turns, or a gzip file is broken.
    """
    suffixes = Path(path).suffixes[-2:]
    kind = next((kind for kind in (".tsv", ".csv", ".json") if kind in suffixes), None)
    if kind is None:
        return JSON
    with Path(path).open("rb") as raw:
        lines = itertools.islice(read_lines(raw, path, TSV), _SNIFFED_LINES)
        whole = (line[1] for line in lines if not isinstance(line, Dropped))
        texts = (line.decode("utf-8", "replace").removeprefix("\ufeff") for line in whole)
        if kind == ".csv":
            return _table(path, next(texts, ""), least)
        if kind == ".json":
            return JSON_LIST if _begins_a_list(next((text for text in texts if text.strip()), "")) else JSON
        dialogues = [split_tsv(text) for text in texts if text.count("\t") == 1]
    weighted = sum(all(is_number(turn.split(maxsplit=1)[:1]) for turn in turns) for turns in dialogues)
    return WEIGHTED_TSV if 2 * weighted > len(dialogues) else TSV


def place_in(path: str | os.PathLike[str]) -> str:
    """What a number of `read_lines` counts in this file: an `item` of one list, which may go over lines, or a `line`."""
    return "item" if ".json" in Path(path).suffixes[-2:] and form_of(path) == JSON_LIST else "line"


def _table(path: str | os.PathLike[str], header: str, least: int) -> Form:
    if not header.strip():
        raise NoDialogueError(f"{path}, line 1: no names of columns")
    delimiter = ";" if header.count(";") > header.count(",") else ","
    names = [name.strip().strip('"') for name in header.strip().split(delimiter)]
    try:
        return Form("CSV", columns_of(names, least), delimiter)
    except NoDialogueError as error:
        raise NoDialogueError(f"{path}: {error.what}") from None


def _begins_a_list(line: str) -> bool:
    """Whether a first line begins a list of dialogues, and is not one itself: `["Hi!", "Hello."]`, or its messages."""
    if not line.lstrip().startswith("["):
        return False
    try:
        items = json.loads(line)
    except (ValueError, RecursionError):
        return True  # it goes on
    first = items[0] if isinstance(items, list) and items else None
    return isinstance(first, list) or (isinstance(first, dict) and not {"text", "content", "value"} & first.keys())


def read_lines(raw: BinaryIO, path: str | os.PathLike[str], form: Form = JSON) -> Iterator[tuple[int, bytes] | Dropped]:
    """The numbered lines of an open file, unzipped if its name ends in `.gz`; a line over the limit is `Dropped`.

    A row of a table may have several lines, within quotes; the names of its columns are left out. Memory is bounded by
    `MAX_LINE_BYTES`, whatever a line's length, but for a file that is one list.

    Raises:
      DataError: the file is no gzip, or a broken one: what would be missing cannot be told, so nothing may be made of it.
    """
    text: Any = gzip.GzipFile(fileobj=raw) if Path(path).suffix == ".gz" else raw
    number = 0
    try:
        for line in _items(text) if form == JSON_LIST else _lines(text, form):
            number = line[0]
            yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        broken = f"{path}, line {number + 1}: the gzip file is broken from here ({error})"
        raise DataError(f"{broken}; make or download it again") from None


def _lines(text: BinaryIO, form: Form) -> Iterator[tuple[int, bytes] | Dropped]:
    is_header = bool(form.columns)
    for number in itertools.count(1):
        line = _read_line(text)
        size = len(line)
        while size > MAX_LINE_BYTES and not line.endswith(b"\n"):  # skip the rest of an overlong line
            line = text.readline(MAX_LINE_BYTES)
            size += len(line)
            if not line:
                break
        while form.columns and line.count(b'"') % 2 and size <= MAX_LINE_BYTES:  # a quoted cell goes on
            more = _read_line(text)
            if not more:
                break
            line += more
            size = len(line)
        if not size:
            return
        if size > MAX_LINE_BYTES:
            yield Dropped(number, f"the line has {size:,} bytes; the most is {MAX_LINE_BYTES:,}", "line too long")
        elif not line.removeprefix(BOM_UTF8).strip():
            continue
        elif not is_header:
            yield number, line
        is_header = False


def _read_line(text: BinaryIO) -> bytes:
    return text.readline(MAX_LINE_BYTES + 1)


def _items(text: BinaryIO) -> Iterator[tuple[int, bytes] | Dropped]:
    """The items of a file that is one list, each as a line."""
    try:
        items = json.loads(text.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        yield Dropped(1, f"not JSON ({error})", "not JSON")
        return
    for number, item in enumerate(items, start=1):
        yield number, json.dumps(item).encode()
