"""Preparing: the same folder for any number of workers, each broken line named and the rest used, nothing half-written."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data import prepare as module
from dialogpt_jax.data.check import summary
from dialogpt_jax.data.example_options import ExampleOptions, make_example_options, tokenizer_sha256
from dialogpt_jax.data.examples import examples, windows
from dialogpt_jax.data.formats import DataError
from dialogpt_jax.data.prepare import encode_files, options_for_file, prepare, survey
from dialogpt_jax.data.shards import Writer, open_shards
from dialogpt_jax.errors import one_line
from dialogpt_jax.text.tokenizer import Tokenizer

EOS = 256
PLAIN = ExampleOptions(EOS)
PATIENCE = 240  # seconds; a process that takes longer has failed anyway
COUNT_BOUND = 1.25  # of peak memory, at 20 times the lines: what a heap's fragments may add


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A directory with a tokenizer of bytes; its ids are the bytes of a text in some order."""
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["bytes"], 257).save(folder)
    return folder


def write_corpus(file, count, seed=0):
    rng = np.random.default_rng(seed)
    with file.open("w") as out:
        for number in range(count):
            turns = ["word " * int(rng.integers(1, 8)) + str(number) for _ in range(int(rng.integers(2, 7)))]
            weights = rng.choice([0.0, 0.3, 1.0], len(turns)).tolist()
            out.write(json.dumps({"turns": turns, "weights": weights}) + "\n")
    return file


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def as_lists(examples):
    return [[None if a is None else a.tolist() for a in example] for example in examples]


@pytest.mark.parametrize("choices", [{}, {"pack": True, "reverse": True, "train_on": "last"}])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path, tokenizer, monkeypatch, choices):
    monkeypatch.setattr(module, "CHUNK_LINES", 7)
    files = [write_corpus(tmp_path / "one.jsonl", 60), write_corpus(tmp_path / "two.jsonl", 23, seed=1)]
    with files[0].open("a") as out:
        out.write("broken\n")
    options = ExampleOptions(EOS, 64, **choices)
    for workers in (1, 2, 3):
        data, report = prepare(files, tmp_path / f"by{workers}", tokenizer, options, workers=workers)
    first = contents(tmp_path / "by1")
    assert contents(tmp_path / "by2") == first
    assert contents(tmp_path / "by3") == first
    assert b"by1" not in first["data.json"]
    in_memory, same_report = encode_files(files, Tokenizer.load(tokenizer), options)
    assert as_lists(data) == as_lists(in_memory)
    assert report.counts == same_report.counts == survey(files, tokenizer, options, workers=2).counts
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["by1", "by2", "by3", "one.jsonl", "two.jsonl"]


def test_a_file_named_twice_has_twice_its_share_of_the_mix(tmp_path, tokenizer):
    some, other = write_corpus(tmp_path / "some.jsonl", 7), write_corpus(tmp_path / "other.jsonl", 5, seed=1)
    prepare([some, other, some], tmp_path / "mix", tokenizer, PLAIN, workers=2)
    found, lists = open_shards(tmp_path / "mix"), {}
    for file in (some, other):
        prepare([file], tmp_path / file.stem, tokenizer, PLAIN, workers=1)
        lists[file] = as_lists(list(open_shards(tmp_path / file.stem)))
    assert as_lists(list(found)) == [*lists[some], *lists[other], *lists[some]]


def test_the_examples_are_those_of_the_dialogues(tmp_path, tokenizer):
    turns = ["Hi there!", "Hello.", "What now?", "<|endoftext|> is text", "x" * 90, "Bye."]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"turns": turns}))
    data, report = prepare([tmp_path / "talk.jsonl"], tmp_path / "data", tokenizer, ExampleOptions(EOS, 64))
    ids = Tokenizer.load(tokenizer).encode_batch(turns)
    assert as_lists(data) == as_lists(windows(ids, eos=EOS, max_length=64))
    # 10 + 7 + 10 + 22 tokens; then the end of a turn and 63 of the 91 that do not fit; then their last 59 and 5
    assert sum(int((e.tokens_T == EOS).sum()) for e in data) == 4 + 1 + 2  # a typed one is none
    counts = {
        "examples": 3,
        "tokens": 49 + 64 + 64,
        "targets": 39 + 63 + 5,
        "turns": 5,
        "eos_targets": 4,
        "dialogues": 1,
        "split": 1,
    }
    assert report.counts == {**counts, "rows": 3, "lines": 1, "longer": 1}
    assert report.lengths.tolist() == [*[0] * 49, 1, *[0] * 14, 2]
    assert data.info["counts"] == report.counts
    expected = {
        "max_length": 64,
        "eos_token_id": EOS,
        "vocab_size": 257,
        "tokenizer_sha256": tokenizer_sha256(Tokenizer.load(tokenizer)),
        "train_on": "replies",
        "reverse": False,
        "pack": False,
        "joined": 0,
        "dropped": {},
    }
    assert {name: data.info[name] for name in expected} == expected


