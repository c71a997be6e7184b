"""Flax's msgpack files (`flax_model.msgpack`): nested maps with arrays at the leaves.

What flows in: the mapped bytes. What flows out: a `WeightFile` whose names are joined with "/"
("transformer/h/0/attn/c_attn/kernel") and whose arrays are views into the bytes.

Decoded here and not by `flax.serialization.msgpack_restore`: that one copies every array twice, passes any dtype name
on to numpy, and lets a name that occurs twice win in silence. Of MessagePack (its spec.md lists the codes) the types
that Flax writes are known; extension types are data: 1 is an array, 3 a scalar, and no other exists.

An array is an extension whose payload is a MessagePack array again: [shape, dtype's name, bytes]. One of more than
1 GiB is a map {"__msgpack_chunked_array__": true, "shape": {"0": …}, "chunks": {"0": array, …}}.
"""

import struct
from typing import Any

import numpy as np

from dialogpt_jax.convert.weight_file import BFLOAT16, ReadError, WeightFile, count_elements, show, view

DTYPES = {
    name: np.dtype(name)
    for name in (
        *("float64", "float32", "float16", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
}
DTYPES["bfloat16"] = BFLOAT16
CHUNKED = "__msgpack_chunked_array__"
MAX_DEPTH = 64  # GPT-2's names have six parts
ARRAY, SCALAR = 1, 3  # flax/serialization.py, _MsgpackExtType

# code → (kind, bytes of the length) or (number's format, its bytes)
_LENGTHS = {
    0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4),
    0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4),
    0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4),
    0xDC: ("array", 2), 0xDD: ("array", 4),
    0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
_FIXED_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_NUMBERS = {
    0xCA: struct.Struct(">f"), 0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"), 0xCD: struct.Struct(">H"), 0xCE: struct.Struct(">I"), 0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"), 0xD1: struct.Struct(">h"), 0xD2: struct.Struct(">i"), 0xD3: struct.Struct(">q"),
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def read_msgpack(data: np.ndarray) -> WeightFile:
    """A file of `flax.serialization.to_bytes`.

    Raises:
      ReadError: damaged, truncated, a type or dtype that Flax does not write, or no arrays in it.
    """
    tree, position = _decode(data, 0, 0)
    if position != len(data):
        raise ReadError(f"has {len(data) - position} bytes behind its msgpack content; it is damaged")
    if type(tree) is not dict:
        raise ReadError(f"is msgpack, but holds a {type(tree).__name__} and not the map that Flax writes")
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, Any] = {}
    _flatten(tree, "", tensors, metadata)
    if not tensors:
        raise ReadError("is msgpack, but holds no arrays; write it with flax.serialization.to_bytes(params)")
    return WeightFile(tensors, "flax msgpack", metadata)


