"""Shards: what is written is what is read, in few bytes, and only a whole folder opens."""

import errno
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from dialogpt_jax.data import shards
from dialogpt_jax.data.examples import Example
from dialogpt_jax.data.formats import DataError
from dialogpt_jax.data.packing import pack
from dialogpt_jax.data.shards import Writer, check_folder, open_shards, to_columns


def drawn_examples(count=60, vocab_size=50257, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        size = int(rng.integers(2, 30))
        weights_T = np.repeat(rng.choice([0.0, 0.3, 1.0], 10), 3)[:size].astype(np.float32)
        weights_T[0] = 0
        out.append(Example(rng.integers(0, vocab_size, size).astype(np.int32), weights_T))
    return out


def write(folder, examples, *, packed=False, vocab_size=50257, shard_tokens=200, parts=3):
    writer = Writer(folder, shard_tokens=shard_tokens)
    try:
        for part in range(parts):
            some = examples[part * len(examples) // parts : (part + 1) * len(examples) // parts]
            writer.append(to_columns(some, vocab_size=vocab_size, max_length=32))
        writer.finish({"pack": packed})
    finally:
        writer.close()
    return open_shards(folder)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("vocab_size", [65536, 65537])
def test_what_is_written_is_what_is_read(tmp_path, packed, vocab_size):
    examples = drawn_examples(vocab_size=vocab_size)
    examples[3].tokens_T[1] = vocab_size - 1
    examples = list(pack(examples, 32)) if packed else examples
    found = write(tmp_path / "data", examples, packed=packed, vocab_size=vocab_size)
    assert len(found.info["shards"]) > 3
    assert_same(found, examples)
    assert found.lengths.tolist() == [len(e.tokens_T) for e in examples]
    assert found.lengths.dtype == np.int32
    assert_same(found[-3:], examples[-3:])
    assert_same([found[-1]], examples[-1:])
    assert_same(pickle.loads(pickle.dumps(found)), examples)
    assert len(pickle.dumps(found)) < 1000  # the path, not the data
    with pytest.raises(IndexError, match=f"example {len(examples)} of {len(examples)}"):
        found[len(examples)]


def test_the_parts_in_which_rows_come_do_not_matter(tmp_path):
    examples = drawn_examples(70)
    one, other = (write(tmp_path / f"by{parts}", examples, parts=parts).path for parts in (1, 70))
    assert {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in other.iterdir()}


def test_a_token_costs_two_bytes_and_a_row_little(tmp_path):
    weights_T = np.repeat(np.float32([0, 1]), [20, 108])
    examples = [Example(np.arange(128, dtype=np.int32), weights_T)] * 1000
    folder = write(tmp_path / "data", examples, shard_tokens=1 << 28).path
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2.25 * 128 * 1000
    wide = write(tmp_path / "wide", examples, vocab_size=70_000, shard_tokens=1 << 28)
    assert sum(file.stat().st_size for file in wide.path.iterdir()) > 4 * 128 * 1000


def test_nothing_is_there_until_it_is_finished_and_nothing_is_left_if_it_never_is(tmp_path):
    examples = drawn_examples()
    writer = Writer(tmp_path / "data", shard_tokens=100)
    writer.append(to_columns(examples, vocab_size=50257, max_length=32))
    assert not (tmp_path / "data").exists()
    (aside,) = tmp_path.iterdir()
    with pytest.raises(DataError, match=r"no prepared data here, data\.json is missing"):
        open_shards(aside)  # as a kill would leave it
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    old = drawn_examples(seed=1)
    write(tmp_path / "data", old)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("append", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(shards._Growing, place, full)
            with pytest.raises(OSError, match="No space left"):
                write(tmp_path / "data", drawn_examples(seed=2))
        assert_same(open_shards(tmp_path / "data"), old)
        assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
    write(tmp_path / "data", drawn_examples(seed=2))
    assert_same(open_shards(tmp_path / "data"), drawn_examples(seed=2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_a_folder_that_cannot_be_moved_into_place_leaves_what_was_there(tmp_path, monkeypatch):
    old = drawn_examples(seed=1)
    write(tmp_path / "data", old)
    rename = Path.rename

    def refuse(self, target):
        if (self / "data.json").exists() and self.name.startswith(".data.") and not self.name.endswith(".old"):
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        write(tmp_path / "data", drawn_examples(seed=2))
    assert_same(open_shards(tmp_path / "data"), old)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_where_data_may_be_written(tmp_path):
    check_folder(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="a file is in the way"):
        check_folder(tmp_path / "file", replace=True)
    with pytest.raises(DataError, match="holds other files and is no prepared data"):
        check_folder(tmp_path, replace=True)
    write(tmp_path / "data", drawn_examples())
    with pytest.raises(DataError, match="prepared data is there already; --force replaces it"):
        check_folder(tmp_path / "data")
    check_folder(tmp_path / "data", replace=True)


def test_what_is_not_whole_does_not_open(tmp_path):
    with pytest.raises(DataError, match="no such folder; `dialogpt data prepare"):
        open_shards(tmp_path / "none")
    folder = write(tmp_path / "data", drawn_examples()).path
    info = (folder / "data.json").read_text()

    def broken(match, change):
        saved = {file: file.read_bytes() for file in folder.iterdir()}
        change()
        with pytest.raises(DataError, match=match):
            open_shards(folder)
        for file, content in saved.items():
            file.write_bytes(content)

    broken("runs-00001.npy is missing", (folder / "runs-00001.npy").unlink)
    broken("broken data", lambda: (folder / "tokens-00000.npy").write_bytes(b"x" * 40))
    broken("broken data", lambda: (folder / "tokens-00000.npy").write_bytes(b""))
    shorter = (folder / "tokens-00001.npy").read_bytes()[:-20]
    broken("broken data", lambda: (folder / "tokens-00001.npy").write_bytes(shorter))
    broken("shard 0 is not the one", lambda: np.save(folder / "pieces-00000.npy", np.zeros(3, np.uint16)))
    broken("broken data", lambda: (folder / "data.json").write_text(info[:-30]))
    newer = json.dumps(json.loads(info) | {"format": 2})
    broken("format 2, this program reads 1", lambda: (folder / "data.json").write_text(newer))
    broken("it has no shard", lambda: (folder / "data.json").write_text('{"format": 1, "shards": []}'))
    broken("broken data", lambda: (folder / "data.json").write_text("[]"))
    assert len(open_shards(folder)) == 60


def test_what_a_killed_process_left_is_taken_away_and_what_a_living_one_writes_is_not(tmp_path):
    living = Writer(tmp_path / "data")
    left = tmp_path / ".data.0123abcd"
    left.mkdir()
    (left / "tokens-00000.npy").write_bytes(b"half")
    moved = tmp_path / ".data.4567cdef.old"  # old data, which a process moved away before it was killed
    moved.mkdir()
    (moved / "data.json").write_text("whole")
    other = tmp_path / ".data2.0123abcd"
    other.mkdir()
    writer = Writer(tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [other.name, living.folder.name, writer.folder.name, "data"]
    )
    assert (tmp_path / "data" / "data.json").read_text() == "whole"
    moved.mkdir()
    writer.close()
    living.close()
    Writer(tmp_path / "data").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "data"]
