"""Writes a file that torch.load reads, without torch: the zip format, plain tensors on the CPU.

What flows in: names and arrays. What flows out: a file, complete or not there at all. The same arrays make the same
bytes, so two conversions can be compared by a checksum. Source of the layout: torch/serialization.py, `_save`.
"""

import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from dialogpt_jax.convert.torch_objects import STORAGES
from dialogpt_jax.convert.zip_records import LOCAL_HEADER

ALIGNMENT = 64  # of each storage in the file, so that torch can map it
_ROOT = "archive"
_STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items()}


def write_torch(path: str | PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict in torch's zip format; `torch.load(path, weights_only=True)` gives it back bit for bit.

    Arrays that are the same memory (a tied head) are stored once and shared again after loading. The file is written
    beside its place and then moved there, so a failure leaves what was there before.

    Args:
      path: the file to write; an existing one is replaced.
      tensors: name → array of a dtype in `torch_objects.STORAGES`; any layout, saved rows first.

    Raises:
      TypeError: a dtype that torch has no storage class for, or a name that is no string.
      OSError: the folder does not exist or cannot be written.
    """
    arrays = {name: _prepare(name, array) for name, array in tensors.items()}
    keys: dict[tuple, str] = {}
    stored: dict[str, np.ndarray] = {}
    placed = {}
    for name, array in arrays.items():
        # All arrays are alive here, so one address cannot stand for two of them; empty ones may share theirs.
        identity = (array.ctypes.data, array.nbytes, array.dtype) if array.nbytes else (name,)
        placed[name] = keys.setdefault(identity, str(len(keys)))
        stored.setdefault(placed[name], array)
    stream = _emit_pickle(arrays, placed)
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                _put(archive, file.tell, "data.pkl", stream)
                _put(archive, file.tell, "byteorder", b"little")
                for key, array in stored.items():
                    _put(archive, file.tell, f"data/{key}", array.reshape(-1).view(np.uint8).data)
                _put(archive, file.tell, "version", b"3\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _prepare(name: str, array: np.ndarray) -> np.ndarray:
    """An array as torch stores it: rows first, little-endian; the same memory where it already is."""
    if not isinstance(name, str):
        raise TypeError(f"tensor name {name!r} is not a string")
    array = np.asarray(array, order="C")
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and not np.little_endian):
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype not in _STORAGE_NAMES:
        raise TypeError(f"tensor {name!r} has dtype {array.dtype}; torch stores {', '.join(map(str, _STORAGE_NAMES))}")
    return array


def _put(archive: zipfile.ZipFile, tell: Callable[[], int], name: str, content: bytes | memoryview) -> None:
    """One stored record whose bytes begin at a multiple of 64: torch pads with an extra field named FB."""
    record = zipfile.ZipInfo(f"{_ROOT}/{name}")  # dated 1980, always: the same arrays make the same bytes
    begin = tell() + LOCAL_HEADER.size + len(record.filename) + 4
    pad = -begin % ALIGNMENT
    record.extra = b"FB" + pad.to_bytes(2, "little") + b"Z" * pad
    archive.writestr(record, content)


def _emit_pickle(arrays: Mapping[str, np.ndarray], placed: Mapping[str, str]) -> bytes:
    """The stream of OrderedDict(name=_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict()), …)."""
    empty = _emit_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    parts = [pickle.PROTO, b"\x02", empty, pickle.MARK]
    for name, array in arrays.items():
        strides = [int(np.prod(array.shape[axis + 1 :], dtype=np.int64)) for axis in range(array.ndim)]
        parts += [
            _emit_text(name),
            _emit_global("torch._utils", "_rebuild_tensor_v2"),
            pickle.MARK,
            pickle.MARK,
            _emit_text("storage"),
            _emit_global("torch", _STORAGE_NAMES[array.dtype]),
            _emit_text(placed[name]),
            _emit_text("cpu"),
            _emit_int(array.size),
            pickle.TUPLE,
            pickle.BINPERSID,
            _emit_int(0),
            _emit_ints(array.shape),
            _emit_ints(strides),
            pickle.NEWFALSE,
            empty,
            pickle.TUPLE,
            pickle.REDUCE,
        ]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])


def _emit_global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode("ascii")


def _emit_text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + len(encoded).to_bytes(4, "little") + encoded


def _emit_int(number: int) -> bytes:
    if number < 2**31:
        return pickle.BININT + number.to_bytes(4, "little")
    return pickle.LONG1 + b"\x09" + number.to_bytes(9, "little")


def _emit_ints(numbers: Iterable[int]) -> bytes:
    return pickle.MARK + b"".join(map(_emit_int, numbers)) + pickle.TUPLE
