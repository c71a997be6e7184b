"""`dialogpt selfchat`: what it prints and writes, what Ctrl-C leaves, and one line for what goes wrong."""

import json

import fakes
import pytest

import dialogpt_jax as dg
from dialogpt_jax.chat import selfchat
from dialogpt_jax.cli.main import main
from dialogpt_jax.cli.selfchat import openings_of
from dialogpt_jax.data.formats import held_out

LENGTH = ("--max-new-tokens", "6")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selfchat") / "model"
    fakes.tiny_bot(n_positions=64).save(folder)
    return str(folder), dg.load(folder)


@pytest.fixture
def command(model, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        try:
            status = main(["selfchat", "--model", model[0], "--no-compilation-cache", *LENGTH, *words])
        except SystemExit as error:
            status = error.code
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def expected(model, openings, **how):
    return dg.self_chat(model[1], openings=openings, max_new_tokens=6, **how)


@pytest.mark.long
def test_conversations_are_data_for_training_and_a_table(command, model, tmp_path, capfd):
    status, out, err = command("Hello", "why?", "--turns", "3", "--seed", "5", "--out", "talks.jsonl", "--show", "2")
    assert status == 0
    talks = expected(model, ["Hello", "why?"], turns=3, seed=5)
    assert held_out("talks.jsonl") == ([talk.turns for talk in talks], "")
    line = json.loads((tmp_path / "talks.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert (line["index"], line["seed"], line["opening"]) == (1, 5, 1)
    assert line["finished"] == [answer.finished for answer in talks[1].answers]
    assert line["speakers"] == ["other", "bot", "other", "bot"]
    assert out.startswith("other: Hello\nbot: ")
    assert "2 conversations, seed 5\n" in out
    assert out.splitlines()[-1].split()[:3] == ["3", "bot", "2"]
    assert "3 turns, 6 replies in " in err
    assert "2 conversations in talks.jsonl" in err
    assert main(["data", "check", "talks.jsonl", "--tokenizer", model[0], "--max-length", "64"]) == 0
    assert "dropped" not in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["talks.jsonl"]


def test_openings_of_a_file_come_again_with_other_draws(command, model, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"turns": ["Hello", "no"]}\n')
    words = ("--data", "in.jsonl", "--conversations", "2", "--turns", "1", "--json", "--plot", "a.png")
    pytest.importorskip("matplotlib")
    status, out, _ = command(*words, "--out", "out.jsonl", "--other-sampling", "temperature=2 top_k=7")
    assert status == 0
    found = json.loads(out)
    assert [one["replies"] for one in found["turns"]] == [2]
    assert found["settings"]["other_sampling"] == "temperature 2, top_k 7, top_p 0.9, no_repeat_ngram 3"
    assert found["settings"]["conversations"] == 2
    talks = [json.loads(line)["turns"] for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    openings = [["Hello", "no"]] * 2
    assert talks == [talk.turns for talk in expected(model, openings, turns=1)]
    assert openings_of(["a", "b"], None, 5) == [["a"], ["b"], ["a"], ["b"], ["a"]]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_keeps_the_turns_that_were_done(command, model, tmp_path, monkeypatch):
    whole, made = selfchat.batched_answers, []

    def stopped(*words, **named):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(None)
        return whole(*words, **named)

    monkeypatch.setattr(selfchat, "batched_answers", stopped)
    status, out, _ = command("Hello", "why?", "--turns", "3", "--out", "talks.jsonl")
    assert (status, out) == (130, "")
    monkeypatch.undo()
    assert held_out(tmp_path / "talks.jsonl")[0] == [talk.turns for talk in expected(model, ["Hello", "why?"], turns=2)]
    made[:] = [None, None]
    monkeypatch.setattr(selfchat, "batched_answers", stopped)
    monkeypatch.chdir(tmp_path)
    assert command("Hello", "--out", "none.jsonl")[0] == 130
    assert [path.name for path in tmp_path.iterdir()] == ["talks.jsonl"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("Hi", "--data", "x"), 2, "give TEXT or --data FILE, not both"),
        (("Hi", " "), 2, "opening 2 is empty; write something"),
        (("Hi", "--other-sampling", "temp=1"), 2, "temp is no setting; "),
        (("Hi", "--other-sampling", "top_k=x"), 2, "top_k: 'x' is not a number"),
        (("Hi", "--other-sampling", "top_k=-1"), 1, "top_k is -1.0; it must be a whole number from 1 to 1024"),
        (("Hi", "--out", "there"), 1, "there is there already; name another file, or delete it"),
        (("Hi", "--out", "no/such"), 1, "no: no such folder"),
        (("Hi", "--plot", "no/such.png"), 1, "no: no such folder"),
        (("--data", "none.jsonl"), 1, "none.jsonl: No such file or directory"),
        (("Hi", "--other", "none/such/model"), 1, "none/such/model"),
        (("Hi", "--turns", "0"), 2, "--turns"),
        (("Hi", "--other-sampling", "seed=3"), 2, "--other-sampling: seed is that of both bots; give --seed"),
    ],
)
def test_mistakes_are_one_line(command, tmp_path, words, status, said):
    (tmp_path / "there").write_text("mine")
    found, out, err = command(*words)
    assert (found, out) == (status, "")
    assert said in err.splitlines()[-1]
    assert (tmp_path / "there").read_text() == "mine"