BROKEN = {
    1: ('{"turns": ["a", "b"], "weights": [1, 0]}', "no turn that weighs anything after the first"),
    2: ("{oops", "not JSON"),
    3: ("no tab", "not JSON"),
    5: ('{"turns": ["one"]}', "one turn"),
    6: ('{"turns": ["a", ""]}', "turn 2 is empty"),
    8: ('{"turns": ["a", "%s"]}' % ("b" * 10_000_000), "the line has 10,000,021 bytes"),
    9: ('{"turns": ["a", "b"], "weights": [1]}', "1 weight for 2 turns"),
    10: ('{"turns": ["a", "\udcff"]}', "byte 18 (0xff) is not UTF-8"),
}


@pytest.mark.parametrize("workers", [1, 2])
def test_each_broken_line_is_named_and_the_rest_is_prepared(tmp_path, tokenizer, workers):
    file = tmp_path / "talk.jsonl"
    lines = [BROKEN[n][0] if n in BROKEN else f'{{"turns": ["{n}", "good"]}}' for n in range(1, 15)]
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    data, report = prepare([file], tmp_path / "data", tokenizer, ExampleOptions(EOS), workers=workers)
    assert len(data) == 14 - len(BROKEN)
    told = [json.loads(line) for line in (data.path / "dropped.jsonl").read_text().splitlines()]
    assert [(line["file"], line["line"]) for line in told] == [(str(file), number) for number in BROKEN]
    for line, (_, reason) in zip(told, BROKEN.values(), strict=True):
        assert line["reason"].startswith(reason)
    assert report.dropped["not JSON"][0] == 2
    assert [where[1] for where in report.dropped["not JSON"][1]] == [2, 3]
    assert sum(count for count, _ in report.dropped.values()) == len(BROKEN)
    assert data.info["dropped"] == {kind: count for kind, (count, _) in report.dropped.items()}


