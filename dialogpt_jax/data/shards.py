"""Prepared data on disk: examples in, a folder of memory-mapped arrays out, and a sequence of examples from it.

    data.json              what it was made from and how; its presence says that the folder is whole
    dropped.jsonl          {"file", "line", "reason"} of each line that gave no example
    tokens-00000.npy       uint16 (uint32 over 65,536 ids): the tokens of all rows, one after another
    pieces-00000.npy       uint16 or uint32: tokens of each whole example in them
    runs-00000.npy         (uint16 or uint32, float32): tokens in a row that weigh the same, and what they weigh
    rows-00000.npy         uint32 (N + 1, 3): where each row begins among tokens, pieces and runs

Weights are runs because a turn's tokens weigh the same: a token costs 2 bytes and a row some 24. An example that
is packed into a row keeps its own piece, so a row's segments need no storage.

Letters: T tokens.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np

from dialogpt_jax.arguments import as_path
from dialogpt_jax.data.examples import Example
from dialogpt_jax.data.formats import DataError
from dialogpt_jax.whole_writes import folder_beside, put_in_place

FORMAT = 1
INFO_FILE, DROPPED_FILE = "data.json", "dropped.jsonl"
SHARD_TOKENS = 1 << 28  # half a GiB; far below the uint32 that counts them
_ARRAYS = ("tokens", "pieces", "runs", "rows")


class Columns(NamedTuple):
    """Many rows as a few arrays, as they travel between processes and lie on disk.

    Attributes:
      tokens: of all rows, one after another.
      pieces: tokens of each example in the rows.
      runs: fields `length` and `weight`.
      rows: int64 (N, 3): how many tokens, pieces and runs each row has.
    """

    tokens: np.ndarray
    pieces: np.ndarray
    runs: np.ndarray
    rows: np.ndarray


def to_columns(examples: Sequence[Example], *, vocab_size: int, max_length: int) -> Columns:
    """Examples, packed or not, as columns in the narrowest types that hold `vocab_size` ids and `max_length` tokens."""
    count = _narrow(max_length + 1)
    empty = np.zeros(0, np.float32)  # for no example at all
    sizes = np.array([len(e.tokens_T) for e in examples], np.int64)
    weights = np.concatenate([empty, *(e.weights_T for e in examples)])
    starts, runs_of_row = _find_runs(weights, sizes)
    runs = np.empty(len(starts), [("length", count), ("weight", np.float32)])
    runs["length"], runs["weight"] = np.diff(starts, append=len(weights)), weights[starts]
    segments = [np.zeros(len(e.tokens_T), np.int32) if e.segments is None else e.segments for e in examples]
    begins, pieces_of_row = _find_runs(np.concatenate([empty, *segments]), sizes)
    return Columns(
        np.concatenate([empty.astype(np.int32), *(e.tokens_T for e in examples)]).astype(_narrow(vocab_size)),
        np.diff(begins, append=len(weights)).astype(count),
        runs,
        np.stack([sizes, pieces_of_row, runs_of_row], axis=1),
    )


def _find_runs(values: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where equal values begin in rows that stand one after another, and how many such runs each row has."""
    ends = np.cumsum(sizes)
    begins = np.diff(values, prepend=np.nan) != 0  # the first is always a beginning: NaN equals nothing
    begins[ends[:-1]] = True
    places = np.flatnonzero(begins)
    return places, np.diff(np.searchsorted(places, ends), prepend=0)


def _narrow(values: int) -> np.dtype:
    return np.dtype("<u2" if values <= 1 << 16 else "<u4")


