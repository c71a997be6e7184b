"""Replies that were marked: `marked_replies.jsonl.gz` in; contexts with what was said to them, by marks, out.

A context a line: `turns`, what was said before; `sensible`, `passable`, `nonsense`, the replies of each mark. A language
model gave the marks, by the rule in `prompts.json`; no person did. It wrote most contexts, of one turn, three or five; the
others are windows of the corpus's everyday part (CC0). The replies were drawn from the model before the stage in
`prefer.py` and from models that earlier forms of the stage had made of it; each stands once. Where none of a context was
sensible, the language model wrote one that is.

A release is judged by the prompts and chats of `prompts.json`, so no context is near to one: none has a turn that shares
more than half of its words with a turn there, and paraphrases were taken out by hand.
"""

import gzip
import json
import zlib
from pathlib import Path
from typing import NamedTuple

from dialogpt_jax.bundled.prompts import MARKS

MARKED = Path(__file__).with_name("marked_replies.jsonl.gz")
DRAWN = Path(__file__).with_name("marked_draws.jsonl.gz")
SENSIBLE, PASSABLE, NONSENSE = MARKS


class MarksError(ValueError):
    """Marked replies that cannot be read or cannot teach; the message says which and why."""


class Marked(NamedTuple):
    """A context and its replies by their marks."""

    turns: list[str]
    replies: dict[str, list[str]]


def read_marked(path: Path = MARKED) -> list[Marked]:
    """The contexts of a file, `{"turns": […], "sensible": […], "passable": […], "nonsense": […]}` a line.

    Raises:
      OSError: there is no such file.
      MarksError: it is no gzip file or is cut off, or a line is something else.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise MarksError(f"{path}: is no whole gzip file of UTF-8 ({error}); take it anew from the package") from error
    return [_entry(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _entry(line: str, where: str) -> Marked:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise MarksError(f"{where}: is no JSON ({error})") from error
    for name in ("turns", *MARKS):
        texts = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise MarksError(f'{where}: "{name}" is no list of texts; a line is {{"turns": […], "{SENSIBLE}": […], …}}')
    if not entry["turns"]:
        raise MarksError(f"{where}: has no turn to reply to")
    return Marked(entry["turns"], {mark: entry[mark] for mark in MARKS})
