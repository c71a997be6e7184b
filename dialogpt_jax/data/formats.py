"""Files of dialogues to dialogues: JSON lines, chat messages or Microsoft's TSV, plain or gzipped, in; turns out.

    {"turns": ["Hi!", "Hello."], "weights": [0, 0.3], "speakers": ["Ann", "Bob"]}      the last two may be left out
    {"turns": [{"text": "Hi!", "speaker": "Ann"}, {"text": "Hello.", "weight": 0.3}]}
    {"messages": [{"role": "user", "content": "Hi!"}, …]}      or the list alone; a role is a speaker
    0.0 Hi! EOS 1.0 Hello. ⇥ 1.0 Bye.      a `.tsv`: weight and turn, joined by ` EOS `, the last after a tab

Each line decides its own JSON form. Two readers: `read_dialogues` is strict and stops at the first line that is not a
dialogue; `read_lines` and `parse_line` go on, and say of each line that they drop why.
"""

import gzip
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dialogpt_jax.arguments import as_plain, shown
from dialogpt_jax.text.dialogue import DialogueError, said_by, why_not_a_turn

# What one line may cost in memory while it is read. A dialogue of 8 MiB has over a million words.
MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_TURN_CHARACTERS = 100_000  # far beyond every model's context; such a turn is a pasted file
MAX_WEIGHT = 3.4e38  # float32's end
JSON, TSV, WEIGHTED_TSV = "JSON lines", "TSV", "TSV with weights"
_SNIFFED_LINES = 100
_BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)


class DataError(ValueError):
    """A line that is not a dialogue, or data that nothing can be trained on; the message names file and line."""


@dataclass(frozen=True)
class Dialogue:
    """What was said, in order.

    Attributes:
      turns: the texts; none is empty.
      speakers: who said each, where the file says so.
      weights: how much each counts as a target, where the file says so; elsewhere 1.

    Any sequence may be given for each, and is kept as a tuple; chat messages for `turns`, whose roles are speakers.

    Raises:
      DataError: a turn is no text, or there is not one speaker and one weight, finite and from 0, for each turn.

    Example:
      >>> dg.Dialogue(("Hi!", "Hello, I am Pip."), weights=(0.0, 1.0)).turns
      ('Hi!', 'Hello, I am Pip.')
    """

    turns: tuple[str, ...]
    speakers: tuple[str | None, ...] | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.turns, str):
            raise DataError(f"turns is one text, {shown(self.turns)}; give a list of texts")
        try:
            said = said_by(self.turns)
        except DialogueError as error:
            raise DataError(str(error)) from None
        object.__setattr__(self, "turns", tuple(text for text, _ in said))
        if self.speakers is None and any(role is not None for _, role in said):
            object.__setattr__(self, "speakers", tuple(role for _, role in said))
        for name in ("speakers", "weights"):
            values = as_plain(getattr(self, name))
            if values is None:
                continue
            if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != len(said):
                raise DataError(f"{name} is {shown(values)}; give a list of {len(said)}, one for each turn")
            object.__setattr__(self, name, tuple(values))
        for speaker in self.speakers or ():
            if speaker is not None and not isinstance(speaker, str):
                raise DataError(f"a speaker is {shown(speaker)}; give a name, or None")
            if refusal := why_not_a_turn(speaker):
                raise DataError(refusal)
        for weight in self.weights or ():
            number = isinstance(weight, int | float | np.number) and not isinstance(weight, bool)
            if not number or not 0 <= weight <= MAX_WEIGHT:
                raise DataError(f"a weight is {shown(weight)}; it must be a finite number from 0")


class Dropped(NamedTuple):
    """A line that gives no dialogue.

    Attributes:
      line: its number in the file, from 1.
      reason: what is wrong, with its numbers.
      kind: the same without them, to count by.
    """

    line: int
    reason: str
    kind: str


class _Refused(Exception):
    """A reason and its kind, on their way to `Dropped`."""

    def __init__(self, reason: str, kind: str | None = None):
        self.reason, self.kind = reason, kind or reason


def read_dialogues(path: str | os.PathLike[str]) -> Iterator[list[str]]:
    """The turns of each line `{"turns": [text, …]}` of a `.jsonl` or `.jsonl.gz` file.

    Raises:
      OSError: it cannot be read, or is not gzipped where its name says so.
      DataError: a line is not UTF-8, not JSON, or has no list of texts under `turns`; there is no line.
    """
    path = Path(path)
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):  # noqa: B007  (the errors below name it)
                yield _turns(line)
    except DataError as error:
        raise DataError(f"{path}, line {number}: {error}") from None
    except _BROKEN_GZIP as error:
        raise DataError(f"{path}, line {number + 1}: the gzip file is broken ({error})") from None
    if not number:
        raise DataError(f"{path}, line 1: the file is empty; expected a dialogue a line")


