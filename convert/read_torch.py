"""Files of torch.save, without torch: the zip format (since torch 1.6) and the older one, a run of pickles.

What flows in: the mapped bytes of a file. What flows out: its state dict as a `WeightFile`, every array a view into
those bytes (into a copy where a zip record is compressed). Pickles are read by `unpickle`, which can run nothing.

    zip:     <root>/data.pkl, and <root>/data/<key> for each storage
    legacy:  pickles of the magic number, the version, the machine; of the object; of the list of storage keys;
             then for each key its count (int64) and its numbers
"""

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dialogpt_jax.convert.torch_objects import ALLOWED, Storage, Tensor, find_state_dict, find_storage
from dialogpt_jax.convert.unpickle import MAX_STREAM, unpickle
from dialogpt_jax.convert.weight_file import ReadError, WeightFile, most_in_memory, show, view
from dialogpt_jax.convert.zip_records import check_unpacked, list_records, read_record

# torch/serialization.py
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001


def read_zip(data: np.ndarray) -> WeightFile:
    """A file in torch's zip format.

    Raises:
      ReadError: damaged, truncated, big-endian, not written by torch, or reaching for code.
    """
    records = list_records(data)
    pickles = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ReadError(
            f"is a zip file with {len(pickles)} records data.pkl; a file of torch.save has one (records: "
            f"{show(list(records)[:5])})"
        )
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in records:
        raise ReadError("is a TorchScript archive, a program; load it in torch and save its state_dict()")
    if f"{root}byteorder" in records:
        order = bytes(read_record(data, records[f"{root}byteorder"], max_size=16))
        if order != b"little":
            raise ReadError(f"has the byte order {show(order)}; save it on a little-endian machine")
    storages: dict[str, Storage] = {}
    stream = read_record(data, records[pickles[0]], max_size=MAX_STREAM).data
    value, _ = unpickle(stream, allowed=ALLOWED, persistent=lambda saved: _remember(storages, saved))

    def load(used: Mapping[str, Storage]) -> dict[str, np.ndarray]:
        names = {key: f"{root}data/{key}" for key in used}
        for name in names.values():
            if name not in records:
                raise ReadError(f"has no record {show(name)}, which its pickle refers to; the file is damaged")
        check_unpacked(data, (records[name] for name in names.values()))
        return {key: read_record(data, records[name]) for key, name in names.items()}

    return _assemble(value, storages, load, "pytorch zip")


def read_legacy(data: np.ndarray) -> WeightFile:
    """A file in torch's format before 1.6 (`_use_new_zipfile_serialization=False` since).

    Raises:
      ReadError: damaged, truncated, big-endian, not written by torch, or reaching for code.
    """
    stream = data.data
    storages: dict[Any, Any] = {}

    def refuse(_: Any) -> None:
        raise ReadError("the pickle stream refers to a storage before the tensors; the file is damaged")

    magic, position = unpickle(stream, allowed=ALLOWED, persistent=refuse)
    if type(magic) is not int or magic != MAGIC_NUMBER:
        raise ReadError("is a pickle, but not one of torch.save (it does not begin with torch's magic number)")
    version, position = unpickle(stream, position, allowed=ALLOWED, persistent=refuse)
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise ReadError(f"has version {show(version)} of torch's older format; known is {PROTOCOL_VERSION}")
    machine, position = unpickle(stream, position, allowed=ALLOWED, persistent=refuse)
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise ReadError("was not saved on a little-endian machine, or its header is damaged; save it on one that is")
    value, position = unpickle(stream, position, allowed=ALLOWED, persistent=lambda saved: _remember(storages, saved))
    keys, position = unpickle(stream, position, allowed=ALLOWED, persistent=refuse)
    blocks = _list_blocks(data, position, keys, storages)

    def load(used: Mapping[str, Storage]) -> dict[str, np.ndarray]:
        for key in used:
            if key not in blocks:
                raise ReadError(f"has no storage {show(key)}, which its pickle refers to; the file is damaged")
        return blocks

    return _assemble(value, storages, load, "pytorch legacy")


