"""One line of a file, or a row of a table, to a dialogue: bytes and their form in; turns, or why there are none, out."""

import csv
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dialogpt_jax.data.dialogue_value import MAX_WEIGHT, DataError, Dialogue, Dropped
from dialogpt_jax.errors import counted
from dialogpt_jax.text.dialogue import DialogueError, join_parts, speaker_of, why_not_a_turn

# What `dialogpt data check --help` shows, and in short what an error says.
FORMS = """\
  {"turns": ["Hi!", "Hello."]}     also "weights": [0, 0.3], "speakers": […]
  {"turns": [{"text": "Hi!", "speaker": "Ann"},
             {"text": "Hello.", "speaker": "Bob", "weight": 0.3}]}
  {"messages": [{"role": "user", "content": "Hi!"},
                {"role": "assistant", "content": "Hello."}]}
  {"conversations": [{"from": "human", "value": "Hi!"},
                     {"from": "gpt", "value": "Hello."}]}     ShareGPT's
  {"prompt": "Hi!", "response": "Hello."}     or "completion" or "answer"
  prompt,response     a .csv: names of columns, then a dialogue a row; also
                      question,answer  turn 1,turn 2,turn 3
  0.0 Hi! EOS 1.0 Hello. ⇥ 1.0 Bye.     a .tsv; the weights may be absent
"""
FORMS_IN_SHORT = (
    "read are lines of JSON with turns, messages, ShareGPT's conversations, or prompt and response; a .csv with such "
    "columns; Microsoft's .tsv"
)
MAX_TURN_CHARACTERS = 100_000  # far beyond every model's context; such a turn is a pasted file
# What a pair of turns is called, the first before the second.
PROMPTS, RESPONSES = ("prompt", "question", "input", "source"), ("response", "completion", "answer", "output", "target")


class Form(NamedTuple):
    """How the lines of a file are to be read.

    Attributes:
      name: of the form.
      columns: of a table, the places of its turns in a row, in the order in which they were said.
      delimiter: of a table.
    """

    name: str
    columns: tuple[int, ...] = ()
    delimiter: str = ","


JSON, JSON_LIST = Form("JSON lines"), Form("a list in JSON")
TSV, WEIGHTED_TSV = Form("TSV"), Form("TSV with weights")


class NoDialogueError(DataError):
    """Nothing in a file is read as a dialogue; the message ends with the forms that are.

    Attributes:
      what: is wrong, without the forms.
    """

    def __init__(self, what: str, *, help: str = "`dialogpt data check --help`"):
        """`help` is where whoever asks has the forms in full."""
        super().__init__(f"{what}; {FORMS_IN_SHORT} ({help} shows them)")
        self.what = what

    def __reduce__(self):  # from another process
        return type(self), (self.what,)


class _Refused(Exception):
    """A reason and its kind, on their way to `Dropped`."""

    def __init__(self, reason: str, kind: str | None = None):
        self.reason, self.kind = reason, kind or reason


def parse_line(number: int, line: bytes, *, form: Form, least: int = 2) -> Dialogue | Dropped:
    """The dialogue of a line, of at least so many turns, or why there is none."""
    try:
        try:
            text = line.decode("utf-8").removeprefix("\ufeff")  # a byte-order mark, within files that were joined too
        except UnicodeDecodeError as error:
            where = f"byte {error.start + 1} (0x{line[error.start]:02x})"
            raise _Refused(f"{where} is not UTF-8; convert the file to UTF-8", "not UTF-8") from None
        if form.columns:
            return _check(_parse_row(text, form), least)
        if form in (TSV, WEIGHTED_TSV):
            return _check(_parse_tsv(text, weighted=form == WEIGHTED_TSV), least)
        return _check(_parse_json(text, least), least)
    except _Refused as refused:
        return Dropped(number, refused.reason, refused.kind)
    except DataError as error:
        return Dropped(number, str(error), "not a dialogue")


def _check(dialogue: Dialogue, least: int) -> Dialogue:
    for number, turn in enumerate(dialogue.turns, start=1):
        if not turn.strip():
            raise _Refused(f"turn {number} is empty", "a turn is empty")
        if len(turn) > MAX_TURN_CHARACTERS:
            limit = f"the most is {MAX_TURN_CHARACTERS:,}"
            raise _Refused(f"turn {number} has {len(turn):,} characters; {limit}", "a turn is too long")
        if not turn.isascii() and any("\ud800" <= character <= "\udfff" for character in turn):
            raise _Refused(f"turn {number} holds a lone surrogate, which is no character", "a lone surrogate")
    if len(dialogue.turns) < least:
        count = "one turn" if dialogue.turns else "no turn"
        raise _Refused(f"{count}; a dialogue has at least two", "fewer than two turns")
    return dialogue


def _parse_json(text: str, least: int) -> Dialogue:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Refused(f"not JSON ({error})", "not JSON") from None
    if isinstance(found, list):
        found = {"turns": found}
    if not isinstance(found, dict):
        raise _Refused(f"{_UNKNOWN}, but {text.strip()[:40]}", "no known form")
    name = next((name for name in ("turns", "messages", "conversations") if name in found), "")
    if not name:
        return Dialogue(_pair(found, least))
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


_UNKNOWN = "no `turns`, `messages`, `conversations`, or `prompt` and `response`"


