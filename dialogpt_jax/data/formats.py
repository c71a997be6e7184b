"""Files of dialogues to turns: JSON lines, plain or gzipped, in; lists of turns out."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path


class DataError(ValueError):
    """A line that is not a dialogue; the message names file and line."""


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
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
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
