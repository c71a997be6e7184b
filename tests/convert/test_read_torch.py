"""Files of torch.save, made without torch: what they may hold, and every size, stride and offset that leads outside."""

import json
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from weight_files import (
    EMPTY,
    SOUND,
    arrays,
    integer,
    ints,
    legacy_bytes,
    mapping,
    put,
    refuse,
    refuse_bytes,
    storage,
    tensor,
    text,
    torch_parts,
    zip_bytes,
)

from dialogpt_jax.convert import zip_records
from dialogpt_jax.convert.read import read

BOTH = pytest.mark.parametrize("wrap", [zip_bytes, legacy_bytes], ids=["zip", "legacy"])
NUMBERS = np.arange(12, dtype=np.float32)


def block(wrap, count: int = 12, kind: str = "FloatStorage", key: str = "0", **options) -> bytes:
    return storage(key, kind, count, legacy=wrap is legacy_bytes, **options)


def one(wrap, shape, strides, offset=0, **options) -> bytes:
    """A file of one tensor over the numbers 0 to 11."""
    return wrap(mapping({"w": tensor(block(wrap, **options), shape, strides, offset)}), {"0": NUMBERS.tobytes()})


@BOTH
@pytest.mark.parametrize(
    ("shape", "strides", "offset", "wanted"),
    [
        ([3, 4], [4, 1], 0, NUMBERS.reshape(3, 4)),
        ([4, 3], [1, 4], 0, NUMBERS.reshape(3, 4).T),
        ([2, 2], [4, 2], 5, [[5, 7], [9, 11]]),
        ([2, 3], [0, 1], 9, [[9, 10, 11], [9, 10, 11]]),
        ([3, 3], [1, 1], 0, [[0, 1, 2], [1, 2, 3], [2, 3, 4]]),
        ([], [], 11, 11),
        ([1, 2], [2**62, 1], 10, [[10, 11]]),
        ([0, 5], [5, 1], 0, np.zeros((0, 5))),
        ([0], [1], 10**6, np.zeros(0)),
    ],
)
def test_strides_and_offsets(tmp_path, wrap, shape, strides, offset, wanted):
    found = read(put(tmp_path, one(wrap, shape, strides, offset))).tensors["w"]
    assert found.dtype == np.float32
    assert found.shape == tuple(shape)
    assert np.array_equal(found, wanted)


@BOTH
@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ([13], [1], 0),
        ([12], [1], 1),
        ([3, 4], [4, 2], 0),
        ([2], [11], 1),
        ([1], [1], 12),
        ([2], [-1], 5),
        ([-1], [1], 0),
        ([3], [1], -1),
        ([2], [2**62], 0),
        ([2], [2**100], 0),
        ([2**62, 2**62], [0, 0], 0),
        ([2**32, 2**32], [1, 1], 0),
        ([0, 2**62, 2**62], [0, 0, 0], 0),
        ([2**25], [0], 0),
        ([2], [1, 1], 0),
        ([2, 2], [1], 0),
        ([], [], 12),
        ([1] * 40, [1] * 40, 0),
    ],
)
def test_sizes_strides_and_offsets_outside_of_the_storage(tmp_path, wrap, shape, strides, offset):
    refuse_bytes(tmp_path, one(wrap, shape, strides, offset))


@BOTH
def test_many_tensors_that_repeat_one_storage_without_end(tmp_path, wrap):
    # 3 MiB each, and allowed alone; together they would be a gigabyte from 48 bytes.
    items = {f"w{index}": tensor(block(wrap), [2**18, 3], [0, 1]) for index in range(400)}
    refuse_bytes(tmp_path, wrap(mapping(items), {"0": NUMBERS.tobytes()}), "no model shares that much")


DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@BOTH
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("module", ["torch", "torch.cuda"])
def test_every_dtype(tmp_path, wrap, kind, module):
    wanted = np.array([[0, 1], [1, 0], [1, 1]]).astype(DTYPES[kind])
    options = {"itemsize": wanted.itemsize} if wrap is legacy_bytes else {}
    stream = mapping({"w": tensor(block(wrap, 6, kind, module=module), [3, 2], [2, 1])})
    found = read(put(tmp_path, wrap(stream, {"0": wanted.tobytes()}, **options))).tensors["w"]
    assert found.dtype == wanted.dtype
    assert found.tobytes() == wanted.tobytes()