def test_what_teaches_nothing_is_refused_and_leaves_nothing(tmp_path, tokenizer):
    def refused(match, *lines, options=PLAIN, **choices):
        file = tmp_path / "talk.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(DataError, match=match) as caught:
            prepare([file], tmp_path / "data", tokenizer, options, **choices)
        assert "\n" not in str(caught.value)
        assert [entry.name for entry in tmp_path.iterdir()] == ["talk.jsonl"]

    refused("no line; read are lines of JSON with turns, messages, ShareGPT's conversations")
    refused(r"none of 3 lines is an example; fewer than two turns: 2, such as .*line 1: one turn", ["a"], ["b"], 5)
    refused("nothing to train on: 1, such as", {"turns": ["a", "b"], "weights": [1, 0]}, allow_no_eos=True)
    spoken = {"turns": ["a", "b"], "speakers": ["Ann", "Bob"]}
    refused(
        "nobody is called 'Joe' here; the speakers are Ann, Bob", spoken, options=ExampleOptions(EOS, train_on="Joe")
    )
    refused("'Joe' here; no turn has a speaker", ["a", "b"], options=ExampleOptions(EOS, train_on="Joe"))
    refused("none of 1 line is an example; nothing to train on", spoken, options=ExampleOptions(EOS, train_on="Ann"))
    refused(
        "so that a model would never learn to stop: each of 2 trained turns is cut at 8 tokens; raise --max-length",
        *[["a", "a long reply"]] * 2,
        options=ExampleOptions(EOS, 8),
    )
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prepare([tmp_path / "nowhere.jsonl"], tmp_path / "data", tokenizer, ExampleOptions(EOS))
    endless = ([tmp_path / "talk.jsonl"], tmp_path / "data", tokenizer, ExampleOptions(EOS, 8))
    with pytest.raises(DataError, match="no EOS is a target"):
        prepare(*endless, replace=True)
    data, _ = prepare(*endless, allow_no_eos=True)
    assert len(data) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_gzip_stops_everything_and_leaves_nothing(tmp_path, tokenizer, workers):
    write_corpus(tmp_path / "talk.jsonl", 9000)
    file = tmp_path / "talk.jsonl.gz"
    file.write_bytes(gzip.compress((tmp_path / "talk.jsonl").read_bytes())[:-9])
    before = sorted(tmp_path.iterdir())
    for read in (
        lambda: prepare([file], tmp_path / "data", tokenizer, PLAIN, workers=workers),
        lambda: survey([file], tokenizer, PLAIN, workers=workers),
        lambda: encode_files([file], Tokenizer.load(tokenizer), PLAIN),
    ):
        with pytest.raises(DataError, match=r"talk.jsonl.gz, line \d+: the gzip file is broken"):
            read()
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_of_single_exchanges_is_joined_and_any_other_is_not(tmp_path, tokenizer):
    def chosen(*lines, **said):
        file = tmp_path / "talk.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
        return options_for_file(file, EOS, 96, **said)

    pairs = [[f"{i}?", f"{i}!"] for i in range(20)]
    assert chosen(*pairs, 5) == ExampleOptions(EOS, 96, joined=3)
    assert chosen(*pairs, ["a", "b", "c"]).joined == chosen(*pairs, reverse=True).joined == chosen(5).joined == 0
    assert chosen(*pairs, joined=1, max_length=64, train_on="last") == ExampleOptions(EOS, 64, "last", joined=1)
    with pytest.raises(DataError, match="--max-length is 97; the model's context is 96"):
        chosen(*pairs, max_length=97)

    options, file = chosen(*pairs), tmp_path / "talk.jsonl"
    for workers in (1, 2):
        data, report = prepare([file], tmp_path / f"data{workers}", tokenizer, options, workers=workers)
        ids = Tokenizer.load(tokenizer).encode_batch
        alone = examples([ids(pair) for pair in pairs], eos=EOS, max_length=96)
        assert as_lists(data[:20]) == as_lists(alone)
        joined = [e for e in data[20:] if (e.tokens_T == EOS).sum() > 2]
        assert len(joined) == len(data) - 20 == report.counts["joined"] > 10
        assert data.info["joined"] == 3
    assert contents(tmp_path / "data1") == contents(tmp_path / "data2")
    assert f"{report.counts['joined']} of them are several dialogues joined" in summary(report, options)[1]
    alone = survey([file], tokenizer, ExampleOptions(EOS, 96))
    assert summary(alone, ExampleOptions(EOS, 96))[-1].startswith(
        "every dialogue is one exchange: a bot that learns them"
    )


def test_data_that_is_there_is_replaced_only_by_whole_data(tmp_path, tokenizer):
    good, bad = write_corpus(tmp_path / "good.jsonl", 20), tmp_path / "bad.jsonl"
    prepare([good], tmp_path / "data", tokenizer, ExampleOptions(EOS))
    before = contents(tmp_path / "data")
    with pytest.raises(DataError, match="--force replaces it"):
        prepare([good], tmp_path / "data", tokenizer, ExampleOptions(EOS, 32))
    bad.write_text('["a"]')
    with pytest.raises(DataError, match="none of 1 line"):
        prepare([bad], tmp_path / "data", tokenizer, ExampleOptions(EOS, 32), replace=True)
    assert contents(tmp_path / "data") == before
    data, _ = prepare([good], tmp_path / "data", tokenizer, ExampleOptions(EOS, 32), replace=True)
    assert data.info["max_length"] == 32


@pytest.mark.parametrize("place", ["append", "finish"])
def test_a_full_disk_names_the_folder_that_was_to_be_written(tmp_path, tokenizer, monkeypatch, place):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Writer, place, full)
    with pytest.raises(OSError, match="No space left") as caught:
        prepare([write_corpus(tmp_path / "t.jsonl", 5)], tmp_path / "data", tokenizer, ExampleOptions(EOS), workers=1)
    assert one_line(caught.value) == f"{tmp_path / 'data'}: No space left on device"
    assert not list(tmp_path.glob("*data*"))


