"""safetensors files: what the library writes is read bit for bit, and every header that lies is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from weight_files import put, refuse, safetensors_bytes

from dialogpt_jax.convert.read import read


def entry(begin: object, end: object, shape: object = (2,), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refuse_content(folder, header: object, body: bytes = bytes(8), word: str = "") -> None:
    path = put(folder, safetensors_bytes(header, body), "model.safetensors")
    refuse(path, word)


def test_what_the_library_writes(tmp_path):
    rng = np.random.default_rng(0)
    kinds = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8]
    kinds += [np.uint64, np.uint32, np.uint16, np.uint8, np.bool_]
    wanted = {f"w{i}": (10 * rng.normal(size=(3, i))).astype(kind) for i, kind in enumerate(kinds)}
    wanted["scalar"] = np.array(2.5, np.float32)
    save_file(wanted, tmp_path / "x", metadata={"format": "pt", "note": "ä\n"})
    found = read(tmp_path / "x")
    assert found.format == "safetensors"
    assert found.metadata == {"format": "pt", "note": "ä\n"}
    assert set(found.tensors) == set(wanted)
    for name, array in wanted.items():
        assert found.tensors[name].dtype == array.dtype
        assert found.tensors[name].shape == array.shape
        assert found.tensors[name].tobytes() == array.tobytes()


def test_the_order_is_the_headers(tmp_path):
    header = {"b": entry(8, 16), "a": entry(0, 8)}
    path = put(tmp_path, safetensors_bytes(header, np.arange(4, dtype=np.float32).tobytes()))
    found = read(path).tensors
    assert list(found) == ["b", "a"]
    assert found["b"].tolist() == [2, 3]
    assert np.array_equal(load_file(path)["b"], found["b"])  # the library agrees


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "overlap"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, "overlap"),
        ({"a": entry(1, 9)}, "holes"),
        ({"a": entry(0, 16, (4,))}, "truncated"),
        ({"a": entry(0, 4, (1,))}, "damaged"),
        ({}, "describes 0"),
        ({"a": entry(0, 4)}, "takes 8 bytes"),
        ({"a": entry(8, 0)}, "offsets"),
        ({"a": entry(-8, 0)}, "offsets"),
        ({"a": entry(0, 2**70)}, "offsets"),
        ({"a": entry(0, 8.0)}, "entry"),
        ({"a": entry(False, 8)}, "offsets"),
        ({"a": entry("0", "8")}, "entry"),
        ({"a": entry(0, 8, (-2,))}, "shape"),
        ({"a": entry(0, 8, (-1, -2))}, "shape"),
        ({"a": entry(0, 8, (True, 2))}, "shape"),
        ({"a": entry(0, 8, (2.0,))}, "shape"),
        ({"a": entry(0, 8, (2**32, 2**32))}, "more than any memory"),
        ({"a": entry(0, 0, (0, 2**62, 2**62))}, "more than any memory"),
        ({"a": entry(0, 8, [1] * 40 + [2])}, "dimensions"),
        ({"a": entry(0, 8, 2)}, "entry"),
        ({"a": entry(0, 8, (8,), "F8_E4M3")}, "F8_E4M3"),
        ({"a": entry(0, 8, (2,), None)}, "entry"),
        ({"a": entry(0, 8) | {"more": 1}}, "entry"),
        ({"a": [0, 8]}, "entry"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, "entry"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "entry"),
        ({"__metadata__": {"a": 1}, "a": entry(0, 8)}, "__metadata__"),
        ({"__metadata__": [], "a": entry(0, 8)}, "__metadata__"),
        ({"a\nb" * 100: entry(0, 4)}, "takes 8 bytes"),
        (b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": {}}', "'a' twice"),
        (b'{"a": {"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "'dtype' twice"),
        (b'{"a": ', "no JSON"),
        (b'{"a": ' + b"[" * 100_000, "no JSON"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "no JSON"),
        (b'{"\xff": 1}', "no JSON"),
        (b'{"\\ud800": 1}', "entry"),
        (b"{}]", "no JSON"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_headers_that_lie(tmp_path, header, word):
    refuse_content(tmp_path, header, word=word)


def test_lengths_beyond_the_file(tmp_path):
    sound = safetensors_bytes({"a": entry(0, 8)}, bytes(8))
    for length in (2**64 - 1, 2**63, 2**32, 101_000_000, len(sound) - 7, 0):
        path = put(tmp_path, length.to_bytes(8, "little") + sound[8:])
        refuse(path, "header")


def test_a_boolean_of_two(tmp_path):
    refuse_content(tmp_path, {"a": entry(0, 8, (8,), "BOOL")}, b"\0\1\0\1\0\1\0\2", "boolean")