@BOTH
def test_a_boolean_of_two(tmp_path, wrap):
    options = {"itemsize": 1} if wrap is legacy_bytes else {}
    refuse_bytes(
        tmp_path,
        wrap(mapping({"w": tensor(block(wrap, 2, "BoolStorage"), [2], [1])}), {"0": b"\x01\x02"}, **options),
        "boolean",
    )


@BOTH
def test_shared_storages_and_parameters(tmp_path, wrap):
    shared = tensor(block(wrap), [3, 4], [4, 1])
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + shared + b"\x88" + EMPTY + b"tR"
    stated = b"ctorch._utils\n_rebuild_parameter_with_state\n(" + shared + b"\x88" + EMPTY + b"}tR"
    typed = (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n("
        + block(wrap) + integer(0) + ints([12]) + ints([1]) + b"\x89" + EMPTY + b"t}tR"
    )  # fmt: skip
    old = b"ctorch._utils\n_rebuild_tensor\n(" + block(wrap) + integer(0) + ints([12]) + ints([1]) + b"tR"
    stream = mapping({"a": shared, "b": parameter, "c": stated, "d": typed, "e": old})
    found = read(put(tmp_path, wrap(stream, {"0": NUMBERS.tobytes()}))).tensors
    assert np.shares_memory(found["a"], found["b"])
    for array in found.values():
        assert np.array_equal(array.reshape(-1), NUMBERS)


def test_a_view_of_a_storage_in_an_old_file(tmp_path):
    view = b"(" + text("view") + integer(2) + integer(6) + b"t"
    stream = mapping({"w": tensor(block(legacy_bytes, view=view), [2, 2], [2, 1], 1)})
    found = read(put(tmp_path, legacy_bytes(stream, {"0": NUMBERS.tobytes()}))).tensors["w"]
    assert found.tolist() == [[3, 4], [5, 6]]
    for start, length in ((2, 4), (8, 6), (-1, 6), (2, -1), (0, 2**70)):
        view = b"(" + text("view") + integer(start) + integer(length) + b"t"
        stream = mapping({"w": tensor(block(legacy_bytes, view=view), [2, 2], [2, 1], 1)})
        refuse_bytes(tmp_path, legacy_bytes(stream, {"0": NUMBERS.tobytes()}))


@BOTH
def test_names_by_python_2_and_an_ordered_dict_of_pairs(tmp_path, wrap):
    pair = b"]" + b"U\x01w" + b"a" + tensor(block(wrap), [12], [1]) + b"a"
    stream = b"ccollections\nOrderedDict\n]" + pair + b"a\x85R"
    assert list(read(put(tmp_path, wrap(stream, {"0": NUMBERS.tobytes()}))).tensors) == ["w"]


@BOTH
def test_a_state_dict_inside_of_something(tmp_path, wrap):
    state = mapping({"w": tensor(block(wrap), [12], [1])})
    moments = mapping({"state": mapping({"exp_avg": tensor(block(wrap), [12], [1])})}, empty=b"}")
    for stream, metadata in [
        (mapping({"model": state, "epoch": integer(3), "name": text("x")}, empty=b"}"), {"epoch": 3, "name": "x"}),
        (mapping({"state_dict": state, "optimizer": moments, "best": b"N"}), {"best": None}),
        (mapping({"model_state_dict": state, "ema": state, "done": b"\x88"}), {"done": True}),
        (mapping({"module": mapping({"model": state}), "epoch": integer(3)}), {"epoch": 3}),
        (mapping({"weights": state, "args": mapping({"lr": text("1e-5")})}), {}),
        (state + text("on") + b"ctorch\ndevice\n" + text("cpu") + b"\x85Rs", {"on": None}),
        (mapping({"epoch": integer(1), "model": state + text("epoch") + integer(2) + b"s"}), {"epoch": 1}),
    ]:  # fmt: skip
        found = read(put(tmp_path, wrap(stream, {"0": NUMBERS.tobytes()})))
        assert list(found.tensors) == ["w"]
        assert found.metadata == metadata


@BOTH
def test_no_single_state_dict(tmp_path, wrap):
    refuse_bytes(tmp_path, wrap(EMPTY, {}), "no dict of tensors")
    refuse_bytes(tmp_path, wrap(mapping({"epoch": integer(1)}), {}), "no dict of tensors")
    state = mapping({"w": tensor(block(wrap), [12], [1])})
    deep = mapping({"a": mapping({"a": mapping({"a": mapping({"a": state})})})})
    for stream, word in [
        (mapping({"one": state, "two": state}), "several dicts"),
        (mapping({"model": state, "module": state}), "several dicts"),
        (b"]" + state + b"a", "a list"),
        (tensor(block(wrap), [12], [1]), "a Tensor"),
        (deep, "levels"),
        (mapping({"w": tensor(block(wrap), [12], [1]), "more": b"]" + state + b"a"}), "more of them inside 'more'"),
        (EMPTY + integer(1) + tensor(block(wrap), [12], [1]) + b"s", "name 1"),
        (state + text("w") + text("again") + b"s", "'w' occurs twice"),
    ]:
        refuse_bytes(tmp_path, wrap(stream, {"0": NUMBERS.tobytes()}), word)


@BOTH
def test_storages_that_do_not_fit(tmp_path, wrap):
    sound, numbers = tensor(block(wrap), [12], [1]), NUMBERS.tobytes()
    for count in (11, 13, -1, 2**61, 2**100):
        refuse_bytes(tmp_path, wrap(mapping({"w": tensor(block(wrap, count), [1], [1])}), {"0": numbers}))
    refuse_bytes(tmp_path, wrap(mapping({"w": sound}), {}), "which its pickle refers to")
    refuse_bytes(
        tmp_path, wrap(mapping({"w": sound, "v": tensor(block(wrap, 6, "DoubleStorage"), [1], [1])}), {"0": numbers})
    )
    refuse_bytes(tmp_path, wrap(mapping({"w": tensor(block(wrap, key="../x"), [1], [1])}), {"0": numbers}))
    refuse_bytes(
        tmp_path, wrap(mapping({"w": tensor(block(wrap, kind="float32"), [1], [1])}), {"0": numbers}), "no storage"
    )
    refuse_bytes(tmp_path, wrap(mapping({"w": b"(" + text("module") + b"ctorch\nTensor\nNNtQ"}), {}), "whole module")
    negated = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + block(wrap) + integer(0) + ints([1]) + ints([1]) + b"\x89" + EMPTY
    )
    refuse_bytes(tmp_path, wrap(mapping({"w": negated + b"}" + text("neg") + b"\x88stR"}), {"0": numbers}), "signs")


