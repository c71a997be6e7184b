"""Weight files of every format, made byte by byte without torch, so that hostile ones can be made too.

What flows in: opcodes, headers, bytes. What flows out: files. The pickle opcodes are written by hand, not by this
package's writer, so that reader and writer do not share a mistake.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgpack
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save

from dialogpt_jax.convert.read import ReadError, read

MAGIC = 0x1950A86A20F9469CFC6C
START, STOP = b"\x80\x02", b"."
EMPTY = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def ints(values) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(key: str, kind: str, count: int, *, legacy: bool = False, view: bytes = b"N", module="torch") -> bytes:
    names = f"c{module}\n{kind}\n".encode()
    return b"(" + text("storage") + names + text(key) + text("cpu") + integer(count) + view * legacy + b"tQ"


def tensor(block: bytes, shape, strides, offset: int = 0) -> bytes:
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return function + b"(" + block + integer(offset) + ints(shape) + ints(strides) + b"\x89" + EMPTY + b"tR"


def mapping(items: Mapping[str, bytes], empty: bytes = EMPTY) -> bytes:
    return empty + b"(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def zip_bytes(
    stream: bytes, storages: Mapping[str, bytes], *, deflate: bool = False, order: bytes = b"little"
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        archive.writestr("model/data.pkl", START + stream + STOP)
        archive.writestr("model/byteorder", order)
        for key, content in storages.items():
            archive.writestr(f"model/data/{key}", content)
        archive.writestr("model/version", b"3\n")
    return buffer.getvalue()


def legacy_bytes(stream: bytes, storages: Mapping[str, bytes], *, itemsize: int = 4, little: bool = True) -> bytes:
    machine = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(value, protocol=2) for value in (MAGIC, 1001, machine))
    keys = pickle.dumps(list(storages), protocol=2)
    blocks = b"".join(struct.pack("<q", len(content) // itemsize) + content for content in storages.values())
    return head + START + stream + STOP + keys + blocks


def safetensors_bytes(header: object, body: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def msgpack_array(shape, dtype: object, content: bytes, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, content)))


def arrays() -> dict[str, np.ndarray]:
    """Two rows that differ, a vector, a scalar."""
    rng = np.random.default_rng(0)
    return {
        "h.0.weight": rng.normal(size=(2, 3)).astype(np.float32),
        "h.0.bias": rng.normal(size=3).astype(np.float32),
        "scale": np.array(rng.normal(), np.float32),
    }


def torch_parts(*, legacy: bool) -> tuple[bytes, dict[str, bytes]]:
    """The stream and the storages of `arrays()`."""
    items, blocks = {}, {}
    for index, (name, array) in enumerate(arrays().items()):
        strides = [stride // 4 for stride in array.strides]
        items[name] = tensor(storage(str(index), "FloatStorage", array.size, legacy=legacy), array.shape, strides)
        blocks[str(index)] = array.tobytes()
    return mapping(items), blocks


# Format → the bytes of a small, sound file that holds `arrays()`.
SOUND: Mapping[str, Callable[[], bytes]] = {
    "safetensors": lambda: save(arrays(), metadata={"format": "pt"}),
    "pytorch zip": lambda: zip_bytes(*torch_parts(legacy=False)),
    "pytorch legacy": lambda: legacy_bytes(*torch_parts(legacy=True)),
    "flax msgpack": lambda: serialization.msgpack_serialize(arrays()),
}


def refuse(path: str | os.PathLike[str], *words: str) -> str:
    """The one line with which a file is refused; it begins with the path and holds the words."""
    with pytest.raises(ReadError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{os.fspath(path)}: ")
    assert "\n" not in message
    assert len(message) < 600 + len(os.fspath(path))
    for word in words:
        assert word in message
    return message


def put(folder: Path, content: bytes, name: str = "model.bin") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refuse_bytes(folder: Path, content: bytes, *words: str) -> str:
    return refuse(put(folder, content), *words)
