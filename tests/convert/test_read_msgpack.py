"""Flax's msgpack files: what Flax writes is read bit for bit, and bytes that it never writes are refused."""

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization
from weight_files import msgpack_array, put, refuse

from dialogpt_jax.convert import read_msgpack
from dialogpt_jax.convert.read import read

WORDS = np.arange(6, dtype=np.float32).reshape(2, 3)


def refuse_content(folder, content: object, word: str = "") -> None:
    encoded = content if isinstance(content, bytes) else msgpack.packb(content)
    path = put(folder, encoded, "flax_model.msgpack")
    refuse(path, word)


def test_what_flax_writes(tmp_path):
    kinds = [np.float32, np.float16, jnp.bfloat16, np.int32, np.int8, np.uint8, np.bool_, np.float64, np.int64]
    h = {str(i): {"attn": {"kernel": (WORDS % (i + 2)).astype(kind)}} for i, kind in enumerate(kinds)}
    tree = {"transformer": {"h": h, "wte": {"embedding": jnp.ones((2, 300))}}, "step": 3, "rate": np.float32(0.5)}
    tree |= {"name": "ä" * 40, "none": None, "list": [np.zeros(2), 1.5], "scalar": np.array(2.0), "big": -(2**40)}
    found = read(put(tmp_path, serialization.msgpack_serialize(tree)))
    assert found.format == "flax msgpack"
    wanted = {f"transformer/h/{i}/attn/kernel": leaf["attn"]["kernel"] for i, leaf in h.items()}
    wanted |= {"transformer/wte/embedding": np.ones((2, 300), np.float32)}
    wanted |= {"list/0": np.zeros(2), "scalar": np.array(2.0)}
    assert set(found.tensors) == set(wanted)
    for name, array in wanted.items():
        assert found.tensors[name].dtype == array.dtype
        assert found.tensors[name].shape == array.shape
        assert found.tensors[name].tobytes() == np.asarray(array).tobytes()
    plain = {"step": 3, "rate": 0.5, "name": "ä" * 40, "none": None, "list/1": 1.5, "big": -(2**40)}
    assert dict(found.metadata) == plain


def test_names_keep_the_files_order(tmp_path):
    content = msgpack.packb({name: msgpack_array([1], "float32", bytes(4)) for name in "cab"})
    assert list(read(put(tmp_path, content)).tensors) == ["c", "a", "b"]


def test_large_arrays_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
    tree = {"a": {"w": np.arange(30, dtype=np.float32).reshape(5, 6)}, "b": np.arange(2, dtype=np.float32)}
    content = serialization.msgpack_serialize(tree)
    assert b"__msgpack_chunked_array__" in content
    found = read(put(tmp_path, content)).tensors
    assert np.array_equal(found["a/w"], tree["a"]["w"])
    assert set(found) == {"a/w", "b"}


PIECE = msgpack_array([2], "float32", bytes(8))


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ({"0": 5}, {"0": PIECE, "1": PIECE}),
        ({"0": 4}, {"0": PIECE, "2": PIECE}),
        ({"1": 4}, {"0": PIECE, "1": PIECE}),
        ({"0": -4}, {"0": PIECE, "1": PIECE}),
        ({"0": 2**62, "1": 2**62}, {"0": PIECE}),
        ({"0": "4"}, {"0": PIECE, "1": PIECE}),
        ({"0": 4}, {"0": PIECE, "1": msgpack_array([1], "float64", bytes(8))}),
        ({"0": 4}, {"0": msgpack_array([2, 2], "float32", bytes(16))}),
        ({"0": 4}, {"0": 1}),
        ({"0": 0}, {}),
        ([4], {"0": PIECE, "1": PIECE}),
    ],
)
def test_chunks_that_do_not_fit(tmp_path, shape, chunks):
    tree = {"w": {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}}
    refuse_content(tmp_path, tree)
    refuse_content(tmp_path, {"w": tree["w"] | {"more": 1}}, "do not fit together")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"w": msgpack_array([2], "float32", bytes(7))}, "8 bytes, in 7"),
        ({"w": msgpack_array([2**62, 4], "float32", b"")}, "more than any memory"),
        ({"w": msgpack_array([0, 2**62, 2**62], "float32", b"")}, "more than any memory"),
        ({"w": msgpack_array([-1], "float32", bytes(4))}, "at least 0"),
        ({"w": msgpack_array([1.0], "float32", bytes(4))}, "integers"),
        ({"w": msgpack_array("1", "float32", bytes(4))}, "description"),
        ({"w": msgpack_array([1], "O", bytes(8))}, "dtype 'O'"),
        ({"w": msgpack_array([1], "V8", bytes(8))}, "dtype 'V8'"),
        ({"w": msgpack_array([1], ">f4", bytes(4))}, "dtype"),
        ({"w": msgpack_array([1], 3, bytes(4))}, "description"),
        ({"w": msgpack.ExtType(1, b"")}, "truncated"),
        ({"w": msgpack.ExtType(1, b"\x91" * 5000)}, "deeper"),
        ({"w": msgpack.ExtType(1, msgpack.packb(([1], "float32", bytes(4))) + b"\0")}, "description"),
        ({"w": msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))}, "type 2"),
        ({"w": msgpack.ExtType(77, b"import os")}, "type 77"),
        ({"w": msgpack.Timestamp(1)}, "type 255"),
        ({1: PIECE}, "int as a name"),
        ({"w": 1}, "no arrays"),
        ({"a/b": PIECE, "a": {"b": PIECE}}, "'a/b' occurs twice"),
        (b"\x82\xa1w\xc0\xa1w\xc0", "'w' occurs twice"),
        (msgpack.packb({"w": PIECE}) + b"\0", "behind"),
        (b"\x81\xa1w" * 100 + b"\xc0", "deeper"),
        (b"\x81\xa1w" + b"\x91" * 100_000, "deeper"),
        (b"\x81\xa1w\xdd\xff\xff\xff\xff", "truncated"),
        (b"\xdf\xff\xff\xff\xff", "truncated"),
        (b"\x81\xa1w\xc6\xff\xff\xff\xff", "truncated"),
        (b"\x81\xa1w\xdb\xff\xff\xff\xff", "truncated"),
        (b"\x81\xa1\xff\xc0", "UTF-8"),
        (b"\x81\xa1w\xc1", "0xc1"),
    ],
)
def test_bytes_that_flax_does_not_write(tmp_path, content, word):
    refuse_content(tmp_path, content, word)


NILS = b"\xdd" + (10**6).to_bytes(4, "big") + b"\xc0" * 10**6


@pytest.mark.parametrize(
    "content",
    [
        b"\x81\xa1w" + NILS,
        b"\x81\xa1w\xc9" + len(b"\x92" + NILS).to_bytes(4, "big") + b"\x01\x92" + NILS,  # where an array's shape stands
        b"\x81\xa1w\xdc\xff\xff" + (b"\x93\xc0\xc0\xc0") * 65535,
    ],
    ids=["a list", "a shape", "lists"],
)
def test_more_values_than_a_model_has_are_refused_before_they_are_built(tmp_path, monkeypatch, content):
    taken = []
    whole = read_msgpack._Decoder.take
    monkeypatch.setattr(read_msgpack._Decoder, "take", lambda self, size: taken.append(size) or whole(self, size))
    refuse_content(tmp_path, content, "holds over 200000 msgpack values")
    assert len(taken) < 200_100
