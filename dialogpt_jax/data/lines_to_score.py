"""Files of dialogues with replies to score: JSON lines, tables or TSV in; turns and replies, or one error, out.

{"turns": ["Hi!"], "reply": "Hello."}          what `dialogpt reply --data` writes, too
{"turns": ["Hi!"], "replies": ["Hello.", "Bye."]}
{"turns": ["Hi!", "Hello."]}                   the last turn is the reply; so in all forms of `dialogue_line.py`
Hi! ⇥ Hello. ⇥ Any plans? ⇥ No.                a turn a column, the last the reply; also Hi! EOS Hello. EOS … ⇥ No.
"""

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dialogpt_jax.data.dialogue_line import JSON, JSON_LIST, TSV, WEIGHTED_TSV, Form, NoDialogueError
from dialogpt_jax.data.dialogue_value import DataError, Dropped
from dialogpt_jax.data.formats import form_of, parse_line, place_in, read_lines

_HEADER = re.compile(rb"(\xef\xbb\xbf)?((context|turns|source|turn[ _-]?\d+)\t)+(reply|target)\s*", re.IGNORECASE)
_CONTEXTS = ("turns", "messages", "conversations", "prompt", "question", "input", "source")


class LineToScore(NamedTuple):
    """Replies to the turns before them.

    Attributes:
      where: the file and the line, for errors.
      turns: at least one.
      replies: at least one, none of them empty.
    """

    where: str
    turns: list[str]
    replies: list[str]


def read_lines_to_score(path: str | os.PathLike[str], stdin: bytes | None = None) -> tuple[list[LineToScore], bool]:
    """Every line of a file, and whether the file is TSV.

    Args:
      path: of the file.
      stdin: what came on standard input, in the file's place; `path` is then its name in errors.

    Raises:
      OSError: it cannot be read.
      DataError: a line has no reply or no context, there is no line, or a gzip file is broken.
    """
    with Path(path).open("rb") if stdin is None else io.BytesIO(stdin) as raw:
        form = JSON if stdin is not None else form_of(path)
        place = "line" if stdin is not None else place_in(path)
        named_json = stdin is None and any(suffix in (".json", ".jsonl") for suffix in Path(path).suffixes)
        if form == JSON and not named_json and _first_byte(raw, path) not in b"{[":
            form = TSV
        found = [_line(where, line, form) for where, line in _numbered(raw, path, form, place)]
    if not found:
        raise NoDialogueError(f"{path}: the file is empty")
    return found, form in (TSV, WEIGHTED_TSV)


def _first_byte(raw: BinaryIO, path: Any) -> bytes:
    """The first that is no space, of a file that is read from its beginning again."""
    first = next((line[1] for line in read_lines(raw, path) if not isinstance(line, Dropped)), b"{")
    raw.seek(0)
    return first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _numbered(raw: BinaryIO, path: Any, form: Form, place: str) -> Iterator[tuple[str, bytes]]:
    is_first = form in (TSV, WEIGHTED_TSV)
    for line in read_lines(raw, path, form):
        if isinstance(line, Dropped):
            raise DataError(f"{path}, {place} {line.line}: {line.reason}")
        if not (is_first and _HEADER.fullmatch(line[1])):
            yield f"{path}, {place} {line[0]}", line[1]
        is_first = False


def _line(where: str, line: bytes, form: Form) -> LineToScore:
    replies = None
    if form in (TSV, WEIGHTED_TSV) and line.count(b"\t") > 1:
        line, form = _columns(line), JSON
    elif form in (JSON, JSON_LIST):
        line, replies = _taken_out(where, line)
    parsed = parse_line(0, line, form=form, least=1 if replies else 2)
    if isinstance(parsed, Dropped):
        raise DataError(f"{where}: {parsed.reason}; mend it, or leave it out; nothing was scored")
    turns = list(parsed.turns)
    return LineToScore(where, turns, replies) if replies else LineToScore(where, turns[:-1], turns[-1:])


def _columns(line: bytes) -> bytes:
    """A line of TSV with a turn a column, as a line of JSON; what is not UTF-8 becomes a surrogate, which is refused."""
    *context, reply = line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").rstrip("\r\n").split("\t")
    turns = [turn.strip() for cell in context if cell.strip() for turn in cell.split(" EOS ")]
    return json.dumps({"turns": [*turns, reply.strip()]}).encode()


def _taken_out(where: str, line: bytes) -> tuple[bytes, list[str] | None]:
    """A line of JSON without its `reply` or `replies`, and those; as it is where it has none beside a context."""
    try:
        found = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return line, None  # `parse_line` says what is wrong
    if not isinstance(found, dict) or not found.keys() & set(_CONTEXTS):
        return line, None
    name = next((name for name in ("replies", "reply") if name in found), None)
    if name is None:
        return line, None
    replies = found[name] if name == "replies" else [found[name]]
    if not isinstance(replies, list) or not replies or not all(isinstance(reply, str) for reply in replies):
        wanted = "a list of texts" if name == "replies" else "a text"
        raise DataError(f"{where}: `{name}` is not {wanted}; nothing was scored")
    for number, reply in enumerate(replies, start=1):
        what = f"reply {number}" if name == "replies" else "the reply"
        if not reply.strip():
            raise DataError(f"{where}: {what} is empty; write something, or leave it out; nothing was scored")
        try:
            reply.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{where}: {what} holds a lone surrogate, which is no character; nothing was scored"
            ) from None
    return json.dumps({key: value for key, value in found.items() if key != name}).encode(), replies
