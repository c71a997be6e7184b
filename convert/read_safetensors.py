"""A safetensors file: an 8-byte length, a JSON header, and the numbers.

What flows in: the mapped bytes. What flows out: a `WeightFile` whose arrays are views into them.

Parsed here and not by the safetensors library, because its numpy reader copies each tensor, lacked bfloat16 for years,
and says about a damaged header only which Rust enum it was. The rules are the format's own (its README): names once,
offsets without holes or overlaps, the last at the end of the file.
"""

import json
from typing import Any

import numpy as np

from dialogpt_jax.convert.weight_file import NUMPY_DTYPES, ReadError, WeightFile, count_elements, show, view

_CODES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
_CODES |= {
    f"{letter}{bits}": f"{kind}{bits}" for letter, kind in (("I", "int"), ("U", "uint")) for bits in (64, 32, 16, 8)
}
SAFETENSORS_DTYPES = {code: NUMPY_DTYPES[name] for code, name in _CODES.items()}
# The format allows ten times as much, of which Python would make gigabytes; GPT-2 XL's header has 60 KB.
MAX_HEADER = 10_000_000
MAX_TENSORS = 20_000  # GPT-2 XL has 581, and 96 buffers; each costs time, however small it is


def load_json(text: bytes, what: str) -> Any:
    """JSON from a file, with a name that occurs twice an error.

    Raises:
      ReadError: not JSON, or a name twice in one object.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ReadError(f"{what} has the name {show(name)} twice; it is damaged or made to mislead")
            found[name] = value
        return found

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except ReadError:
        raise
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ReadError(f"{what} is no JSON ({error}); the file is damaged or truncated") from None


def read_safetensors(data: np.ndarray) -> WeightFile:
    """A safetensors file.

    Raises:
      ReadError: the header is damaged, a dtype is unknown, or sizes and offsets do not match each other or the file.
    """
    length = int.from_bytes(bytes(data[:8]), "little")
    if length > min(MAX_HEADER, len(data) - 8):
        raise ReadError(
            f"claims a safetensors header of {length} bytes in a file of {len(data)}; it is damaged or truncated"
        )
    header = load_json(bytes(data[8 : 8 + length]), "the safetensors header")
    if not isinstance(header, dict):
        raise ReadError("has a safetensors header that is no JSON object; the file is damaged")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        raise ReadError("has a safetensors __metadata__ that is not a mapping of strings; the file is damaged")
    if len(header) > MAX_TENSORS:
        raise ReadError(f"has {len(header)} tensors; a GPT-2 has a dozen a layer, and at most {MAX_TENSORS} are read")
    body = data[8 + length :]
    spans = {name: _check_entry(name, entry) for name, entry in header.items()}
    position = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != position:
            raise ReadError(
                f"tensor {show(name)} begins at byte {begin} where {position} was expected; "
                "the file is damaged (its tensors overlap or leave holes)"
            )
        position = end
    if position != len(body):
        raise ReadError(f"has {len(body)} bytes of numbers, and its header describes {position}; truncated or damaged")
    tensors = {
        name: view(body[begin:end], SAFETENSORS_DTYPES[header[name]["dtype"]], name, shape=header[name]["shape"])
        for name, (begin, end) in spans.items()
    }
    return WeightFile(tensors, "safetensors", metadata)


def _check_entry(name: str, entry: Any) -> tuple[int, int]:
    """The two offsets of a tensor, once its dtype, shape and size agree with each other."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(begin), int(end)], **rest} if not rest:
            if kind not in SAFETENSORS_DTYPES:
                raise ReadError(
                    f"tensor {show(name)} has the dtype {show(kind)}; known: {', '.join(SAFETENSORS_DTYPES)}"
                )
            size = count_elements(name, shape) * SAFETENSORS_DTYPES[kind].itemsize
            if type(begin) is not int or type(end) is not int or not 0 <= begin <= end or end - begin != size:
                raise ReadError(
                    f"tensor {show(name)} has the offsets {show([begin, end])}, and its shape {show(shape)} in {kind} "
                    f"takes {size} bytes; the file is damaged"
                )
            return begin, end
    raise ReadError(f"tensor {show(name)} has a damaged entry in the safetensors header: {show(entry)}")
