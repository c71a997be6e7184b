"""The records of a zip file, as views into the mapped file.

What flows in: the mapped bytes of a zip file. What flows out: its directory, and the content of one record, checked
against its CRC: a view where it is stored (as torch writes it), a decompressed copy where it is deflated.

The standard library reads the directory. It cannot say where a record's bytes lie, so the local header, 30 bytes and
two lengths, is read here.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping

import numpy as np

from dialogpt_jax.convert.weight_file import ReadError, most_in_memory, show

# What stands before a record's name: APPNOTE.TXT 4.3.7.
LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_ENCRYPTED = 1


class _MappedFile(io.RawIOBase):
    """The mapped bytes as a file that zipfile can read: a read is cut at the end before anything is allocated."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.position = data.data, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + (0, self.position, len(self.data))[whence]
        if self.position < 0:
            raise OSError("seek before the start")
        return self.position

    def tell(self) -> int:
        return self.position

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        end = len(self.data) if size is None or size < 0 else self.position + size
        found = bytes(self.data[self.position : end])
        self.position += len(found)
        return found


def list_records(data: np.ndarray) -> Mapping[str, zipfile.ZipInfo]:
    """The directory of a zip file: name → record.

    Raises:
      ReadError: the directory is damaged, cut off, or has a name twice.
    """
    try:
        records = zipfile.ZipFile(_MappedFile(data)).infolist()  # type: ignore[arg-type]  # it reads, seeks and tells, which is all that is asked of it
    except Exception as error:  # what zipfile raises on hostile bytes has no common class: struct, unicode, EOF, …
        raise ReadError(f"is a zip file that is damaged or truncated ({error}); download or copy it again") from None
    found: dict[str, zipfile.ZipInfo] = {}
    for record in records:
        if found.setdefault(record.filename, record) is not record:
            raise ReadError(f"is a zip file with two records {show(record.filename)}; it is damaged or made to mislead")
    return found


def check_unpacked(data: np.ndarray, records: Iterable[zipfile.ZipInfo]) -> None:
    """Passes if the records, unpacked together, are no more than weights in such a file can be; reads none of them.

    Raises:
      ReadError: they are.
    """
    size = sum(record.file_size for record in records if record.compress_type != zipfile.ZIP_STORED)
    if size > most_in_memory(len(data)):
        raise ReadError(
            f"is a zip file of {len(data)} bytes whose tensors unpack to {size}; no weights do: it is damaged or made to "
            "fill the memory"
        )


def read_record(data: np.ndarray, record: zipfile.ZipInfo, *, max_size: int | None = None) -> np.ndarray:
    """The content of a record as uint8: a view where it is stored, a copy where it is deflated.

    Without `max_size`, `check_unpacked` comes first.

    Raises:
      ReadError: its header, size or CRC is wrong, it is larger than `max_size`, encrypted, or compressed otherwise.
    """
    name = show(record.filename)
    if max_size is not None and record.file_size > max_size:
        raise ReadError(f"record {name} has {record.file_size} bytes; at most {max_size} make sense there")
    start = record.header_offset
    if start < 0 or start + LOCAL_HEADER.size > len(data):
        raise ReadError(f"record {name} begins at byte {start} of {len(data)}; the file is damaged or truncated")
    magic, _, flags, method, *_, name_length, extra_length = LOCAL_HEADER.unpack_from(data.data, start)
    start += LOCAL_HEADER.size + name_length + extra_length
    end = start + record.compress_size
    written = bytes(data[start - name_length - extra_length : start - extra_length])
    if magic != b"PK\x03\x04" or method != record.compress_type or written != _encode(record):
        raise ReadError(f"record {name} has a header that differs from the directory; the file is damaged")
    if (flags | record.flag_bits) & _ENCRYPTED:
        raise ReadError(f"record {name} is encrypted; unpack the file and save it again without a password")
    if end > len(data):
        raise ReadError(f"record {name} ends at byte {end} of {len(data)}; the file is damaged or truncated")
    content = data[start:end]
    if method == zipfile.ZIP_DEFLATED:
        content = _inflate(content, record)
    elif method != zipfile.ZIP_STORED:
        raise ReadError(f"record {name} is compressed by method {method}; save it with torch, which stores it plainly")
    if len(content) != record.file_size:
        raise ReadError(f"record {name} has {len(content)} bytes, and the directory says {record.file_size}; damaged")
    if zlib.crc32(content.data) != record.CRC:
        raise ReadError(f"record {name} does not match its CRC; the file is damaged: download or copy it again")
    return content


def _encode(record: zipfile.ZipInfo) -> bytes:
    """The name as the local header has it; zipfile decodes it by this flag."""
    return record.orig_filename.encode("utf-8" if record.flag_bits & 0x800 else "cp437")


def _inflate(packed: np.ndarray, record: zipfile.ZipInfo) -> np.ndarray:
    """The record's bytes; of one that holds more than the directory says, one byte more than that."""
    try:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed.data, record.file_size + 1)
    except zlib.error as error:
        raise ReadError(f"record {show(record.filename)} cannot be unpacked ({error}); the file is damaged") from None
    return np.frombuffer(unpacked, np.uint8)
