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

from dialogpt_jax.convert.weight_file import NUMPY_DTYPES, ReadError, WeightFile, count_elements, show, view
from dialogpt_jax.errors import counted

CHUNKED = "__msgpack_chunked_array__"
MAX_DEPTH = 64  # GPT-2's names have six parts
# Names, numbers, arrays and what holds them: some 6,000 in GPT-2 XL, three times as many with an optimizer's moments.
MAX_VALUES = 200_000
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
    decoder = _Decoder(data, MAX_VALUES)
    tree = decoder.decode(0)
    if decoder.position != len(data):
        raise ReadError(
            f"has {counted(len(data) - decoder.position, 'bytes')} behind its msgpack content; it is damaged"
        )
    if type(tree) is not dict:
        raise ReadError(f"is msgpack, but holds a {type(tree).__name__} and not the map that Flax writes")
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, Any] = {}
    _flatten(tree, "", tensors, metadata)
    if not tensors:
        raise ReadError("is msgpack, but holds no arrays; write it with flax.serialization.to_bytes(params)")
    return WeightFile(tensors, "flax msgpack", metadata)


def _flatten(tree: Any, name: str, tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Leaves of a tree under their joined names; its depth is bounded by `_Decoder`."""
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


class _Decoder:
    """The values of a block of bytes, one after the other.

    Attributes:
      data: the block.
      position: where the next value begins.
      left: how many values may still come. A value of one byte takes tens in memory and a step of Python.
    """

    def __init__(self, data: np.ndarray, left: int) -> None:
        self.data, self.position, self.left = data, 0, left

    def take(self, size: int) -> np.ndarray:
        begin = self.position
        if size > len(self.data) - begin:
            raise ReadError(
                f"ends at byte {len(self.data)}, inside a msgpack value of {size} bytes; it is truncated or damaged"
            )
        self.position = begin + size
        return self.data[begin : self.position]

    def decode(self, depth: int) -> Any:
        """The next value."""
        if depth > MAX_DEPTH:
            raise ReadError(f"nests deeper than {MAX_DEPTH} levels; it is damaged or made to mislead")
        self.left -= 1
        if self.left < 0:
            raise ReadError(f"holds over {MAX_VALUES} msgpack values, more than any model's; it is no file of weights")
        code = int(self.take(1)[0])
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            return _NUMBERS[code].unpack(bytes(self.take(_NUMBERS[code].size)))[0]
        if code in _FIXED_EXT:
            return self.decode_content("ext", _FIXED_EXT[code], depth)
        if code < 0x90:
            return self.decode_content("map", code & 0x0F, depth)
        if code < 0xA0:
            return self.decode_content("array", code & 0x0F, depth)
        if code < 0xC0:
            return self.decode_content("str", code & 0x1F, depth)
        if code not in _LENGTHS:
            raise ReadError(
                f"has the byte 0x{code:02x} at {self.position - 1}, which begins no msgpack value; it is damaged"
            )
        kind, size = _LENGTHS[code]
        return self.decode_content(kind, int.from_bytes(bytes(self.take(size)), "big"), depth)

    def decode_content(self, kind: str, length: int, depth: int) -> Any:
        if kind == "map":
            found: dict[str, Any] = {}
            for _ in range(length):
                key = self.decode(depth + 1)
                if type(key) is not str:
                    raise ReadError(
                        f"has a {type(key).__name__} as a name before byte {self.position}; Flax writes texts"
                    )
                if key in found:
                    raise ReadError(f"the name {show(key)} occurs twice; the file is damaged or made to mislead")
                found[key] = self.decode(depth + 1)
            return found
        if kind == "array":
            return [self.decode(depth + 1) for _ in range(length)]
        if kind == "ext":
            code = int(self.take(1)[0])
            return self.decode_extension(code, self.take(length))
        begin = self.position
        content = self.take(length)
        if kind == "bin":
            return content
        try:
            return bytes(content).decode("utf-8")
        except UnicodeDecodeError:
            raise ReadError(f"has a name that is no UTF-8 at byte {begin}; it is damaged") from None

    def decode_extension(self, code: int, content: np.ndarray) -> Any:
        if code not in (ARRAY, SCALAR):
            raise ReadError(f"has a msgpack extension of type {code}; arrays (1) and scalars (3) are known")
        inner = _Decoder(content, self.left)  # a sound description has a few values
        parts = inner.decode(MAX_DEPTH - 2)
        match parts:
            case [list(shape), (str() | np.ndarray()) as name, np.ndarray() as numbers] if inner.position == len(
                content
            ):
                return _build_array(
                    code, shape, name if isinstance(name, str) else bytes(name).decode("latin-1"), numbers
                )
        raise ReadError("holds an array whose description is damaged")


def _build_array(code: int, shape: list[Any], dtype: str, numbers: np.ndarray) -> Any:
    if dtype not in NUMPY_DTYPES:
        raise ReadError(f"holds an array of dtype {show(dtype)}; known: {', '.join(NUMPY_DTYPES)}")
    size = count_elements("in msgpack", shape) * NUMPY_DTYPES[dtype].itemsize
    if size != len(numbers):
        raise ReadError(f"holds an array of shape {show(shape)} in {dtype}, {size} bytes, in {len(numbers)}")
    array = view(numbers, NUMPY_DTYPES[dtype], "in msgpack", shape=shape)
    return array if code == ARRAY else array[()].item() if array.ndim == 0 else array
