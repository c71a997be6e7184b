"""Standard input, output and error of a command: put in order before it, and given up when it cannot be written to."""

import contextlib
import io
import json
import os
import re
import sys

from dialogpt_jax.errors import escape_controls, naming

OUTPUT = "standard output"  # as an error names it
# Beyond what json escapes itself: the control characters that some terminals obey.
_CONTROLS, _NOT_ASCII = re.compile("[\x7f-\x9f]"), re.compile("[^\x00-\x7e]")


def prepare() -> None:
    """Streams that were closed (`<&-`) become empty ones; characters that a terminal lacks are shown as escapes.

    Bytes of the input that are not UTF-8 arrive as lone surrogates, which the tokenizer refuses in one line.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (open for the process)
        elif hasattr(stream, "reconfigure"):
            with contextlib.suppress(io.UnsupportedOperation):  # what has been read from already stays as it is
                stream.reconfigure(errors="surrogateescape" if mode == "r" else "backslashreplace")


def tell(line: str) -> None:
    """A line on standard error, its controls escaped; if nobody can read it, nothing."""
    with contextlib.suppress(OSError):
        print(escape_controls(line), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Text on standard output, its controls escaped: through a pipe too, for most pipes end on a terminal.

    What is exact is what `print_json` and files give.
    """
    with naming(OUTPUT):
        print(escape_controls(text, keep="\n\t"), flush=True)


def print_json(text: str) -> None:
    """Prints JSON, whose value stays what it is: where the output has ASCII only, the other characters as escapes."""
    encoding = sys.stdout.encoding or "utf-8"  # a `StringIO` has none
    every = encoding.lower().replace("-", "") == "utf8"
    with naming(OUTPUT):
        print((_CONTROLS if every else _NOT_ASCII).sub(lambda found: json.dumps(found[0])[1:-1], text))


def flush() -> None:
    """Writes what standard output holds back."""
    with naming(OUTPUT):
        sys.stdout.flush()


def drop_output() -> OSError | None:
    """Why standard output cannot be written to, if so; then it is closed, or Python would fail once more at its exit."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
