"""What a person reads on a terminal: an exception in, one line out; any text in, the same without power over it out."""

import contextlib
import os
import unicodedata
from collections.abc import Iterator

# Categories of characters that move the cursor, colour, or end a line unseen: controls (C0, C1, DEL), lone surrogates
# (a terminal cannot print them), line and paragraph separators.
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")
# These turn the text around them right to left, so that it reads as something else (Unicode TR 36, section 2.10.5).
_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def escape_controls(text: str, *, keep: str = "\n") -> str:
    r"""A text as a person may see it: what would steer the terminal stands as its escape.

    Letters of every script, emoji and their joiners stay as they are.

    Args:
      text: from a model, a file, a user, a server.
      keep: controls that stay. With `keep=""` the result is one line.

    Example:
      >>> escape_controls("a\x1b]0;title\x07b")
      'a\\x1b]0;title\\x07b'
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character not in keep and (unicodedata.category(character) in _CONTROLS or character in _BIDIRECTIONAL)
        else character
        for character in text
    )


def counted(number: int, plural: str, verb: tuple[str, str] | None = None) -> str:
    """A number and what it counts: `1 line`, `2 lines`, `1 reply`; a unit such as kB stays as it is.

    With a verb, of one and of several: `1 line differs`, `2 lines differ`.
    """
    if number == 1:
        plural = plural[:-3] + "y" if plural.endswith("ies") else plural.removesuffix("s")
    said = "" if verb is None else f" {verb[number != 1]}"
    return f"{number:,} {plural}{said}"


def size_of(count: int) -> str:
    """Bytes as a person reads them: kB below 100,000, else MB."""
    return f"{count / 1e3:,.1f} kB" if count < 100_000 else f"{count / 1e6:,.1f} MB"


def one_line(error: BaseException) -> str:
    """An error's message, its controls escaped; for the system's errors, the file and what went wrong."""
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return escape_controls(message)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An error of the system within, such as a full disk, that names no file names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
