"""Lines of an input, in; what was written on them, out."""

from collections.abc import Iterable, Iterator

BYTE_ORDER_MARK = "\ufeff"  # what some editors on Windows put before the first line


def written_lines(stream: Iterable[str]) -> Iterator[str]:
    """The lines on which something stands, without their ends (Windows' too) and without a byte-order mark."""
    for number, line in enumerate(stream):
        text = (line.removeprefix(BYTE_ORDER_MARK) if number == 0 else line).rstrip("\r\n")
        if text.strip():
            yield text
