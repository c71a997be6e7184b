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
            for source in (name, "personality"):
                file.write(json.dumps({"source": source, "turns": ["Hello", "I am fine", "What is this"]}) + "\n")
    return ["--corpus", str(corpus), "--run", str(tmp_path / "run"), "--export", str(tmp_path / "export")]


def test_from_nothing_a_small_model_grows_on_the_mix(told, folders, tmp_path):
    assert make.main(folders) == 0
    assert [words[0] for words in told] == [*["data", "train"] * 3, "convert", "card"]
    mixes = [" ".join(told[place]) for place in (0, 2, 4)]
    assert [mix.count("everyday.jsonl.gz") for mix in mixes] == [0, 5, 6]
    assert [mix.count("personality.jsonl.gz") for mix in mixes] == [0, 0, 3]
    assert [f"--max-length {length}" in mix for length, mix in zip((256, 512, 512), mixes, strict=True)] == [True] * 3
    with gzip.open(tmp_path / "run" / "personality.jsonl.gz", "rt") as file:
        assert [json.loads(line)["source"] for line in file] == ["personality"]
    first, second, third = (" ".join(told[place]) for place in (1, 3, 5))
    assert first.startswith("train --config")
    assert second.startswith(f"train --init {tmp_path / 'run' / 'first'} ")
    assert third.startswith(f"train --init {tmp_path / 'run' / 'second'} ")
    assert (make.SECOND_HOW in second, make.HOW in third) == (True, True)
    assert f"--steps {make.STEPS} --decay {make.DECAY} --seed 1" in third
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
