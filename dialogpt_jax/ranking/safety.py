"""What is not said: the user's word lists, patterns and classifiers; texts in, tags out.

No list of words ships, for none fits: what offends depends on who talks to whom. A list finds what it names and nothing
else: another spelling passes, and so does what hurts without a bad word. It is a net, and no promise.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dialogpt_jax.arguments import as_path, as_plain, shown

DEFAULT_REPLY = "Let's talk about something else."
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|\n")


@dataclasses.dataclass(frozen=True)
class Safety:
    """What a bot must not say, and what it says where nothing else is left.

    A reply that one of them finds is not chosen, whatever its score. Of a reply that is streamed, only whole sentences are
    shown, each after the reply up to its end was looked at; the rest of one in which something is found is left out.

    Attributes:
      words: words and phrases, found in any case, as whole words.
      patterns: regular expressions, Python's, found in any case. Nothing limits their time: of one such as `(a+)+$`, a
        reply of a few dozen letters may take hours.
      classifiers: functions of a text, true where it must not be said.
      default: what is said instead.

    Raises:
      ValueError: an expression does not compile, or one of them is something else.

    Example:
      >>> safety = dg.Safety(words=["darn"], patterns=[r"\\bh[e3]ck\\b"])
      >>> safety.why_not("What the H3CK?")
      "pattern '\\\\\\\\bh[e3]ck\\\\\\\\b'"
      >>> dg.load(safety=safety).reply("Hi!")
      '...'
    """

    words: Sequence[str] = ()
    patterns: Sequence[str] = ()
    classifiers: Sequence[Callable[[str], Any]] = ()
    default: str = DEFAULT_REPLY

    def __post_init__(self) -> None:
        for name in ("words", "patterns", "classifiers"):
            given = as_plain(getattr(self, name))
            kind = "functions" if name == "classifiers" else "texts"
            sound = callable if name == "classifiers" else _is_text
            if (
                not isinstance(given, Sequence | set | frozenset)
                or isinstance(given, str)
                or not all(map(sound, given))
            ):
                raise ValueError(f"{name} is {shown(given)}; give a list of {kind}, none of them empty")
            object.__setattr__(self, name, tuple(given))
        if not _is_text(self.default):
            raise ValueError(f"default is {shown(self.default)}; give the text that is said where no other is left")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"the regular expression {shown(pattern)} does not compile: {error}") from None
        listed = "|".join(r"\s+".join(map(re.escape, word.split())) for word in self.words)
        object.__setattr__(self, "_words", re.compile(rf"(?<!\w)(?:{listed})(?!\w)", re.IGNORECASE) if listed else None)
        tried = [(pattern, re.compile(pattern, re.IGNORECASE)) for pattern in self.patterns]
        object.__setattr__(self, "_patterns", tried)

    def why_not(self, text: str) -> str | None:
        """What finds something in a text, as a tag for reports; `None` where nothing does."""
        words: re.Pattern[str] | None = self.__dict__["_words"]
        if words is not None and (found := words.search(text)):
            return f"word {found.group()!r}"
        for pattern, compiled in self.__dict__["_patterns"]:
            if compiled.search(text):
                return f"pattern {pattern!r}"
        for classifier in self.classifiers:
            name, found = getattr(classifier, "__name__", type(classifier).__name__), classifier(text)
            try:
                if found:
                    return name
            except ValueError:  # an array of several
                raise ValueError(f"{name} of classifiers gave {shown(found)}; it must give one truth value") from None
        return None

    @classmethod
    def read(cls, path: Any, *, default: str = DEFAULT_REPLY) -> "Safety":
        """Of a text file: a word or phrase a line, a regular expression between slashes; `#` begins a remark.

        Raises:
          OSError: it cannot be read.
          ValueError: an expression does not compile, or it is no UTF-8.
        """
        path = as_path("path", path)
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not UTF-8; save it as plain text") from None
        entries = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        slashed = [len(entry) > 2 and entry[0] == entry[-1] == "/" for entry in entries]
        try:
            return cls(
                words=[entry for entry, is_pattern in zip(entries, slashed, strict=True) if not is_pattern],
                patterns=[entry[1:-1] for entry, is_pattern in zip(entries, slashed, strict=True) if is_pattern],
                default=default,
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def whole_sentences(text: str) -> str:
    """As much of the beginning of a text as ends with a sentence; where none has ended, nothing.

    "I see. Well, no! And" →  "I see. Well, no!"
    """
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
