"""The card of the bundled model: its data is read by the one reader of files."""

import gzip
import json

import pytest

from dialogpt_jax.bundled.card import read_by_source
from dialogpt_jax.data.formats import DataError


def test_dialogues_stand_by_their_source_and_a_broken_file_is_told(tmp_path):
    file = tmp_path / "valid.jsonl.gz"
    lines = [{"source": "abba"[i % 4], "turns": [f"{i}", f"{i * i}"]} for i in range(4000)]
    whole = gzip.compress("\n".join(map(json.dumps, lines)).encode())
    file.write_bytes(whole)
    found = read_by_source(file)
    assert list(found) == ["a", "b"]
    assert found["a"][:3] == [["0", "0"], ["3", "9"], ["4", "16"]]
    assert sum(map(len, found.values())) == 4000
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"valid\.jsonl\.gz, line \d+: the gzip file is broken from here"):
        read_by_source(file)
