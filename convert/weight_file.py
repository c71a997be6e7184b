"""What every reader shares: the error, the result, the dtypes, and one checked view into a mapped file.

What flows in: a path, or bytes with sizes, strides and offsets that a file claims. What flows out: read-only arrays
that look into the mapped file (nothing is copied until someone copies), or a `ReadError` that says what is wrong.
"""

import math
from collections.abc import Mapping, Sequence
from os import PathLike, stat
from stat import S_ISDIR, S_ISREG
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAX_DIMS = 32  # numpy 1's limit; GPT-2's tensors have at most 4
# A model may be larger in memory than in its file: a tied head is stored once, zeros are packed. One that is many times
# as large is made to fill the memory of whoever reads it.
MAX_GROWTH = 8
ALWAYS_ALLOWED = 64 * 2**20  # bytes, however small the file

_SCALARS = (str, bytes, int, float, bool, type(None))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# The dtypes that a tensor may have, by NumPy's names. Every format stores numbers with the low byte first.
_NUMPY_NAMES = "float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
NUMPY_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in _NUMPY_NAMES.split()} | {"bfloat16": BFLOAT16}


class ReadError(ValueError):
    """A weight file that cannot be read; the message is one line: the file, what is wrong, and what to do."""


class WeightFile(NamedTuple):
    """The content of a weight file.

    Attributes:
      tensors: name → array, names and order as in the file. The arrays are read-only and, where the file allows it,
        views into the mapped file: they cost memory when they are read, and the file must stay as it is meanwhile.
        They may be unaligned, or strided as they were saved; bfloat16 is `ml_dtypes.bfloat16`.
      format: "safetensors", "pytorch zip", "pytorch legacy" or "flax msgpack", with " (sharded)" behind it where the
        path was an index.
      metadata: of safetensors, the strings under `__metadata__`; of the others, what stands beside the tensors and is
        a number, a string, a bool or None (`{"epoch": 3}`).
    """

    tensors: Mapping[str, np.ndarray]
    format: str
    metadata: Mapping[str, Any]


def show(value: Any) -> str:
    """A value from a file, fit for one line of an error: escaped, and cut at 80 characters."""
    if isinstance(value, list):
        # Not repr of the whole: a hostile list may be nested a million deep, or hold itself.
        parts = [show(item) if isinstance(item, _SCALARS) else f"<{type(item).__name__}>" for item in value[:8]]
        return "[" + ", ".join(parts + ["..."] * (len(value) > 8)) + "]"
    if not isinstance(value, _SCALARS):
        return f"<{type(value).__name__}>"
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def map_file(path: str | PathLike[str]) -> np.ndarray:
    """The bytes of a file as a read-only uint8 array, mapped and not read.

    Raises:
      ReadError: there is no such file, it is a directory, it is empty, or it may not be read.
    """
    try:
        status = stat(path)
        if S_ISDIR(status.st_mode):
            raise ReadError("is a directory; name the file in it")
        if not S_ISREG(status.st_mode):
            raise ReadError("is not a regular file; copy it into one first")
        if status.st_size == 0:
            raise ReadError("is empty (0 bytes); download or copy it again")
        return np.asarray(np.memmap(path, np.uint8, mode="r"))
    except FileNotFoundError:
        raise ReadError("there is no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def most_in_memory(size: int) -> int:
    """How many bytes of arrays a file, or a storage in one, of `size` bytes may become."""
    return max(ALWAYS_ALLOWED, MAX_GROWTH * size)


def count_elements(name: str, shape: Sequence[Any]) -> int:
    """The product of a shape that a file claims, in Python's integers, which do not overflow.

    Raises:
      ReadError: a size is negative or no integer, there are too many, or no array can be that large.
    """
    if len(shape) > MAX_DIMS:
        raise ReadError(f"tensor {show(name)} has {len(shape)} dimensions; at most {MAX_DIMS} can be read")
    if any(type(size) is not int or size < 0 for size in shape):
        raise ReadError(f"tensor {show(name)} has the shape {show(list(shape))}; sizes must be integers of at least 0")
    # Empty arrays too: numpy multiplies the other sizes, and 64-bit bytes of the widest dtype must hold them.
    if math.prod(size for size in shape if size) >= 2**59:
        raise ReadError(f"tensor {show(name)} has the shape {show(list(shape))}, more than any memory holds")
    return math.prod(shape)


def view(
    data: np.ndarray,
    dtype: np.dtype,
    name: str,
    *,
    shape: Sequence[Any],
    strides: Sequence[Any] | None = None,
    offset: Any = 0,
) -> np.ndarray:
    """A tensor inside a block of bytes, without a copy.

    Args:
      data: uint8, the block: a storage, or the bytes between two offsets.
      dtype: of the elements.
      name: of the tensor, for the errors.
      shape: its sizes, as the file claims them.
      strides: in elements; None means contiguous, rows first.
      offset: of its first element, in elements.

    Raises:
      ReadError: a size, stride or offset is negative, no integer, or leads outside of the block.
    """
    elements = count_elements(name, shape)
    if strides is None:
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    numbers = (*strides, offset)
    if len(strides) != len(shape) or any(type(number) is not int or number < 0 for number in numbers):
        raise ReadError(
            f"tensor {show(name)} has the strides {show(list(strides))} and the offset {show(offset)} "
            f"for the shape {show(list(shape))}; both must be integers of at least 0, one stride a size"
        )
    if elements == 0:
        return np.zeros(tuple(shape), dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= len(data) // dtype.itemsize:
        raise ReadError(
            f"tensor {show(name)} (shape {show(list(shape))}, strides {show(list(strides))}, offset {offset}) ends at "
            f"element {last + 1}, but there are {len(data) // dtype.itemsize}; the file is damaged or truncated"
        )
    # A size of 1 makes its stride meaningless, and a file may put anything there; numpy wants it to fit 64 bits.
    steps = [stride * dtype.itemsize if size > 1 else 0 for size, stride in zip(shape, strides, strict=True)]
    array = np.ndarray(tuple(shape), dtype, buffer=data.data, offset=offset * dtype.itemsize, strides=steps)
    if dtype == np.bool_ and array.view(np.uint8).max() > 1:
        raise ReadError(f"tensor {show(name)} is boolean, but holds bytes other than 0 and 1; the file is damaged")
    return array