def _turns(line: bytes) -> list[str]:
    try:
        turns = json.loads(line.decode("utf-8"))["turns"]
    except UnicodeDecodeError as error:
        wrong = line[error.start]
        raise DataError(f"byte {error.start + 1} (0x{wrong:02x}) is not UTF-8; convert the file to UTF-8") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"not a dialogue ({error})") from None
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise DataError("`turns` is not a list of texts")
    return turns


def lenient_dialogues(path: str | os.PathLike[str]) -> Iterator[Dialogue | Dropped]:
    """Each line of a file, in any of the forms above.

    Raises:
      OSError: the file cannot be read.
    """
    form = form_of(path)
    with Path(path).open("rb") as raw:
        for line in read_lines(unzipped(raw, path)):
            yield line if isinstance(line, Dropped) else parse_line(*line, form=form)


def unzipped(raw: BinaryIO, path: str | os.PathLike[str]) -> BinaryIO:
    """The text of an open file, gzipped or not, as its name says."""
    return gzip.GzipFile(fileobj=raw) if Path(path).suffix == ".gz" else raw  # type: ignore[return-value]


def form_of(path: str | os.PathLike[str]) -> str:
    """`JSON`, or for a `.tsv` or `.tsv.gz` whether its turns begin with weights.

    A turn may begin with a number by chance ("2 of them ."), so the file decides, by its first 100 lines: it has weights
    if in most of them every turn begins with a number.
    """
    if ".tsv" not in Path(path).suffixes[-2:]:
        return JSON
    with Path(path).open("rb") as raw:
        first = itertools.islice(read_lines(unzipped(raw, path)), _SNIFFED_LINES)
        texts = [line[1].decode("utf-8", "replace") for line in first if not isinstance(line, Dropped)]
    dialogues = [_split_tsv(text) for text in texts if text.count("\t") == 1]
    weighted = sum(all(_is_number(turn.split(maxsplit=1)[:1]) for turn in turns) for turns in dialogues)
    return WEIGHTED_TSV if 2 * weighted > len(dialogues) else TSV


def read_lines(text: BinaryIO) -> Iterator[tuple[int, bytes] | Dropped]:
    """The numbered lines of a stream. What cannot be read is `Dropped`: a line over the limit, a broken end of gzip.

    Memory is bounded by `MAX_LINE_BYTES`, whatever a line's length.
    """
    for number in itertools.count(1):
        try:
            line = text.readline(MAX_LINE_BYTES + 1)
            size = len(line)
            while size > MAX_LINE_BYTES and not line.endswith(b"\n"):  # the rest of it, to find the next
                line = text.readline(MAX_LINE_BYTES)
                size += len(line)
                if not line:
                    break
        except _BROKEN_GZIP as error:
            yield Dropped(number, f"the gzip file is broken from here ({error})", "broken gzip")
            return
        if not size:
            return
        if size > MAX_LINE_BYTES:
            yield Dropped(number, f"the line has {size:,} bytes; the most is {MAX_LINE_BYTES:,}", "line too long")
        else:
            yield number, line


def parse_line(number: int, line: bytes, *, form: str) -> Dialogue | Dropped:
    """The dialogue of a line, or why there is none."""
    try:
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            where = f"byte {error.start + 1} (0x{line[error.start]:02x})"
            raise _Refused(f"{where} is not UTF-8; convert the file to UTF-8", "not UTF-8") from None
        if not text.strip():
            raise _Refused("the line is blank")
        return _check(_parse_json(text) if form == JSON else _parse_tsv(text, weighted=form == WEIGHTED_TSV))
    except _Refused as refused:
        return Dropped(number, refused.reason, refused.kind)


def _check(dialogue: Dialogue) -> Dialogue:
    for number, turn in enumerate(dialogue.turns, start=1):
        if not turn.strip():
            raise _Refused(f"turn {number} is empty", "a turn is empty")
        if len(turn) > MAX_TURN_CHARACTERS:
            limit = f"the most is {MAX_TURN_CHARACTERS:,}"
            raise _Refused(f"turn {number} has {len(turn):,} characters; {limit}", "a turn is too long")
        if not turn.isascii() and any("\ud800" <= character <= "\udfff" for character in turn):
            raise _Refused(f"turn {number} holds a lone surrogate, which is no character", "a lone surrogate")
    if len(dialogue.turns) < 2:
        count = "one turn" if dialogue.turns else "no turn"
        raise _Refused(f"{count}; a dialogue has at least two", "fewer than two turns")
    return dialogue