def test_a_recipe_knows_the_end_and_the_context_of_its_model(tmp_path, tokenizer):
    assert make_example_options(tokenizer) == ExampleOptions(EOS, 128, "replies", False, False, 0)
    folder = tmp_path / "model"
    folder.mkdir()
    Tokenizer.load(tokenizer).save(folder)
    config = GPT2Config(vocab_size=300, n_positions=48, n_embd=32, n_layer=1, n_head=2, eos_token_id=299)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    assert make_example_options(folder, max_length=48, pack=True) == ExampleOptions(299, 48, pack=True)
    with pytest.raises(DataError, match=r"max_length is 49; the model in .* has a context of 48"):
        make_example_options(folder, max_length=49)
    with pytest.raises(DataError, match="max_length is 1; an example has at least 2"):
        make_example_options(folder, max_length=1)
    other = Tokenizer.train(["other bytes, other merges"], 270)
    assert (
        tokenizer_sha256(other)
        != tokenizer_sha256(Tokenizer.load(tokenizer))
        == tokenizer_sha256(Tokenizer.load(folder))
    )


def test_an_eos_beyond_the_tokenizer_fits_into_the_shards(tmp_path, tokenizer):
    data, _ = prepare([write_corpus(tmp_path / "t.jsonl", 5)], tmp_path / "data", tokenizer, ExampleOptions(70_000))
    assert any(70_000 in e.tokens_T for e in data)


def test_a_killed_prepare_leaves_no_folder_that_opens_and_no_process(tmp_path, tokenizer):
    pipe = tmp_path / "talk.jsonl"
    os.mkfifo(pipe)
    words = ["data", "prepare", str(pipe), str(tmp_path / "data"), "--tokenizer", str(tokenizer), "--workers", "2"]
    running = subprocess.Popen([sys.executable, "-m", "dialogpt_jax.cli.main", *words])
    try:
        lines = b'{"turns": ["a question", "an answer"]}\n' * 4096
        with pipe.open("wb") as out:
            for _ in range(8):
                out.write(lines)
            out.flush()
            wait_for(lambda: list(tmp_path.glob(".data.*/tokens-00000.npy")))
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
            if children.exists():
                pids = children.read_text().split()
                assert len(pids) == 2
            running.send_signal(signal.SIGKILL)
            running.wait()
    finally:
        running.kill()
        running.wait()
    assert not (tmp_path / "data").exists()
    for folder in tmp_path.glob(".data.*"):
        with pytest.raises(DataError):
            open_shards(folder)
    if children.parent.parent.parent.parent.exists():
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    pipe.unlink()
    assert list(tmp_path.glob(".data.*"))
    prepare([write_corpus(pipe, 30)], tmp_path / "data", tokenizer, ExampleOptions(EOS))  # the next one is not hindered
    assert not list(tmp_path.glob(".data.*"))  # and takes away what was left


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


MEASURED = """
import json, pathlib, sys
from dialogpt_jax.data.prepare import prepare
from dialogpt_jax.data.example_options import ExampleOptions

peak = [0, 0]

def high_water(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

def sample(*_):
    pids = pathlib.Path("/proc/self/task").glob("*/children")
    inside = [high_water(pid) for file in pids for pid in file.read_text().split()]
    peak[0], peak[1] = high_water("self"), max(peak[1], *inside)

file, folder, tokenizer = sys.argv[1:]
data, report = prepare([file], folder, tokenizer, ExampleOptions(256), workers=2, progress=sample)
print(json.dumps({"rows": len(data), "tokens": report.counts["tokens"], "parent_kB": peak[0], "worker_kB": peak[1]}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_two_million_dialogues_take_no_more_memory_than_a_hundred_thousand(tmp_path, tokenizer):
    found = {}
    for count in (100_000, int(os.environ.get("DIALOGPT_TESTS_DIALOGUES", "2_000_000"))):
        file = tmp_path / f"{count}.jsonl"
        with file.open("w") as out:
            for number in range(count):
                turns = [f"how are you, number {number}?", "fine, and you?" + " so" * (number % 9), "well."]
                out.write(json.dumps({"turns": turns}) + "\n")
        command = [sys.executable, "-c", MEASURED, str(file), str(tmp_path / f"data{count}"), str(tokenizer)]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[count] = json.loads(done.stdout)
        megabytes = file.stat().st_size / 1e6
        print(f"{count:,} dialogues, {megabytes:.0f} MB in {time.monotonic() - began:.0f} s: {found[count]}")
        assert found[count]["rows"] == count
        file.unlink()
    few, many = found.values()
    for who in ("parent_kB", "worker_kB"):
        assert many[who] < COUNT_BOUND * few[who]