@BOTH
@pytest.mark.parametrize(
    "function", ["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"]
)
def test_wrong_arguments(tmp_path, wrap, function):
    name = f"ctorch._utils\n{function}\n".encode()
    for arguments in (b")", b"(NNNNNNNt", text("a") + b"\x85", b"(" + block(wrap) + b"NNNt", b"(" + b"N" * 40 + b"t"):
        refuse_bytes(
            tmp_path, wrap(mapping({"w": name + arguments + b"R"}), {"0": NUMBERS.tobytes()}), "make no tensor"
        )


def test_another_byte_order(tmp_path):
    stream, blocks = torch_parts(legacy=False)
    refuse_bytes(tmp_path, zip_bytes(stream, blocks, order=b"big"), "b'big'", "little-endian")
    stream, blocks = torch_parts(legacy=True)
    refuse_bytes(tmp_path, legacy_bytes(stream, blocks, little=False), "little-endian")


# The zip container


def test_deflated_records_are_read(tmp_path):
    found = read(put(tmp_path, zip_bytes(*torch_parts(legacy=False), deflate=True))).tensors
    assert all(np.array_equal(found[name], array) for name, array in arrays().items())


@pytest.mark.parametrize("deflate", [False, True])
def test_a_flipped_byte_of_any_record_shows(tmp_path, deflate):
    content = zip_bytes(*torch_parts(legacy=False), deflate=deflate)
    path = put(tmp_path, content)
    with zipfile.ZipFile(path) as archive:
        records = [record for record in archive.infolist() if not record.filename.endswith("version")]
    for record in records:
        begin = record.header_offset + 30 + len(record.filename)
        for position in range(begin, begin + record.compress_size, 7):
            damaged = bytearray(content)
            damaged[position] ^= 0x10
            if deflate and position == begin + record.compress_size - 1:
                continue  # it ends in bits that mean nothing
            refuse_bytes(tmp_path, bytes(damaged), record.filename)


def test_a_bomb(tmp_path):
    stream = mapping({"w": tensor(block(zip_bytes, 2**28), [1], [1])})
    content = zip_bytes(stream, {"0": bytes(2**20)}, deflate=True)
    size = struct.pack("<I", 2**20)
    assert content.count(size) == 2  # the record's two headers
    refuse_bytes(tmp_path, content.replace(size, struct.pack("<I", 2**30)), "fill the memory")
    refuse_bytes(tmp_path, content.replace(size, struct.pack("<I", 2**19)), "data/0")