def _flatten(tree: Any, name: str, tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Leaves of a tree under their joined names; its depth is bounded by `_decode`."""
    if type(tree) is dict and CHUNKED in tree:
        tree = _join_chunks(tree, name)
    if type(tree) is list:
        tree = {str(index): item for index, item in enumerate(tree)}
    if type(tree) is dict:
        for key, value in tree.items():
            _flatten(value, f"{name}/{key}" if name else key, tensors, metadata)
        return
    if name in tensors or name in metadata:
        raise ReadError(f"the name {show(name)} occurs twice; the file is damaged or made to mislead")
    if type(tree) is np.ndarray:
        tensors[name] = tree
    else:
        metadata[name] = tree


def _join_chunks(tree: dict, name: str) -> np.ndarray:
    """A large array, which Flax writes in flat pieces; the one case in which numbers are copied."""
    match tree:
        case {"shape": dict(sizes), "chunks": dict(pieces), **rest} if set(rest) == {CHUNKED}:
            shape: list[Any] = [sizes.get(str(axis)) for axis in range(len(sizes))]
            chunks = [pieces.get(str(index)) for index in range(len(pieces))]
            elements = count_elements(name, shape)
            flat = [chunk for chunk in chunks if type(chunk) is np.ndarray and chunk.ndim == 1]
            one_type = len(flat) == len(chunks) and len({chunk.dtype for chunk in flat}) == 1
            if one_type and sum(chunk.size for chunk in flat) == elements:
                return np.concatenate(flat).reshape(shape)
    raise ReadError(f"array {show(name)} is in chunks that do not fit together; the file is damaged")


def _take(data: np.ndarray, position: int, size: int) -> np.ndarray:
    if size > len(data) - position:
        raise ReadError(f"ends at byte {len(data)}, inside a msgpack value of {size} bytes; it is truncated or damaged")
    return data[position : position + size]


def _decode(data: np.ndarray, position: int, depth: int) -> tuple[Any, int]:
    """The value at a position, and the position behind it."""
    if depth > MAX_DEPTH:
        raise ReadError(f"nests deeper than {MAX_DEPTH} levels; it is damaged or made to mislead")
    code = int(_take(data, position, 1)[0])
    position += 1
    if code < 0x80:
        return code, position
    if code >= 0xE0:
        return code - 0x100, position
    if code in _CONSTANTS:
        return _CONSTANTS[code], position
    if code in _NUMBERS:
        number = _NUMBERS[code]
        return number.unpack(bytes(_take(data, position, number.size)))[0], position + number.size
    if code in _FIXED_EXT:
        return _decode_content("ext", data, position, _FIXED_EXT[code], depth)
    if code < 0x90:
        return _decode_content("map", data, position, code & 0x0F, depth)
    if code < 0xA0:
        return _decode_content("array", data, position, code & 0x0F, depth)
    if code < 0xC0:
        return _decode_content("str", data, position, code & 0x1F, depth)
    if code not in _LENGTHS:
        raise ReadError(f"has the byte 0x{code:02x} at {position - 1}, which begins no msgpack value; it is damaged")
    kind, size = _LENGTHS[code]
    length = int.from_bytes(bytes(_take(data, position, size)), "big")
    return _decode_content(kind, data, position + size, length, depth)


def _decode_content(kind: str, data: np.ndarray, position: int, length: int, depth: int) -> tuple[Any, int]:
    if kind == "map":
        found: dict[str, Any] = {}
        for _ in range(length):
            key, position = _decode(data, position, depth + 1)
            if type(key) is not str:
                raise ReadError(f"has a {type(key).__name__} as a name before byte {position}; Flax writes texts")
            if key in found:
                raise ReadError(f"the name {show(key)} occurs twice; the file is damaged or made to mislead")
            found[key], position = _decode(data, position, depth + 1)
        return found, position
    if kind == "array":
        items = []
        for _ in range(length):
            item, position = _decode(data, position, depth + 1)
            items.append(item)
        return items, position
    if kind == "ext":
        code, content = int(_take(data, position, 1)[0]), _take(data, position + 1, length)
        return _decode_extension(code, content), position + 1 + length
    content = _take(data, position, length)
    if kind == "bin":
        return content, position + length
    try:
        return bytes(content).decode("utf-8"), position + length
    except UnicodeDecodeError:
        raise ReadError(f"has a name that is no UTF-8 at byte {position}; it is damaged") from None


def _decode_extension(code: int, content: np.ndarray) -> Any:
    if code not in (ARRAY, SCALAR):
        raise ReadError(f"has a msgpack extension of type {code}; arrays (1) and scalars (3) are known")
    parts, end = _decode(content, 0, MAX_DEPTH - 2)
    match parts:
        case [list(shape), (str() | np.ndarray()) as name, np.ndarray() as numbers] if end == len(content):
            name = name if isinstance(name, str) else bytes(name).decode("latin-1")
            if name not in DTYPES:
                raise ReadError(f"holds an array of dtype {show(name)}; known: {', '.join(DTYPES)}")
            size = count_elements("in msgpack", shape) * DTYPES[name].itemsize
            if size != len(numbers):
                raise ReadError(f"holds an array of shape {show(shape)} in {name}, {size} bytes, in {len(numbers)}")
            array = view(numbers, DTYPES[name], "in msgpack", shape=shape)
            return array if code == ARRAY else array[()].item() if array.ndim == 0 else array
    raise ReadError("holds an array whose description is damaged")
