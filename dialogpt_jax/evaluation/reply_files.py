"""Text files flow in; replies and the references of each come out, line by line, or one error that names file and line.

Three layouts, told apart by the first line:

    replies, one a line                                      hypotheses; references, in one file or several
    key ⇥ … ⇥ reply                                          hypotheses with keys, such as DSTC-7's seven columns
    key ⇥ 12|reference ⇥ 7|reference ⇥ …                     all references of a key, with or without their scores

The last is that of the 6k test (the key is the context) and of DSTC-7. One of its references is the human reply, which
the published human row scores; it is taken out for every system, so that all are measured against the same texts.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dialogpt_jax.errors import counted

_SCORE = re.compile(r"^-?[0-9]+\|")


class TextFileError(ValueError):
    """A file that cannot be read as replies or references; the message names file and line."""


class Lines(NamedTuple):
    """The texts of a file, with their keys where it has them: `texts[i]` stands on line i + 1."""

    path: str
    keys: list[str] | None
    texts: list[str]


class References(NamedTuple):
    """The references of each line, at least one; `texts[i]` are those of line i + 1 of each path."""

    paths: tuple[str, ...]
    keys: list[str] | None
    texts: list[list[str]]


def read_texts(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a UTF-8 file without their ends (`\\n`, `\\r\\n`); no other character ends a line.

    Raises:
      OSError: no such file.
      TextFileError: it is empty, or a line is not UTF-8.
    """
    data = Path(path).read_bytes()
    if not data:
        raise TextFileError(f"{path}, line 1: the file is empty")
    lines = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n"), start=1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            wrong = line[error.start]
            raise TextFileError(
                f"{path}, line {number}: byte {error.start + 1} (0x{wrong:02x}) is not UTF-8; convert the file to UTF-8"
            ) from None
    return lines


def read_hypotheses(path: str | os.PathLike[str]) -> Lines:
    """Replies, one a line, or `key ⇥ … ⇥ reply`; an empty reply is a reply."""
    lines = read_texts(path)
    if "\t" not in lines[0]:
        for number, line in enumerate(lines, start=1):
            if "\t" in line:
                raise TextFileError(f"{path}, line {number}: a tab, but line 1 has none; either all lines have a key")
        return Lines(str(path), None, lines)
    cells = [line.split("\t") for line in lines]
    for number, cell in enumerate(cells, start=1):
        if len(cell) < 2:
            raise TextFileError(f"{path}, line {number}: no tab, but line 1 has one; the lines are `key ⇥ … ⇥ reply`")
    return Lines(str(path), [cell[0] for cell in cells], [cell[-1] for cell in cells])


def read_references(
    paths: Sequence[str | os.PathLike[str]], *, human: int | None = -1, sets: int | None = None
) -> References:
    """The references: several files with one a line (an empty line is none), or one file that holds all of each line.

    Args:
      paths: several files of as many lines each, or one.
      human: in a file of all references, the human reply's place among them, to be taken out: −1 the last (6k test), 1
        the second (DSTC-7), None where none is. A line without that place keeps all it has.
      sets: exactly so many references a line, by `repeat_references`; None as many as there are.

    Raises:
      OSError, TextFileError: a file is missing or not text, lengths differ, a line is left without a reference.
    """
    columns = [read_texts(path) for path in paths]
    if len(paths) == 1 and "\t" in columns[0][0]:
        keys, texts = [], []
        for number, line in enumerate(columns[0], start=1):
            key, *cells = line.split("\t")
            taken = [_SCORE.sub("", cell) for cell in cells]
            place = None if human is None or not -len(taken) <= human < len(taken) else human % len(taken)
            if not any(cell.strip() for i, cell in enumerate(taken) if i != place):
                why = (
                    "no reference behind the key"
                    if not taken
                    else f"no reference but the human reply ({cells[0][:40]})"
                )
                raise TextFileError(f"{paths[0]}, line {number}: {why}; see --human")
            keys.append(key)
            texts.append(repeat_references(taken, sets, human=place))
        return References((str(paths[0]),), keys, texts)
    for path, lines in zip(paths, columns, strict=True):
        if len(lines) != len(columns[0]):
            raise TextFileError(_unequal(path, len(lines), paths[0], len(columns[0])))
        for number, line in enumerate(lines, start=1):
            if "\t" in line:
                raise TextFileError(f"{path}, line {number}: a tab in a file of one reference a line")
    texts = []
    for number, row in enumerate(zip(*columns, strict=True), start=1):
        there = [text for text in row if text.strip()]
        if not there:
            raise TextFileError(f"{paths[0]}, line {number}: no reference, here or in the other files")
        texts.append(repeat_references(there, sets))
    return References(tuple(str(path) for path in paths), None, texts)


def repeat_references(references: Sequence[str], sets: int | None, *, human: int | None = None) -> list[str]:
    """The references without the human reply; with `sets`, exactly so many, as the DSTC-7 evaluation chooses them.

    That is: the first `sets` of them, starting over where there are fewer; where the human reply would be chosen, the
    one after it is taken instead, and then once more in its own place. So with human = 1 and sets = 5 the references
    a b c d become a c c d a.
    Repeated references change NIST, through the mean length and the information of n-grams, but not BLEU.
    """
    if sets is None:
        return [text for i, text in enumerate(references) if i != human and text.strip()]
    places = [i % len(references) for i in range(sets)]
    return [references[(i + 1) % len(references) if i == human else i] for i in places]


def align(
    hypotheses: Lines, references: References, *, keys: Sequence[str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Each reference line's reply: by key where both have keys, else by line number.

    Args:
      hypotheses: of `read_hypotheses`.
      references: of `read_references`.
      keys: the references to score, by their keys; all by default. Replies to other keys are not scored.

    Returns:
      As many texts as lists of references.

    Raises:
      TextFileError: the files do not fit.
    """
    name = references.paths[0]
    if hypotheses.keys is None or references.keys is None:
        if len(hypotheses.texts) != len(references.texts):
            raise TextFileError(_unequal(hypotheses.path, len(hypotheses.texts), name, len(references.texts)))
        texts = hypotheses.texts
    else:
        replies: dict[str, str] = {}
        for number, (key, text) in enumerate(zip(hypotheses.keys, hypotheses.texts, strict=True), start=1):
            if key in replies:
                raise TextFileError(f"{hypotheses.path}, line {number}: a second reply for the key {key[:60]!r}")
            replies[key] = text
        wanted = None if keys is None else set(keys)
        for number, key in enumerate(references.keys, start=1):
            if key not in replies and (wanted is None or key in wanted):
                raise TextFileError(f"{name}, line {number}: {hypotheses.path} has no reply for the key {key[:60]!r}")
        texts = [replies.get(key, "") for key in references.keys]
    if keys is None:
        return list(texts), references.texts
    if references.keys is None:
        raise TextFileError(f"{name}, line 1: no keys, so there is none to choose")
    there = set(references.keys)
    for number, key in enumerate(keys, start=1):
        if key not in there:
            raise TextFileError(f"key {number} of the list, {key[:60]!r}, is not in {name}")
    wanted = set(keys)
    chosen = [i for i, key in enumerate(references.keys) if key in wanted]
    return [texts[i] for i in chosen], [references.texts[i] for i in chosen]


def _unequal(first: str | os.PathLike[str], num: int, second: str | os.PathLike[str], other: int) -> str:
    """The message for two files of unequal length, at the first line that has no partner."""
    longer = first if num > other else second
    return (
        f"{longer}, line {min(num, other) + 1}: no partner; {first} has {counted(num, 'lines')}, {second} has {other}"
    )