def _parse_json(text: str) -> Dialogue:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Refused(f"not JSON ({error})", "not JSON") from None
    if isinstance(found, list):
        found = {"turns": found}
    if not isinstance(found, dict) or not ("turns" in found or "messages" in found):
        raise _Refused("no `turns` and no `messages`")
    name = "turns" if "turns" in found else "messages"
    items = found[name]
    if not isinstance(items, list):
        raise _Refused(f"`{name}` is no list")
    parsed = list(itertools.starmap(_parse_turn, enumerate(items, start=1)))
    turns, speakers, weights = zip(*parsed, strict=True) if parsed else ((), (), ())
    return Dialogue(
        turns,
        _one_of("speakers", found.get("speakers"), speakers, len(turns), _speaker),
        _one_of("weights", found.get("weights"), weights, len(turns), _weight, default=1.0),
    )


def _parse_turn(number: int, turn: Any) -> tuple[str, str | None, float | None]:
    """One turn's text, speaker and weight; a message's `content` is its text and its `role` the speaker."""
    if isinstance(turn, str):
        return turn, None, None
    fields: Mapping[str, Any] = turn if isinstance(turn, dict) else {}
    text = fields.get("text", fields.get("content"))
    if not isinstance(text, str):
        raise _Refused(f"turn {number} has no text", "a turn has no text")
    speaker = fields.get("speaker", fields.get("role"))
    weight = fields.get("weight", fields.get("loss"))
    if isinstance(weight, bool) and "weight" not in fields:  # `"loss": false` is said like this elsewhere
        weight = float(weight)
    weight = None if weight is None else _weight(number, weight)
    return text, _speaker(number, speaker), weight


def _one_of(name: str, listed: Any, single: tuple, count: int, check: Any, *, default: Any = None) -> tuple | None:
    """A value per turn: from the line's list, or from the turns themselves, or `None` if neither has any."""
    here = any(value is not None for value in single)
    if listed is None:
        return tuple(default if value is None else value for value in single) if here else None
    if here:
        raise _Refused(f"{name} stand both in the turns and in a list")
    if not isinstance(listed, list):
        raise _Refused(f"`{name}` is no list")
    if len(listed) != count:
        raise _Refused(f"{len(listed)} {name} for {count} turns", f"not as many {name} as turns")
    return tuple(check(number, value) for number, value in enumerate(listed, start=1))


def _speaker(number: int, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _Refused(f"the speaker of turn {number} is no text", "a speaker is no text")
    if refusal := why_not_a_turn(value):
        raise _Refused(f"turn {number}: {refusal}", f"a {value.strip().lower()} message")
    return value


def _weight(number: int, value: Any) -> float:
    """A finite float of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Refused(f"weight {number} is {json.dumps(value)[:40]}, not a number", "a weight is not a number")
    if not 0 <= value <= MAX_WEIGHT:  # NaN too
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)[:40]
        raise _Refused(f"weight {number} is {shown}; it must be a finite number from 0", "a weight is out of range")
    return float(value)


def _split_tsv(text: str) -> list[str]:
    source, target = text.rstrip("\r\n").split("\t")
    return [*source.split(" EOS "), target]


def _parse_tsv(text: str, *, weighted: bool) -> Dialogue:
    tabs = text.count("\t")
    if tabs != 1:
        what = "no tab" if not tabs else f"{tabs + 1} columns"
        raise _Refused(f"{what}; expected source ⇥ target", "not two columns")
    turns = [turn.strip() for turn in _split_tsv(text)]
    if not weighted:
        return Dialogue(tuple(turns))
    texts, weights = [], []
    for number, turn in enumerate(turns, start=1):
        first, _, rest = turn.partition(" ")
        if not _is_number([first]):
            raise _Refused(f"turn {number} begins with {first[:40]!r}, not a weight", "a weight is not a number")
        weights.append(_weight(number, float(first)))
        texts.append(rest.strip())
    return Dialogue(tuple(texts), None, tuple(weights))


def _is_number(words: list[str]) -> bool:
    try:
        return bool(words) and "_" not in words[0] and float(words[0]) is not None
    except ValueError:
        return False