def _remember(storages: dict[str, Storage], saved_id: Any) -> Storage:
    """Notes a storage under its key; tensors that share it must agree on what it holds."""
    storage = find_storage(saved_id)
    first = storages.setdefault(storage.key, storage)
    if (first.dtype, first.elements) != (storage.dtype, storage.elements):
        raise ReadError(f"two tensors disagree about the type or size of storage {show(storage.key)}; damaged")
    return storage


def _list_blocks(data: np.ndarray, position: int, keys: Any, storages: Mapping[str, Storage]) -> dict[str, np.ndarray]:
    """Where each storage of a legacy file lies: behind the pickles, in the order of the keys, each with its count."""
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise ReadError("has a damaged list of storages")
    blocks = {}
    for key in keys:
        if key not in storages:
            raise ReadError(f"holds a storage {show(key)} that no tensor uses; the file is damaged")
        if position + 8 > len(data):
            raise ReadError(f"ends at byte {len(data)}, before storage {show(key)}; it is truncated, copy it again")
        (count,) = struct.unpack_from("<q", data.data, position)
        if count != storages[key].elements:
            raise ReadError(
                f"storage {show(key)} has {count} elements, and its tensors expect {storages[key].elements}"
            )
        dtype = storages[key].dtype
        size = count * (1 if dtype is None else dtype.itemsize)
        if position + 8 + size > len(data):
            raise ReadError(
                f"storage {show(key)} ends at byte {position + 8 + size} of {len(data)}; it is truncated, copy it again"
            )
        blocks[key] = data[position + 8 : position + 8 + size]
        position += 8 + size
    return blocks


def _assemble(
    value: Any,
    storages: Mapping[str, Storage],
    load: Callable[[Mapping[str, Storage]], dict[str, np.ndarray]],
    kind: str,
) -> WeightFile:
    """The state dict's tensors as arrays; what else was saved, an optimizer's moments, is not looked at."""
    records, metadata = find_state_dict(value)
    used = {tensor.storage.key: storages[tensor.storage.key] for tensor in records.values()}
    available = sum(_count_bytes(storage) for storage in used.values())
    claimed = sum(_claim_bytes(tensor) for tensor in records.values())
    # A stride of 0 repeats one number without end, and fills the memory of whoever copies it.
    if claimed > most_in_memory(available):
        raise ReadError(
            f"claims tensors of {show(claimed)} bytes over storages of {available}; no model shares that much, "
            "so it is damaged or made to fill the memory"
        )
    blocks = load(used)
    for key, storage in used.items():
        if len(blocks[key]) != _count_bytes(storage):
            raise ReadError(
                f"storage {show(key)} has {len(blocks[key])} bytes, and its tensors expect {_count_bytes(storage)}; "
                "the file is damaged"
            )
    tensors = {name: _look(name, tensor, blocks[tensor.storage.key]) for name, tensor in records.items()}
    return WeightFile(tensors, kind, metadata)


def _count_bytes(storage: Storage) -> int:
    return storage.elements * (1 if storage.dtype is None else storage.dtype.itemsize)


def _claim_bytes(tensor: Tensor) -> int:
    sizes = [size for size in tensor.shape if type(size) is int and size >= 0]  # the others are refused by `view`
    return math.prod(sizes) * tensor.dtype.itemsize


def _look(name: str, tensor: Tensor, block: np.ndarray) -> np.ndarray:
    storage = tensor.storage
    if storage.length is not None:  # a view of a storage, in old files; it has the storage's dtype
        size = _count_bytes(storage) // storage.elements if storage.elements else 1
        block = block[storage.start * size : (storage.start + storage.length) * size]
    return view(block, tensor.dtype, name, shape=tensor.shape, strides=tensor.strides, offset=tensor.offset)
