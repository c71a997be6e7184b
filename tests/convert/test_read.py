"""The door to every weight file: content decides what a file is, and no damage is anything but a `ReadError`."""

import contextlib
import json
import mmap
import os

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from weight_files import SOUND, arrays, put, refuse, safetensors_bytes

from dialogpt_jax.convert import read_safetensors as safetensors
from dialogpt_jax.convert.read import ReadError, WeightFile, read

FORMATS = pytest.mark.parametrize("kind", list(SOUND))


def same(found: WeightFile, wanted: dict[str, np.ndarray]) -> bool:
    return list(found.tensors) == list(wanted) and all(
        found.tensors[name].dtype == array.dtype and np.array_equal(found.tensors[name], array)
        for name, array in wanted.items()
    )


@FORMATS
@pytest.mark.parametrize("name", ["model.bin", "model.safetensors", "flax_model.msgpack", "small.pkl", "no_suffix"])
def test_content_decides_the_format_and_not_the_suffix(tmp_path, kind, name):
    found = read(put(tmp_path, SOUND[kind](), name))
    assert found.format == kind
    sorts = kind in ("safetensors", "flax msgpack")  # those two writers do; torch keeps the order
    wanted = {name: arrays()[name] for name in found.tensors} if sorts else arrays()
    assert same(found, wanted)
    assert set(wanted) == set(arrays())


def is_mapped(array: object) -> bool:
    """Whether the memory of an array is a mapped file's: nothing was copied."""
    while not isinstance(array, mmap.mmap | type(None)):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return array is not None


@FORMATS
def test_arrays_are_views_that_cannot_be_written_and_that_jax_reads(tmp_path, kind):
    found = read(str(put(tmp_path, SOUND[kind]())))
    for name, array in found.tensors.items():
        assert isinstance(array, np.ndarray)
        assert not isinstance(array, np.memmap)
        assert not array.flags.writeable
        assert is_mapped(array)
        assert np.array_equal(np.asarray(jnp.asarray(array)), arrays()[name])  # unaligned in some files


@FORMATS
def test_a_file_cut_anywhere_is_refused(tmp_path, kind):
    content = SOUND[kind]()
    for cut in sorted({*range(0, len(content), 3), *range(max(0, len(content) - 30), len(content))}):
        refuse(put(tmp_path, content[:cut]))


@FORMATS
def test_a_flipped_byte_anywhere_is_refused_or_gives_arrays(tmp_path, kind):
    rng, content, messages = np.random.default_rng(0), SOUND[kind](), []
    path = put(tmp_path, content)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= int(rng.choice([0x01, 0x80, 0xFF, rng.integers(1, 256)]))
        path.write_bytes(damaged)
        try:
            found = read(path)
        except ReadError as error:
            messages.append(str(error))
        else:
            assert all(isinstance(array, np.ndarray) for array in found.tensors.values())
    assert not any("\n" in message for message in messages)
    assert len(messages) > len(content) // 4  # the loop did look at damage


@FORMATS
def test_random_bytes_behind_a_sound_beginning(tmp_path, kind):
    rng, content = np.random.default_rng(1), SOUND[kind]()
    path = tmp_path / "model.bin"
    for _ in range(300):
        keep = int(rng.integers(9, len(content)))
        path.write_bytes(content[:keep] + rng.bytes(int(rng.integers(0, 200))))
        with contextlib.suppress(ReadError):
            read(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 351265583\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"<html lang='en'>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"\x1f\x8b\x08\x00" + bytes(64), "gzip"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"Entry not found", "a text file"),
        (b"\xff\xfe\xfd" * 30, "no format known here"),
        (b'{"error": "not found"}', "weight_map"),
        (b'{"error": ', "no JSON"),
        (bytes(300), "no format known here"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, word):
    refuse(put(tmp_path, content), word)


def test_a_path_without_a_file(tmp_path):
    refuse(tmp_path / "absent.bin", "no such file")
    refuse(tmp_path, "directory")
    refuse(tmp_path / "a\0b", "cannot be opened")
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "pipe", "not a regular file")


# Shards


