"""Files of a dump to numbered lines: `.zst` (with a long window), `.gz`, `.bz2`, `.xz` or plain in; lines and problems out.

Memory is bounded by `MAX_LINE_BYTES` and the window of the compressor, whatever a line's length.
"""

import bz2
import gzip
import io
import itertools
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dialogpt_jax.data.formats import MAX_LINE_BYTES
from dialogpt_jax.data.reddit.records import Problem

WINDOW_BYTES = 2**31  # the longest that zstd knows; the monthly dumps were made with --long=31
_PIECE = 2048  # compressed bytes at a time: 16 of them may be 500,000 of text, where it repeats itself
_MAGIC = {  # the first bytes of a file, whatever its name
    ".zst": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
    ".gz": rb"\x1f\x8b",
    ".bz2": rb"BZh",
    ".xz": rb"\xfd7zXZ\0",
    ".zip": rb"PK\x03\x04",
    ".7z": rb"7z\xbc\xaf",
}
_BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


class DumpError(ValueError):
    """A dump that cannot be read at all; the message names the file and says what to do."""


def check_dumps(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files, sorted by name, so that the order in which they are given says nothing.

    Raises:
      DumpError: one is a folder, a pipe, named twice, not what its name says, or there is nothing to read `.zst` with.
      OSError: one cannot be opened.
    """
    found = sorted({Path(path) for path in paths})
    if len(found) < len(paths):
        raise DumpError(f"a dump is named twice; the names are {', '.join(map(os.fspath, sorted(map(Path, paths))))}")
    files: dict[tuple[int, int], Path] = {}
    for path in found:
        if path.is_dir():
            raise DumpError(f"{path}: a folder; name the files in it, such as {path / 'RC_*.zst'}")
        said = path.stat()
        if not stat.S_ISREG(said.st_mode):  # it may be read once alone, and here that is at least twice
            raise DumpError(f"{path}: no file, but a pipe or a device; write it to a file")
        other = files.setdefault((said.st_dev, said.st_ino), path)
        if other != path:
            raise DumpError(f"a dump is named twice: {other} and {path} are one file")
        with path.open("rb") as file:
            first = file.read(8)
        suffix = suffix_of(path)
        if suffix in _MAGIC and not first:
            raise DumpError(f"{path}: has no bytes; get it again")
        kind = next((kind for kind, magic in _MAGIC.items() if re.match(magic, first)), None)
        if kind in (".zip", ".7z"):
            raise DumpError(f"{path}: its first bytes are those of {kind}; take it apart first")
        if kind not in (None, suffix):
            raise DumpError(f"{path}: its first bytes are those of {kind}; give it a name that ends so")
        if suffix == ".zst":
            _zstandard(path)
    return found


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The end of a file's name, in small letters, by which it is read."""
    return Path(path).suffix.lower()


def _zstandard(path: str | os.PathLike[str]) -> Any:
    try:
        import zstandard
    except ModuleNotFoundError:
        raise DumpError(f"{path}: to read .zst: pip install 'dialogpt-jax[reddit]'") from None
    return zstandard


class _Zstd(io.RawIOBase):
    """The text of a zstd stream. zstandard's own reader takes a file that breaks off within a frame for a whole one."""

    def __init__(self, raw: BinaryIO, zstandard: Any):
        self._raw = raw
        self._new = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj
        self._frame: Any = None
        self._rest, self._text, self._given, self._error = b"", b"", 0, zstandard.ZstdError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._given == len(self._text):
            data = self._rest or self._raw.read(_PIECE)
            self._rest = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            if self._frame is None:
                self._frame = self._new()
            try:
                self._text, self._given = self._frame.decompress(data), 0
            except self._error as error:
                raise EOFError(str(error)) from None
            if self._frame.eof:
                self._frame, self._rest = None, self._frame.unused_data
        count = min(len(buffer), len(self._text) - self._given)
        buffer[:count] = self._text[self._given : self._given + count]
        self._given += count
        return count


def uncompressed(raw: BinaryIO, name: str) -> BinaryIO:
    """The text of an open file, as the end of its name says."""
    suffix = suffix_of(name)
    if suffix == ".zst":
        return io.BufferedReader(_Zstd(raw, _zstandard(name)), 262_144)
    openers: dict[str, Callable[[BinaryIO], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers.get(suffix, lambda opened: opened)(raw)


def read_dump(text: BinaryIO, name: str) -> Iterator[tuple[int, bytes | Problem]]:
    """The numbered lines of a dump; for one that is too long, and where the file breaks off, a problem.

    What stands before a break is read; a last line without its end, too.
    """
    kind = suffix_of(name).lstrip(".")
    for number in itertools.count(1):
        try:
            line = text.readline(MAX_LINE_BYTES + 1)
            size = len(line)
            if size > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = text.readline(MAX_LINE_BYTES)
                    size += len(line)
                reason = f"the line has {size:,} bytes; the most is {MAX_LINE_BYTES:,}"
                yield number, Problem(reason, "line too long")
                continue
        except (*_BROKEN, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk, and not what is on it
                raise
            yield number, Problem(f"the {kind} file is broken from here ({error})", f"broken {kind}")
            return
        if not line:
            return
        if not line.isspace():
            yield number, line
