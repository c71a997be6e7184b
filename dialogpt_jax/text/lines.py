"""Text from outside, in; what was written on its lines, or all of a small file, out."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

BYTE_ORDER_MARK = "\ufeff"  # what some editors on Windows put before the first line
MOST_BYTES = 256 * 2**20  # the largest tokenizer.json on the Hub has some 30 MB


def read_small_file(path: str | os.PathLike[str]) -> str:
    """The text of a model directory's file. In one made to do harm it is a pipe that never speaks, or as large as the disk.

    Raises:
      OSError: it cannot be read.
      ValueError: no regular file, larger than `MOST_BYTES`, or not UTF-8.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # opening a directory says what it is
        raise ValueError("no regular file; copy it into one first")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"{status.st_size} bytes, and at most {MOST_BYTES} make sense there")
    return Path(path).read_text(encoding="utf-8")


def written_lines(stream: Iterable[str]) -> Iterator[str]:
    """The lines on which something stands, without their ends (Windows' too) and without a byte-order mark."""
    for number, line in enumerate(stream):
        text = (line.removeprefix(BYTE_ORDER_MARK) if number == 0 else line).rstrip("\r\n")
        if text.strip():
            yield text
