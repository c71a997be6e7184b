"""The door to every weight file: a path in, names and arrays out, whatever the file is called.

What flows in: the path of a safetensors file, a torch file (zip or older format), Flax's msgpack, or the index of a
sharded one. What flows out: a `WeightFile` of mapped arrays, or one `ReadError`. The format is decided by the
content, whatever the suffix says. Torch is not needed and nothing in a file can run.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from dialogpt_jax.convert.read_msgpack import read_msgpack
from dialogpt_jax.convert.read_safetensors import load_json, read_safetensors
from dialogpt_jax.convert.read_torch import read_legacy, read_zip
from dialogpt_jax.convert.weight_file import ReadError, WeightFile, map_file, most_in_memory, show

__all__ = ["ReadError", "WeightFile", "read"]

MAX_INDEX = 10 * 2**20  # an index lists names: 100 KB in the largest models

# What people hand over instead of a weight file, and what to do about it.
_NOT_WEIGHTS = (
    (rb"version https://git-lfs", "is a git-lfs pointer, not the weights; run `git lfs pull` or download the file"),
    (rb"\s*<(!doctype|html|\?xml|head)", "is a web page, not the weights; the download failed, fetch the file again"),
    (rb"\x89HDF\r\n", "is an HDF5 file (TensorFlow or Keras); take the same model's safetensors or .bin"),
    (rb"\x1f\x8b", "is compressed by gzip; unpack it first"),
    (rb"\xfd7zXZ|BZh|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!", "is a compressed archive; unpack it first"),
    (rb"GGUF", "is a GGUF file (llama.cpp); take the same model's safetensors or .bin"),
    (rb"\x93NUMPY", "is a single NumPy array, not a model's weights"),
    (rb"PK\x05\x06", "is an empty zip file; download or copy it again"),
)


def read(path: str | PathLike[str]) -> WeightFile:
    """Reads a weight file, or all shards that an index names.

    Args:
      path: a file of tensors, or `model.safetensors.index.json` or `pytorch_model.bin.index.json`. Its name does not
        matter, its content does.

    Returns:
      The tensors as read-only arrays in the file's own names, dtypes and layout; nothing is renamed or transposed.

    Raises:
      ReadError: no such file, an unknown format, damaged or truncated content, or a pickle that asks for anything but
        tensors (refused by name; nothing is executed). One line that begins with the path.
    """
    try:
        data = map_file(path)
        if _is_json(bytes(data[:8])):
            return _read_shards(data, Path(path).parent)
        return _choose_reader(data)(data)
    except ReadError as error:
        raise ReadError(f"{fspath(path)}: {error}") from None


def _is_json(head: bytes) -> bool:
    # A safetensors file may begin with "{" too, as the low byte of a length; its next seven hold zeros.
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and b"\0" not in head


def _choose_reader(data: np.ndarray) -> Callable[[np.ndarray], WeightFile]:
    head = bytes(data[:512])
    if head.startswith(b"PK\x03\x04"):
        return read_zip
    for pattern, advice in _NOT_WEIGHTS:
        if re.match(pattern, head, re.IGNORECASE):
            raise ReadError(advice)
    # A pickle begins with PROTO and its number; one of protocol 0 with a name, "c" or "i", module, newline.
    if re.match(rb"\x80[\x00-\x0f]|[ci][\w.]+\n[\w.]+\n|\(S'", head) and head[8:9] != b"{":
        return read_legacy
    if head[8:9] == b"{":
        return read_safetensors
    if re.match(rb"[\x81-\x8f\xde\xdf]", head):
        return read_msgpack
    if head[257:262] == b"ustar":
        raise ReadError("is a tar archive, or a file of torch before 0.2; load it in torch and save its state_dict()")
    kind = "a text file" if head.isascii() and b"\0" not in head else "no format known here"
    raise ReadError(
        f"is {kind} (it begins with {show(head[:16])}); "
        "readable are safetensors, files of torch.save, Flax's msgpack, and the index of shards"
    )


def _read_shards(data: np.ndarray, folder: Path) -> WeightFile:
    """All tensors that an index places in the files beside it, in the index's order."""
    if len(data) > MAX_INDEX:
        raise ReadError(f"is JSON of {len(data)} bytes, too large for an index of shards")
    index = load_json(bytes(data).removeprefix(b"\xef\xbb\xbf"), "the index")
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise ReadError("is JSON without a `weight_map`, so no index of shards; name the file of tensors itself")
    files = dict.fromkeys(_check_shard_name(name, file) for name, file in places.items())
    shards = _read_each(folder, files)
    formats = {shard.format for shard in shards.values()}
    if len(formats) > 1:
        raise ReadError(f"names shards of different formats ({', '.join(sorted(formats))}); take them from one model")
    for file, shard in shards.items():
        _check_shard(file, shard.tensors, places)
    tensors = {name: shards[file].tensors[name] for name, file in places.items()}
    return WeightFile(tensors, f"{formats.pop()} (sharded)", next(iter(shards.values())).metadata)


def _check_shard_name(name: str, file: Any) -> str:
    # By the name alone: in the Hub's cache, the files of a folder are links that lead out of it.
    if not isinstance(file, str) or not re.fullmatch(r"[^/\\:\0]+", file) or file in (".", ".."):
        raise ReadError(f"places {show(name)} in {show(file)}; a shard must be a file in the same folder")
    return file


def _read_each(folder: Path, files: Iterable[str]) -> dict[str, WeightFile]:
    """The shards by their names. Each may unfold a little; a thousand of them may not, either."""
    shards: dict[str, WeightFile] = {}
    size = unfolded = 0
    for file in files:
        shards[file] = _read_shard(folder / file)
        size += (folder / file).stat().st_size
        unfolded += sum(array.nbytes for array in shards[file].tensors.values())
        if unfolded > most_in_memory(size):
            raise ReadError(
                f"names shards of which {len(shards)}, of {size} bytes together, unfold to {unfolded}; no weights do: they "
                "are damaged or made to fill the memory"
            )
    return shards


def _read_shard(path: Path) -> WeightFile:
    try:
        data = map_file(path)
        if _is_json(bytes(data[:8])):
            raise ReadError("is JSON, and a shard must hold tensors")
        return _choose_reader(data)(data)
    except ReadError as error:
        raise ReadError(f"shard {show(path.name)}: {error}") from None


def _check_shard(file: str, tensors: Mapping[str, np.ndarray], places: Mapping[str, Any]) -> None:
    expected = {name for name, place in places.items() if place == file}
    missing, surplus = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
    if missing or surplus:
        name = (missing or surplus)[0]
        what = "lacks" if missing else "holds"
        raise ReadError(
            f"and shard {show(file)} differ: it {what} {show(name)} ({len(missing)} missing, {len(surplus)} not "
            "placed there); take the index and all shards from one model"
        )