def test_a_record_that_holds_more_than_it_says_is_not_unpacked_whole(tmp_path):
    stream = mapping({"w": tensor(block(zip_bytes, 16), [16], [1])})
    content = zip_bytes(stream, {"0": bytes(2**24)}, deflate=True)
    size = struct.pack("<I", 2**24)
    assert content.count(size) == 2  # the record's two headers
    path = put(tmp_path, content.replace(size, struct.pack("<I", 64)))
    tracemalloc.start()
    try:
        refuse(path, "data/0", "65 bytes, and the directory says 64")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**20


def deflated(count, size):
    """Storages of zeros that deflate packs a thousandfold, and the tensors that they are, all of it sound."""
    items = {f"w{i}": tensor(block(zip_bytes, size // 4, key=str(i)), [size // 4], [1]) for i in range(count)}
    return zip_bytes(mapping(items), {str(i): bytes(size) for i in range(count)}, deflate=True)


def test_many_small_bombs_are_one(tmp_path, monkeypatch):
    inflated = []
    whole = zip_records._inflate

    def inflate(packed, record):
        inflated.extend([record.filename] if "/data/" in record.filename else [])
        return whole(packed, record)

    monkeypatch.setattr(zip_records, "_inflate", inflate)
    content = deflated(9, 8 * 2**20)
    assert len(content) < 2**17
    refuse_bytes(tmp_path, content, "unpack to 75497472", "fill the memory")
    assert inflated == []
    assert len(read(put(tmp_path, deflated(7, 8 * 2**20))).tensors) == 7
    assert len(inflated) == 7


def test_many_shards_that_unfold_a_little_are_one_bomb(tmp_path):
    places = {}
    for number in range(3):
        items = {f"w{number}": tensor(block(zip_bytes, 6 * 2**20), [6 * 2**20], [1])}
        put(tmp_path, zip_bytes(mapping(items), {"0": bytes(24 * 2**20)}, deflate=True), f"{number}.bin")
        places[f"w{number}"] = f"{number}.bin"
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": places}))
    refuse(tmp_path / "i.json", "shards of which 3", "unfold to 75497472", "fill the memory")


def test_zip_files_that_are_no_checkpoints(tmp_path):
    refuse_bytes(tmp_path, SOUND["pytorch zip"]().replace(b"data.pkl", b"info.txt"), "0 records data.pkl")
    refuse_bytes(tmp_path, SOUND["pytorch zip"]().replace(b"model/data/1", b"model/data/0"), "two records")
    refuse_bytes(
        tmp_path, SOUND["pytorch zip"]().replace(b"model/version", b"model/c.pkl  "[:13].replace(b"  ", b"xx"))[:-1]
    )
    content = SOUND["pytorch zip"]()
    local = content.index(b"model/data/0")
    refuse_bytes(tmp_path, content[:local] + b"model/data/9" + content[local + 12 :], "differs from the directory")
    encrypted = bytearray(content)
    encrypted[content.rindex(b"PK\x01\x02model/data/0"[:4], 0, content.rindex(b"model/data/0")) + 8] |= 1
    refuse_bytes(tmp_path, bytes(encrypted), "encrypted")


# The older container


def test_legacy_files_that_are_none(tmp_path):
    sound = SOUND["pytorch legacy"]()
    refuse_bytes(tmp_path, b"\x80\x02K\x05.", "not one of torch.save")
    refuse_bytes(tmp_path, b"\x80\x02}.", "not one of torch.save")
    refuse_bytes(tmp_path, sound.replace(b"M\xe9\x03.", b"M\xea\x03."), "version 1002")
    stream, blocks = torch_parts(legacy=True)
    refuse_bytes(tmp_path, legacy_bytes(stream, {**blocks, "9": bytes(4)}), "'9'")
    refuse_bytes(tmp_path, legacy_bytes(stream, {**blocks, "0": bytes(4)}), "has 1 elements")
    assert read(put(tmp_path, sound + b"more")).format == "pytorch legacy"  # torch does not look there either


def test_a_count_that_leads_outside(tmp_path):
    for count in (2**62, -(2**62), 2**40):
        stream = mapping({"w": tensor(block(legacy_bytes, count), [1], [1])})
        content = legacy_bytes(stream, {"0": bytes(4)})
        assert content.endswith(struct.pack("<q", 1) + bytes(4))
        refuse_bytes(tmp_path, content[:-12] + struct.pack("<q", count) + bytes(4))