def make_shards(folder, kind: str = "safetensors", **changes: str | None) -> object:
    """Two shards and their index; `changes` edits the weight map."""
    names = list(arrays())
    save_file({names[0]: arrays()[names[0]]}, folder / "a-00001.safetensors", metadata={"format": "pt"})
    save_file({name: arrays()[name] for name in names[1:]}, folder / "a-00002.safetensors")
    places = {names[0]: "a-00001.safetensors", names[1]: "a-00002.safetensors", names[2]: "a-00002.safetensors"}
    places = {name: place for name, place in (places | changes).items() if place is not None}
    index = {"metadata": {"total_size": 40}, "weight_map": places}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2))
    return path


def test_shards_are_read_as_one(tmp_path):
    found = read(make_shards(tmp_path))
    assert found.format == "safetensors (sharded)"
    assert found.metadata == {"format": "pt"}
    assert same(found, arrays())


def test_shards_of_torch(tmp_path):
    put(tmp_path, SOUND["pytorch zip"](), "pytorch_model-1.bin")
    index = {"weight_map": dict.fromkeys(reversed(arrays()), "pytorch_model-1.bin")}
    found = read(put(tmp_path, json.dumps(index).encode(), "pytorch_model.bin.index.json"))
    assert found.format == "pytorch zip (sharded)"
    assert same(found, dict(reversed(arrays().items())))  # the index's order


def test_shards_behind_links_as_in_the_cache_of_the_hub(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    path = make_shards(tmp_path / "snapshot")
    for number, shard in enumerate(sorted((tmp_path / "snapshot").glob("a-*"))):
        shard.rename(tmp_path / "blobs" / str(number))
        shard.symlink_to(tmp_path / "blobs" / str(number))
    assert same(read(path), arrays())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": "b.safetensors"}, ["b.safetensors", "no such file"]),
        ({"scale": "../a-00002.safetensors"}, ["../a-00002.safetensors", "same folder"]),
        ({"scale": "/etc/passwd"}, ["same folder"]),
        ({"scale": "x\\y"}, ["same folder"]),
        ({"scale": ".."}, ["same folder"]),
        ({"scale": ""}, ["same folder"]),
        ({"scale": 3}, ["same folder"]),
        ({"scale": "a-00001.safetensors"}, ["a-00001.safetensors", "lacks 'scale'"]),
        ({"scale": None}, ["a-00002.safetensors", "holds 'scale'"]),
        ({"extra": "a-00001.safetensors"}, ["lacks 'extra'"]),
        ({"scale": "model.safetensors.index.json"}, ["must hold tensors"]),
    ],
)
def test_an_index_that_does_not_fit_its_shards(tmp_path, changes, words):
    refuse(make_shards(tmp_path, **changes), *words)


def test_shards_of_two_formats_and_damaged_ones(tmp_path):
    path = make_shards(tmp_path)
    shard = tmp_path / "a-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    refuse(path, "a-00002.safetensors", "truncated")
    shard.write_bytes(SOUND["pytorch zip"]())
    refuse(path, "different formats")


@pytest.mark.parametrize(
    "content",
    [
        *(b"{}", b'{"weight_map": {}}', b'{"weight_map": []}', b'{"weight_map": {"a": "x", "a": "y"}}', b'{"\xff": 1}'),
        *(b'{"weight_map": ' + b"[" * 100_000, b'{"weight_map": ' + b"9" * 10_000 + b"}"),
    ],
    ids=map(str, range(7)),
)
def test_an_index_that_is_none(tmp_path, content):
    refuse(put(tmp_path, content, "model.safetensors.index.json"))


def test_far_too_many_tensors_are_refused_before_they_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "_check_entry", None)
    header = {f"{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(20_001)}
    refuse(
        put(tmp_path, safetensors_bytes(header)), "has 20001 tensors; a GPT-2 has a dozen a layer, and at most 20000"
    )


def test_a_safetensors_header_whose_length_begins_like_json(tmp_path):
    # 0x7b is both "{" and a length of 123: the seven zeros behind it decide.
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    found = read(put(tmp_path, safetensors_bytes(header.ljust(0x7B), np.float32(2).tobytes())))
    assert found.tensors["w"].tolist() == [2.0]
