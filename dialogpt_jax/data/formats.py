"""Files of dialogues to turns: JSON lines, plain or gzipped, in; lists of turns out."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path


class DataError(ValueError):
    """A line that is not a dialogue; the message names file and line."""


def read_dialogues(path: str | os.PathLike[str]) -> Iterator[list[str]]:
    """The turns of each line `{"turns": [text, …]}` of a `.jsonl` or `.jsonl.gz` file.

    Raises:
      DataError: a line is not JSON, or has no list of texts under `turns`.
    """
    path = Path(path)
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                turns = json.loads(line)["turns"]
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{path}, line {number}: not a dialogue ({error})") from None
            if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
                raise DataError(f"{path}, line {number}: `turns` is not a list of texts")
            yield turns
