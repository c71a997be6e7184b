"""`dialogpt score`: what it reads, the rows it writes, how it goes on, and one line for what goes wrong."""

import gzip
import io
import json
import sys

import fakes
import numpy as np
import pytest

from dialogpt_jax.cli.main import main

TOLERANCE = 1e-3  # of a reply's sum, rounded and computed in another shape
COLUMNS = ["logprob", "mean", "perplexity", "pmi", "tokens"]
DIALOGUES = [["Hello."], ["Hello.", "No.", 'He said "no".'], ["why?"]]
REPLIES = ["I am fine.", '"No" is it ☕', "NA"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score") / "model"
    bot = fakes.tiny_bot()
    bot.save(folder)
    return str(folder), bot


@pytest.fixture(scope="module")
def expected(model):
    return model[1].scores(DIALOGUES, REPLIES)


@pytest.fixture
def command(model, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words, stdin: bytes = b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        try:
            status = main(["score", "--model", model[0], "--no-compilation-cache", *words])
        except SystemExit as error:
            status = error.code
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def json_lines(*entries) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def check(rows, expected):
    assert len(rows) == len(expected)
    for row, each in zip(rows, expected, strict=True):
        figures = [getattr(each, name) for name in COLUMNS[:-1]]
        np.testing.assert_allclose([float(row[name]) for name in COLUMNS[:-1]], figures, rtol=1e-4, atol=TOLERANCE)
        assert int(row["tokens"]) == len(each.tokens)


def test_every_form_gives_the_same_rows(command, expected, tmp_path):
    """A reply apart, the last turn, messages, a turn a column, Microsoft's EOS; named, zipped, or from a pipe."""
    pairs = list(zip(DIALOGUES, REPLIES, strict=True))
    apart = json_lines(*({"turns": turns, "reply": reply, "finished": True} for turns, reply in pairs))
    whole = json_lines(*({"turns": [*turns, reply]} for turns, reply in pairs))
    messages = json_lines(*([{"role": "user", "content": text} for text in [*turns, reply]] for turns, reply in pairs))
    columns = "turn 1\tturn 2\tturn 3\treply\n" + "".join("\t".join([*turns, reply]) + "\r\n" for turns, reply in pairs)
    joined = "\n".join(" EOS ".join(turns) + "\t" + reply for turns, reply in pairs)
    mixed = joined.replace(" EOS He said", "\tHe said")
    files = {"a.jsonl": apart, "w.jsonl": whole, "m": messages, "c.tsv": columns, "j.txt": joined, "x.tsv": mixed}
    shown = {}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        status, shown[name], err = command(name)
        assert status == 0
        assert "3 replies: log P -" in err.splitlines()[-1]
    assert shown["w.jsonl"] == shown["m"] == shown["a.jsonl"]
    assert shown["c.tsv"] == shown["j.txt"] == shown["x.tsv"]
    rows = [json.loads(line) for line in shown["a.jsonl"].splitlines()]
    check(rows, expected)
    assert [(row["turns"], row["reply"], row["index"]) for row in rows] == [(*pair, i) for i, pair in enumerate(pairs)]
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(apart.encode()))
    assert command("z.jsonl.gz")[1] == shown["a.jsonl"]
    assert command("-", stdin=joined.encode())[1] == shown["j.txt"]
    assert command("-", stdin=apart.encode())[1] == shown["a.jsonl"]
    bits = sum(-each.logprob for each in expected) / np.log(2) / sum(len(reply.encode()) for reply in REPLIES)
    assert f"{bits:.3f} bits per byte, PMI {np.mean([each.pmi for each in expected]):.2f} on average" in err


def test_many_replies_of_a_line_and_each_token(command, model, expected):
    given = {"messages": [{"role": "user", "content": DIALOGUES[0][0]}], "replies": [REPLIES[1], REPLIES[0]]}
    status, shown, _ = command("-", "--tokens", stdin=json_lines(given).encode())
    first, second = (json.loads(line) for line in shown.splitlines())
    assert status == 0
    check([second], expected[:1])
    assert (first["index"], second["index"]) == (0, 1)
    np.testing.assert_allclose(second["logprobs"], expected[0].logprobs, atol=1e-4)
    assert "".join(second["pieces"]) == REPLIES[0] + model[1].tokenizer.end_of_text


def test_out_goes_on_where_it_stopped(command, tmp_path, monkeypatch):
    from dialogpt_jax.evaluation import scores

    monkeypatch.setattr(scores, "ROWS", 2)  # so that there are two batches
    pairs = list(zip(DIALOGUES, REPLIES, strict=True))
    (tmp_path / "talk.jsonl").write_text(json_lines(*({"turns": [*turns, reply]} for turns, reply in pairs)))
    (tmp_path / "talk.tsv").write_text("".join(" EOS ".join(t) + "\t" + r + "\n" for t, r in pairs), encoding="utf-8")
    for name in ("talk.jsonl", "talk.tsv"):
        out = tmp_path / f"out-{name}"
        _, shown, _ = command(name)
        status, nothing, err = command(name, "--out", out.name)
        assert (status, nothing) == (0, "")
        assert f"3 replies in out-{name}: log P" in err
        whole = out.read_bytes()
        assert whole.decode() == shown
        for cut in (len(whole), whole.rindex(b"\n", 0, -1) + 1, whole.rindex(b"\xe2") + 1, 12, 0):
            out.write_bytes(whole[:cut])
            assert command(name, "--out", out.name)[0] == 0
            assert out.read_bytes() == whole
        status, _, err = command(name, "--out", out.name, "--max-new-tokens", "7")
        assert status == 1
        assert (
            f"line {1 + name.endswith('tsv')}: replies of another run (other settings; data and model as before)" in err
        )
        out.write_bytes(whole.replace(b"I am fine", b"I am well"))
        assert "not the score of reply 0; take the line out" in command(name, "--out", out.name)[2]
        for other in (b"something else", b"something else\n", (tmp_path / name).read_bytes()):
            out.write_bytes(other)
            status, _, err = command(name, "--out", out.name)
            assert status == 1
            assert f"dialogpt score: {out.name}, line 1: no score" in err
            assert out.read_bytes() == other
        for wrong in (b"something else\n", b"[" * 100_000 + b"\n", b'{"index": Infinity}\n'):
            out.write_bytes(whole + wrong)
            assert (
                ": no score of a reply; take the line out, or name another file" in command(name, "--out", out.name)[2]
            )


def test_pandas_reads_the_rows_as_they_are(command, expected, tmp_path):
    pandas = pytest.importorskip("pandas")
    pairs = list(zip(DIALOGUES, REPLIES, strict=True))
    (tmp_path / "talk.tsv").write_text("".join(" EOS ".join(t) + "\t" + r + "\n" for t, r in pairs), encoding="utf-8")
    assert command("talk.tsv", "--out", "scores.tsv")[0] == 0
    frame = pandas.read_csv("scores.tsv", sep="\t", keep_default_na=False)
    assert list(frame) == ["context", "reply", *COLUMNS, "index", "run"]
    assert frame["reply"].tolist() == REPLIES
    assert frame["context"].tolist() == [" EOS ".join(turns) for turns in DIALOGUES]
    check(frame.to_dict("records"), expected)
    _, shown, _ = command("-", stdin=json_lines(*({"turns": t, "reply": r} for t, r in pairs)).encode())
    frame = pandas.read_json(io.StringIO(shown), lines=True)
    assert frame["turns"].tolist() == DIALOGUES
    check(frame.to_dict("records"), expected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"", "standard input: the file is empty; read are lines of JSON"),
        (b"Hi\tHello\nHi\n", "standard input, line 2: no tab; expected source"),
        (b"Hi\t\n", "standard input, line 1: turn 2 is empty; mend it, or leave it out; nothing was scored"),
        (b"Hi\tyes\t\xff\n", "standard input, line 1: turn 3 holds a lone surrogate"),
        (b'{"turns": ["Hi"]}\n', "standard input, line 1: one turn; a dialogue has at least two"),
        (b'{"turns": ["Hi"], "reply": 3}\n', "standard input, line 1: `reply` is not a text; nothing was scored"),
        (b'{"turns": ["Hi"], "replies": []}\n', "standard input, line 1: `replies` is not a list of texts"),
        (b'{"turns": ["Hi"], "replies": ["a", " "]}\n', "standard input, line 1: reply 2 is empty; write something"),
        (b'{"turns": ["Hi"], "reply": ""}\n', "standard input, line 1: the reply is empty; write something"),
        (b'{"turns": ["Hi"], "replies": ["a", "\\ud800"]}\n', "line 1: reply 2 holds a lone surrogate"),
        (b'{"turns": [], "reply": "a"}\n', "standard input, line 1: no turn; a dialogue has at least"),
        (b'{"turns": [\n', "standard input, line 1: not JSON"),
        (
            b"Hi\t" + b"z" * 99 + b"\n",
            "standard input, line 1: the reply has 100 tokens and its context 3, 96 together",
        ),
    ],
)
def test_a_line_that_cannot_be_scored_stops_it_before_anything_is(command, given, said):
    status, out, err = command("-", "--out", "scores", stdin=given)
    assert (status, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_words_that_do_not_go_together(command):
    for words, said in (
        (("--out", "-", "x"), "`-` stands for dialogues from standard input, and for nothing else"),
        ((), "FILE"),
        (("x", "--max-new-tokens", "1.5"), "'1.5' is no whole number"),
    ):
        status, out, err = command(*words)
        assert (status, out) == (2, "")
        assert said in err.splitlines()[-1]
    assert command("none.tsv")[0] == 1
    assert "dialogpt score talk.tsv --out scores.tsv" in command("--help")[1]