def _pair(found: Mapping[str, Any], least: int) -> tuple[str, ...]:
    """The two turns of a prompt and its response; a prompt alone where one turn is enough."""
    names = [next((name for name in known if name in found), None) for known in (PROMPTS, RESPONSES)]
    if least == 1 and names[0] is not None and names[1] is None:
        names.pop()
    if None in names:
        raise _Refused(_UNKNOWN, "no known form")
    for number, name in enumerate(names, start=1):
        if not isinstance(found[str(name)], str):
            raise _Refused(f"`{name}` is no text", f"turn {number} has no text")
    return tuple(found[str(name)] for name in names)


def columns_of(names: Sequence[str], least: int = 2) -> tuple[int, ...]:
    """The places of a table's turns, in the order in which they were said, by the names of its columns.

        id, prompt, response                    1 2
        response, context, context/0            2 1 0          as fine-tuning notebooks write them, the newest first
        turn 1, turn 2, turn 3                  0 1 2          any number

    Raises:
      DataError: the names do not tell it.
    """
    known = {name.strip().lower(): place for place, name in reversed(list(enumerate(names)))}
    numbered = sorted(
        (int(m[1]), place) for name, place in known.items() if (m := re.fullmatch(r"turn[ _-]?(\d+)", name))
    )
    if len(numbered) >= least:
        return tuple(place for _, place in numbered)
    response = next((known[name] for name in RESPONSES if name in known), None)
    if response is not None and "context" in known:
        older = sorted(
            (int(m[1]), place) for name, place in known.items() if (m := re.fullmatch(r"context/(\d+)", name))
        )
        return (*(place for _, place in reversed(older)), known["context"], response)
    prompt = next((known[name] for name in PROMPTS if name in known), None)
    if prompt is not None and response is None and least == 1:
        return (prompt,)
    if prompt is None or response is None:
        shown = ", ".join(name.strip()[:20] for name in names[:8])
        raise NoDialogueError(f"the columns are {shown}; name them prompt and response, or turn 1, turn 2, …")
    return prompt, response


def _parse_row(text: str, form: Form) -> Dialogue:
    """The turns of a table's row; cells with nothing in them, before the first turn or after the last, are none."""
    try:
        (cells,) = csv.reader([text.rstrip("\r\n")], delimiter=form.delimiter, strict=True)
    except (csv.Error, ValueError) as error:
        raise _Refused(f"not a row of CSV ({error})", "not CSV") from None
    if len(cells) <= max(form.columns):
        wanted = max(form.columns) + 1
        raise _Refused(
            f"{counted(len(cells), 'columns')}; the turns go up to column {wanted}",
            "not as many columns as the first line",
        )
    turns = [cells[place] for place in form.columns]
    while turns and not turns[-1].strip():
        turns.pop()
    return Dialogue(tuple(itertools.dropwhile(lambda turn: not turn.strip(), turns)))


def _parse_turn(number: int, turn: Any) -> tuple[str, str | None, float | None]:
    """One turn's text, speaker and weight; a message's `content` is its text, or its parts, and its `role` the speaker."""
    if isinstance(turn, str):
        return turn, None, None
    fields: Mapping[str, Any] = turn if isinstance(turn, dict) else {}
    role = fields.get("role", fields.get("from"))
    try:
        said_by = speaker_of(number, role)
    except DialogueError as error:
        kind = f"a {str(role).strip()} message" if why_not_a_turn(role) else "an unknown role"
        raise _Refused(str(error), kind) from None
    speaker = fields.get("speaker", said_by)
    text = fields.get("text", fields.get("content", fields.get("value")))
    if isinstance(text, list):
        try:
            text = join_parts(number, text)
        except DialogueError as error:
            raise _Refused(str(error), "a part of a message is no text") from None
    if not isinstance(text, str):
        raise _Refused(f"turn {number} has no text", "a turn has no text")
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
        raise _Refused(f"{counted(len(listed), name)} for {counted(count, 'turns')}", f"not as many {name} as turns")
    return tuple(check(number, value) for number, value in enumerate(listed, start=1))


def _speaker(number: int, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _Refused(f"the speaker of turn {number} is no text", "a speaker is no text")
    return value


def _weight(number: int, value: Any) -> float:
    """A finite float of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Refused(f"weight {number} is {json.dumps(value)[:40]}, not a number", "a weight is not a number")
    if not 0 <= value <= MAX_WEIGHT:  # NaN too
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)[:40]
        raise _Refused(f"weight {number} is {shown}; it must be a finite number from 0", "a weight is out of range")
    return float(value)


def split_tsv(text: str) -> list[str]:
    """The turns of a line of Microsoft's with its one tab."""
    source, target = text.rstrip("\r\n").split("\t")
    return [*source.split(" EOS "), target]


def _parse_tsv(text: str, *, weighted: bool) -> Dialogue:
    tabs = text.count("\t")
    if tabs != 1:
        what = "no tab" if not tabs else f"{tabs + 1} columns"
        raise _Refused(f"{what}; expected source ⇥ target", "not two columns")
    turns = [turn.strip() for turn in split_tsv(text)]
    if not weighted:
        return Dialogue(tuple(turns))
    texts, weights = [], []
    for number, turn in enumerate(turns, start=1):
        first, _, rest = turn.partition(" ")
        if not is_number([first]):
            raise _Refused(f"turn {number} begins with {first[:40]!r}, not a weight", "a weight is not a number")
        weights.append(_weight(number, float(first)))
        texts.append(rest.strip())
    return Dialogue(tuple(texts), None, tuple(weights))


def is_number(words: list[str]) -> bool:
    """Whether the first of some words is a number."""
    try:
        return bool(words) and "_" not in words[0] and float(words[0]) is not None
    except ValueError:
        return False