class Writer:
    """Writes a data folder beside its place; `finish` moves it there, and `close` without it leaves nothing.

    What a killed process left there, the next one removes.

    Args:
      path: the folder to be; see `check_folder`.
      shard_tokens: a shard ends once it has so many.

    Raises:
      OSError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, shard_tokens: int = SHARD_TOKENS):
        self.target = Path(path).expanduser().resolve()
        self._closing = contextlib.ExitStack()
        self.folder = self._closing.enter_context(folder_beside(self.target))
        self.shards: list[dict[str, int]] = []
        self._shard_tokens = shard_tokens
        self._open: dict[str, _Growing] = {}
        self._ends = np.zeros(3, np.int64)

    def append(self, columns: Columns) -> None:
        """Adds rows after those there are."""
        done = 0
        while done < len(columns.rows):
            if not self._open or self._ends[0] >= self._shard_tokens:
                self._next_shard(columns)
            ends = self._ends + np.cumsum(columns.rows[done:], axis=0)
            stop = (
                done + int(np.searchsorted(ends[:, 0], self._shard_tokens)) + 1
            )  # up to and with the row that fills the shard
            before, after = columns.rows[:done].sum(axis=0), columns.rows[:stop].sum(axis=0)
            for place, name in enumerate(_ARRAYS[:3]):
                self._open[name].append(columns[place][before[place] : after[place]])
            self._open["rows"].append(ends[: stop - done].astype("<u4"))
            self._ends = ends[min(stop, len(columns.rows)) - done - 1]
            self.shards[-1]["rows"] += min(stop, len(columns.rows)) - done
            self.shards[-1]["tokens"] = int(self._ends[0])
            done = stop

    def _next_shard(self, like: Columns) -> None:
        self._close_arrays()
        number = len(self.shards)
        for name, dtype in zip(_ARRAYS, (*(column.dtype for column in like[:3]), np.dtype("<u4")), strict=True):
            shape = (3,) if name == "rows" else ()
            self._open[name] = _Growing(self.folder / f"{name}-{number:05d}.npy", dtype, shape)
        self._ends = np.zeros(3, np.int64)
        self._open["rows"].append(np.zeros((1, 3), "<u4"))
        self.shards.append({"rows": 0, "tokens": 0})

    def finish(self, info: Mapping[str, Any]) -> None:
        """Writes `data.json` and puts the folder in its place; data that was there is replaced."""
        self._close_arrays()
        whole = {"format": FORMAT, **info, "shards": self.shards}
        file = self.folder / INFO_FILE
        file.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        put_in_place(self.folder, self.target)

    def close(self) -> None:
        """Removes what was not finished."""
        for array in self._open.values():
            with contextlib.suppress(OSError):  # a full disk, told already
                array.file.close()
        self._closing.close()

    def _close_arrays(self) -> None:
        for array in self._open.values():
            array.finish()
        self._open = {}


class _Growing:
    """A `.npy` file that grows at its end. NumPy pads the header so that the final length can be written over the first."""

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, ...]):
        self.file: BinaryIO = path.open("wb")
        self._dtype, self._shape, self._length = dtype, shape, 0
        self._write_header()
        self._header = self.file.tell()

    def append(self, array: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(array, self._dtype).data)
        self._length += len(array)

    def finish(self) -> None:
        with self.file:
            self.file.seek(0)
            self._write_header()
            assert self.file.tell() == self._header

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        fields = {"descr": descr, "fortran_order": False, "shape": (self._length, *self._shape)}
        np.lib.format.write_array_header_1_0(self.file, fields)


def check_folder(path: str | os.PathLike[str], *, replace: bool = False) -> None:
    """Passes if `Writer` may write there.

    Args:
      path: the folder to be.
      replace: whether prepared data that is there may be replaced.

    Raises:
      DataError: a file; a folder that holds something and no prepared data; prepared data, if it may not be replaced.
    """
    target = Path(path).expanduser()
    if target.exists() and not target.is_dir():
        raise DataError(f"{path}: a file is in the way; name a folder")
    if target.is_dir() and any(target.iterdir()):
        if not (target / INFO_FILE).is_file():
            raise DataError(f"{path}: holds other files and is no prepared data; choose a new or empty folder")
        if not replace:
            raise DataError(f"{path}: prepared data is there already; --force replaces it")


class Shards(Sequence[Example]):
    """The examples of a data folder, read from disk as they are asked for.

    Attributes:
      path: the folder.
      info: what `data.json` says.
    """

    def __init__(self, path: Path, info: dict[str, Any], shards: list[dict[str, np.ndarray]]):
        self.path, self.info, self._shards = path, info, shards
        self._starts = np.cumsum([0, *(len(shard["rows"]) - 1 for shard in shards)])

    def __reduce__(self):  # another process opens the files itself
        return open_shards, (self.path,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        shard, row = self._shards[number], place - int(self._starts[number])
        begin, end = shard["rows"][row].tolist(), shard["rows"][row + 1].tolist()
        tokens, pieces, runs = (shard[name][begin[i] : end[i]] for i, name in enumerate(_ARRAYS[:3]))
        segments = np.repeat(np.arange(len(pieces), dtype=np.int32), pieces) if self.info["pack"] else None
        return Example(tokens.astype(np.int32), np.repeat(runs["weight"], runs["length"]), segments)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32, tokens of each example; of each row, where they are packed."""
        return np.concatenate([np.diff(shard["rows"][:, 0]).astype(np.int32) for shard in self._shards])


def open_shards(path: str | os.PathLike[str]) -> Shards:
    """Opens what `dialogpt data prepare` wrote; nothing is read but the index.

    Raises:
      OSError: it cannot be read.
      DataError: it is no data folder, or not a whole one; the message says what to do.

    Example:
      >>> examples = dg.open_shards("prepared")  # written by `dialogpt data prepare talk.jsonl prepared`
      >>> len(examples)
      2
    """
    folder = as_path("path", path).expanduser()
    if not folder.is_dir():
        raise DataError(f"{path}: no such folder; `dialogpt data prepare FILE {path}` makes one")
    try:
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        if info["format"] != FORMAT:
            raise DataError(
                f"{path}: format {info['format']}, this program reads {FORMAT}; prepare it again with --force"
            )
        shards = []
        for number, counts in enumerate(info["shards"]):
            files = {name: folder / f"{name}-{number:05d}.npy" for name in _ARRAYS}
            # Still mapped, but plain arrays to slice: `np.memmap` is slow at it.
            shard = {name: np.load(file, mmap_mode="r").view(np.ndarray) for name, file in files.items()}
            sizes = (len(shard["rows"]) - 1, *(len(shard[name]) for name in _ARRAYS[:3]))
            if sizes != (counts["rows"], *shard["rows"][-1].tolist()) or sizes[1] != counts["tokens"]:
                raise ValueError(f"shard {number} is not the one that {INFO_FILE} describes")
            shards.append(shard)
        if not shards:
            raise ValueError("it has no shard")
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise DataError(
            f"{path}: no prepared data here, {missing} is missing; `dialogpt data prepare` makes it"
        ) from None
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise DataError(f"{path}: broken data ({error}); prepare it again with --force") from None
    return Shards(folder, info, shards)
