"""The commands that make the bundled model: each once, in order, on the mix; a stopped training stops them."""

import gzip
import json
import shlex

import jax
import numpy as np
import pytest
from fakes import tiny_bot

from dialogpt_jax.bundled import make
from dialogpt_jax.chat.loading import load


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What was run, as words; preparing and training leave the folder that they would."""
    commands = []

    def dialogpt(words):
        commands.append(words)
        if words[:2] == ["data", "prepare"]:
            (tmp_path / words[words.index("--tokenizer") - 1]).mkdir(parents=True)
        if words[0] == "train":
            tiny_bot().save(words[words.index("--export") + 1])
        return 0

    monkeypatch.setattr(make, "dialogpt", dialogpt)
    monkeypatch.setattr(make, "load", lambda folder, sense=None: None)
    monkeypatch.setattr(make, "_write_mean", lambda *folders: commands.append(["mean", *folders]))
    monkeypatch.setattr(make, "prefer", lambda words: commands.append(["prefer", *words]))
    monkeypatch.setattr(make, "tell_sense", lambda words: commands.append(["sense", *words]))
    monkeypatch.setattr(make, "read_curve", lambda path: [])
    monkeypatch.setattr(make, "write_card", lambda *args, **named: commands.append(["card", named["command"]]))
    return commands


@pytest.fixture
def folders(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("train", "valid", "everyday", "everyday-valid"):
        with gzip.open(corpus / f"{name}.jsonl.gz", "wt") as file:
            file.write(json.dumps({"source": name, "turns": ["Hello", "I am fine", "What is this"]}) + "\n")
    return ["--corpus", str(corpus), "--run", str(tmp_path / "run"), "--export", str(tmp_path / "export")]


def test_from_nothing_a_teacher_teaches_a_student_that_settles_and_learns_its_marks(told, folders):
    assert make.main(folders) == 0
    assert [words[0] for words in told] == ["data", "train"] * 3 + ["mean", "prefer", "convert", "sense", "card"]
    for place, name in enumerate(("teacher", "student", "settled")):
        stage, (data, train) = make.STAGES[name], (shlex.join(words) for words in told[2 * place : 2 * place + 2])
        assert data.count("everyday.jsonl.gz") == stage.everyday
        assert ("sample.jsonl.gz" in data) == (name == "settled")
        assert f"--steps {stage.steps} --decay {stage.decay} {stage.how}" in train
        assert ("--teacher " in train) == (name == "student")
        assert train.startswith("train --init" if name == "settled" else "train --config")
    assert told[3][told[3].index("--teacher") + 1] == told[1][told[1].index("--export") + 1]
    assert told[5][told[5].index("--init") + 1] == told[3][told[3].index("--export") + 1]
    run, corpus = make.Path(folders[3]), make.Path(folders[1])
    assert told[6][1:] == [run / name for name in ("student", "settled", "mean")]
    files = f"{run}/sample.jsonl.gz {corpus}/everyday.jsonl.gz"
    assert told[7][1:] == f"--init {run}/mean --export {run}/preferred --dialogues {files}".split()
    assert told[8][:2] == ["convert", f"{run}/preferred"]
    export = make.Path(folders[5])
    assert told[9][1:] == ["--model", str(export), "--export", str(export.parent / "sense_head.safetensors")]
    widths = [json.loads(make.Path(told[i][told[i].index("--config") + 1]).read_text())["n_embd"] for i in (1, 3)]
    assert widths == [make.TEACHER.n_embd, make.CONFIG.n_embd]
    told.clear()
    assert make.main(folders) == 0  # what is done is not done again
    assert [words[0] for words in told] == ["mean", "prefer", "convert", "sense", "card"]


def test_every_training_divides_its_batches_where_that_is_asked(told, folders):
    assert make.main([*folders, "--accumulate", "8"]) == 0
    trainings = [words for words in told if words[0] == "train"]
    assert [words[words.index("--accumulate") + 1] for words in trainings] == ["8"] * 3


def test_an_older_model_only_settles(told, folders, tmp_path):
    tiny_bot().save(tmp_path / "older")
    assert make.main([*folders, "--init", str(tmp_path / "older")]) == 0
    assert [words[0] for words in told] == ["data", "train", "mean", "prefer", "convert", "sense", "card"]
    assert shlex.join(told[1]).startswith(f"train --init {tmp_path / 'older'} --data")


def test_the_model_is_the_mean_of_what_it_was_before_and_after_it_settled(tmp_path):
    folders = [tiny_bot(seed=seed).save(tmp_path / f"{seed}") for seed in (0, 1)]
    one, other = map(load, folders)
    found = load(make._write_mean(*folders, tmp_path / "mean")).params
    for mean, a, b in zip(*map(jax.tree.leaves, (found, one.params, other.params)), strict=True):
        np.testing.assert_allclose(mean, (np.asarray(a) + np.asarray(b)) / 2, atol=1e-7)


def test_the_sample_is_every_twelfth_dialogue_and_all_of_who_it_is(tmp_path):
    lines = [{"source": make.PERSONAL if i % 5 == 1 else "a", "turns": [f"{i}", "b"]} for i in range(40)]
    (tmp_path / "all.gz").write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    with gzip.open(make._sample(tmp_path / "all.gz", tmp_path / "some.gz"), "rt") as found:
        assert [int(json.loads(line)["turns"][0]) for line in found] == [0, 1, 6, 11, 12, 16, 21, 24, 26, 31, 36]


def test_the_card_shows_no_folder_of_the_machine(told, folders):
    shown = make._shown()
    assert list(shown) == ["teacher", "student", "settled", "preferred"]
    assert all(
        "/" not in word or word.startswith(("RUN/", "CORPUS/")) for line in shown.values() for word in line.split()
    )


def test_a_backward_model_is_prepared_and_trained_backwards(told, folders, tmp_path):
    tiny_bot().save(tmp_path / "older")
    assert make.main([*folders, "--init", str(tmp_path / "older"), "--reverse"]) == 0
    assert [words[0] for words in told] == ["data", "train", "convert"]
    assert "--reverse" in told[0]
    assert shlex.join(told[1]).startswith(f"train --init {tmp_path / 'older'} ")
    assert told[0][told[0].index("--tokenizer") + 1] == str(tmp_path / "older")  # the two share it
    with pytest.raises(SystemExit, match="--reverse needs --init"):
        make.main([*folders, "--reverse"])


def test_a_stopped_training_stops_the_rest(told, folders, monkeypatch):
    monkeypatch.setattr(make, "dialogpt", lambda words: told.append(words) or 0)  # it leaves nothing
    assert make.main(folders) == 0
    assert [words[0] for words in told] == ["data", "train"]
