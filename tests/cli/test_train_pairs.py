"""`dialogpt train --pairs`: from a language model to a ranker's directory, on from there, and what does not go together."""

import json

import jax
import numpy as np
import pytest
from ranking.rankers import CONFIG, TOKENIZER, draw_ranker
from training.test_pairwise import drawn

import dialogpt_jax as dg
from dialogpt_jax.cli import data_pairs
from dialogpt_jax.cli.main import main
from dialogpt_jax.data.pairs import read_pairs
from dialogpt_jax.parallel import distributed, mesh
from dialogpt_jax.score_row import trunk_of

SIZES = ("--steps", "4", "--batch-size", "8", "--buckets", "1", "--learning-rate", "1e-2", "--warmup", "1")
SIZES += ("--log-every", "2")


@pytest.fixture
def train(capfd, monkeypatch, tmp_path):
    """`dialogpt train WORDS…` on one device of eight: (status, stdout, stderr)."""
    make_mesh = mesh.make_mesh
    monkeypatch.setenv("DIALOGPT_NO_COMPILATION_CACHE", "1")
    monkeypatch.setattr(distributed, "initialize", lambda: None)  # before all else of jax, which has run here
    monkeypatch.setattr(mesh, "make_mesh", lambda sizes: make_mesh(sizes, jax.devices()[:1]))
    for name, count, seed in (("pairs", 24, 0), ("valid", 9, 1)):
        lines = [json.dumps(pair._asdict()) + "\n" for pair in drawn(count, seed)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    dg.write_directory(tmp_path / "model", trunk_of(draw_ranker().params), CONFIG, TOKENIZER)
    monkeypatch.chdir(tmp_path)

    def call(*words):
        capfd.readouterr()
        status = main(["train", "--pairs", "pairs.jsonl", *words])
        return status, *capfd.readouterr()

    return call


def test_a_language_model_becomes_a_ranker_and_that_goes_on(train):
    words = ("--init", "model", "--valid", "valid.jsonl", "--valid-dialogues", "7", "--out", "run", *SIZES)
    status, out, err = train(*words, "--export", "ranker")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].startswith("7 held-out pairs: a coin has valid_loss 0.693")
    assert sum("valid_accuracy" in line for line in lines if line.startswith("step")) == 2  # first and last
    assert not any("ppl" in line for line in lines)
    assert lines[-1] == "wrote ranker: load_ranker('ranker') of dialogpt_jax scores replies by it"
    first = dg.load_ranker("ranker")

    status, out, _ = train(*words, "--export", "later", "--resume")
    assert status == 0
    assert "going on from step 4" in out
    jax.tree.map(np.testing.assert_array_equal, dg.load_ranker("later").params, first.params)

    status, out, _ = train("--init", "ranker", "--out", "other", *SIZES, "--export", "again")
    assert status == 0
    moved = dg.load_ranker("again").params["score"]["kernel"] - first.params["score"]["kernel"]
    assert 0 < np.abs(moved).max() < 0.1  # it began where the other ended, and not as a head's row


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--out is missing"),
        (("--out", "run", "--data", "talk.jsonl"), "--data does not go with --pairs"),
        (("--out", "run", "--train-on", "all"), "--train-on does not go with --pairs"),
        (("--out", "run", "--reverse"), "--reverse does not go with --pairs"),
        (("--out", "run", "--teacher", "model"), "--teacher does not go with --pairs"),
        (("--out", "run", "--recipe", "paper"), "--recipe is DialoGPT's and does not go with --pairs"),
        (("--out", "run", "--prompt", "Hi!"), "--prompt does not go with --pairs"),
        (("--out", "run", "--init", "model", "--valid", "model/config.json"), "model/config.json, line 1: not JSON"),
    ],
    ids=["out", "data", "train on", "reverse", "teacher", "recipe", "prompt", "no pairs"],
)
def test_what_does_not_go_together_is_one_line_before_anything_is_written(train, tmp_path, words, told):
    before = sorted(path.name for path in tmp_path.iterdir())
    status, out, err = train(*words, *SIZES)
    assert (status, out) == (1, "")
    assert err.startswith(f"dialogpt train: {told}")
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_pairs_are_made_of_dialogues(tmp_path, capsys, monkeypatch):
    """Against turns and against replies, a pair of each in turn; what is there is not replaced."""

    class Echo:
        def replies(self, contexts, *, seed, progress):
            progress(len(contexts), len(contexts))
            return [f"{turns[-1]}, {seed}" for turns in contexts]

    monkeypatch.setattr(data_pairs, "load_bot", lambda flags: Echo())
    monkeypatch.chdir(tmp_path)
    dialogues = [["Hi!", "Hello.", f"I am {name}."] for name in ("Ann", "Bob", "Eve")]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps({"turns": turns}) + "\n" for turns in dialogues) + "[]\n")
    assert main(["data", "pairs", "talk.jsonl", "pairs.jsonl", "--seed", "5"]) == 0
    out, err = capsys.readouterr()
    assert out == "wrote pairs.jsonl: 6 pairs of 3 dialogues\n"
    assert "talk.jsonl: dropped 1 of 4 lines" in err
    assert "3 replies" in err
    pairs = read_pairs("pairs.jsonl")
    assert [pair.turns for pair in pairs[::2]] == [pair.turns for pair in pairs[1::2]]
    assert all(pair.worse == f"{pair.turns[-1]}, 5" for pair in pairs[1::2])
    assert all(pair.better != pair.worse and pair.worse in np.ravel(dialogues) for pair in pairs[::2])
    assert main(["data", "pairs", "talk.jsonl", "pairs.jsonl"]) == 1
    assert capsys.readouterr().err == "dialogpt data: pairs.jsonl: a file is there already; name a new one\n"
    assert main(["data", "pairs", "talk.jsonl", "two.jsonl", "--against", "turns", "--per-dialogue", "9"]) == 0
    assert capsys.readouterr().out == "wrote two.jsonl: 6 pairs of 3 dialogues\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", "talk.jsonl", "two.jsonl"]
