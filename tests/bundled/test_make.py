"""The commands that make the bundled model: each once, in order, on the mix; a stopped training stops them."""

import gzip
import json
import shlex

import pytest
from fakes import tiny_bot

from dialogpt_jax.bundled import make


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
    monkeypatch.setattr(make, "load", lambda folder: None)
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


def test_from_nothing_a_small_model_grows_on_the_mix(told, folders):
    assert make.main(folders) == 0
    assert [words[0] for words in told] == ["data", "train", "data", "train", "convert", "card"]
    small, large = (" ".join(told[place]) for place in (0, 2))
    assert (small.count("everyday.jsonl.gz"), large.count("everyday.jsonl.gz")) == (0, make.EVERYDAY_TIMES)
    assert ("--max-length 256" in small, "--max-length 512" in large) == (True, True)
    first, second = (" ".join(told[place]) for place in (1, 3))
    assert first.startswith("train --config")
    assert second.startswith("train --init")
    assert make.HOW in second
    assert f"--steps {make.STEPS} --decay {make.DECAY} --seed 0" in second
    sizes = json.loads((make.Path(told[3][told[3].index("--config") + 1])).read_text())
    assert (sizes["n_layer"], sizes["n_positions"]) == (make.CONFIG.n_layer, make.CONFIG.n_positions)
    told.clear()
    assert make.main(folders) == 0  # what is done is not done again
    assert [words[0] for words in told] == ["convert", "card"]


def test_it_goes_on_from_a_model(told, folders, tmp_path):
    tiny_bot().save(tmp_path / "older")
    assert make.main([*folders, "--init", str(tmp_path / "older")]) == 0
    assert [words[0] for words in told] == ["data", "train", "convert", "card"]
    assert shlex.join(told[1]).startswith(f"train --init {tmp_path / 'older'} --config")


def test_a_backward_model_is_prepared_and_trained_backwards(told, folders, tmp_path):
    tiny_bot().save(tmp_path / "older")
    assert make.main([*folders, "--init", str(tmp_path / "older"), "--reverse"]) == 0
    assert [words[0] for words in told] == ["data", "train", "convert"]
    assert all("--reverse" in words for words in told[:2])
    assert shlex.join(told[1]).startswith(f"train --init {tmp_path / 'older'} ")
    assert told[0][told[0].index("--tokenizer") + 1] == str(tmp_path / "older")  # the two share it
    with pytest.raises(SystemExit, match="--reverse needs --init"):
        make.main([*folders, "--reverse"])


def test_a_stopped_training_stops_the_rest(told, folders, monkeypatch):
    monkeypatch.setattr(make, "dialogpt", lambda words: told.append(words) or 0)  # it leaves nothing
    assert make.main(folders) == 0
    assert [words[0] for words in told] == ["data", "train"]
