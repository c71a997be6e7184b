"""The writer of torch's zip format: what it writes is read back bit for bit, complete or not at all."""

import zipfile

import ml_dtypes
import numpy as np
import pytest
from weight_files import arrays

from dialogpt_jax.convert.read import read
from dialogpt_jax.convert.write_torch import ALIGNMENT, write_torch


def various() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kinds = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8, np.uint8]
    found = {f"w{index}.ä": (9 * rng.normal(size=(3, index))).astype(kind) for index, kind in enumerate(kinds)}
    found |= {"bool": rng.normal(size=300) > 0, "scalar": np.array(-1.5, np.float32)}
    found |= {"transposed": found["w1.ä"].T, "reversed": np.arange(5.0)[::-1], "big": np.arange(3, dtype=">f4")}
    return found


def test_what_is_written_is_read_back(tmp_path):
    wanted = various()
    write_torch(tmp_path / "x.pkl", wanted)
    found = read(tmp_path / "x.pkl")
    assert found.format == "pytorch zip"
    assert list(found.tensors) == list(wanted)
    for name, array in wanted.items():
        assert found.tensors[name].dtype == array.dtype.newbyteorder("=")
        assert found.tensors[name].shape == array.shape
        assert np.array_equal(found.tensors[name], array)


def test_records_are_stored_aligned_and_the_same_each_time(tmp_path):
    write_torch(tmp_path / "a.pkl", various())
    write_torch(tmp_path / "b.pkl", various())
    assert (tmp_path / "a.pkl").read_bytes() == (tmp_path / "b.pkl").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pkl") as archive:
        assert archive.testzip() is None
        assert archive.read("archive/byteorder") == b"little"
        assert archive.read("archive/version") == b"3\n"
        for record in archive.infolist():
            assert record.compress_type == zipfile.ZIP_STORED
            begin = record.header_offset + 30 + len(record.filename) + len(record.extra)
            assert begin % ALIGNMENT == 0
    assert all(array.flags.aligned for array in read(tmp_path / "a.pkl").tensors.values())


def test_the_same_memory_is_stored_once(tmp_path):
    array = np.arange(1000, dtype=np.float32).reshape(10, 100)
    write_torch(tmp_path / "x", {"wte": array, "head": array, "copy": array.copy(), "T": array.T, "part": array[:5]})
    found = read(tmp_path / "x").tensors
    assert np.shares_memory(found["wte"], found["head"])
    assert not np.shares_memory(found["wte"], found["copy"])
    for name, wanted in {"head": array, "copy": array, "T": array.T, "part": array[:5]}.items():
        assert np.array_equal(found[name], wanted)


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.pkl"
    write_torch(path, arrays())
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"'c' has dtype complex64.*float32"):
        write_torch(path, {"c": np.zeros(2, np.complex64)})
    with pytest.raises(TypeError, match="not a string"):
        write_torch(path, {3: np.zeros(2)})  # type: ignore[dict-item]
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_torch(path, various())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pkl"]
    with pytest.raises(FileNotFoundError):
        write_torch(tmp_path / "absent" / "x.pkl", arrays())
