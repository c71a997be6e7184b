"""`dialogpt eval` on files: its tables, errors, the published row; and METEOR only from a jar that says it is 1.5."""

import json
import os

import pytest

from dialogpt_jax.cli.main import main
from dialogpt_jax.evaluation.meteor import MeteorError, meteor

REPLIES = "The cat sat on the mat\na dog\n"
OTHER = "the cat is on a mat\na big dog\n"
REFERENCES = "k\t9|the cat is on the mat\t4|There is a cat on the mat\t1|human\nm\ta big dog ran\tthe dog\tof course\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "h").write_text(REPLIES)
    (tmp_path / "o").write_text(OTHER)
    (tmp_path / "refs").write_text(REFERENCES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(capsys, *words):
    """(status, stdout, stderr) of `dialogpt eval`."""
    status = main(["eval", *map(str, words)])
    return status, *capsys.readouterr()


def test_text_table(folder, capsys):
    status, shown, _ = evaluate(capsys, "--hypotheses", "h", "--references", "refs", "--beside", "6k-human")
    assert status == 0
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    assert rows["NIST-2"][1] == "2.7300"
    assert rows["BLEU-4"][1] == "0.3674"
    assert rows["BLEU-2"][-1] == "0.1790"
    assert rows["Dist-1"][1] == "1.000000"  # raw: `The` and `the` are two words
    assert rows["length"][1] == "4.000000"
    assert rows["Ent-4"][-1] == "11"


def test_clean_lowers_case(folder, capsys):
    _, shown, _ = evaluate(capsys, "--hypotheses", "h", "--clean", "--json")
    found = json.loads(shown)
    assert found["settings"]["words"] == "clean"
    assert found["systems"]["h"]["Dist-1"]["value"] == pytest.approx(7 / 8)
    (folder / "h").write_text("The the\nDon't the\n")
    for option, value in (("--raw", 3 / 4), ("--clean", 3 / 5)):
        _, shown, _ = evaluate(capsys, "--hypotheses", "h", option, "--json")
        assert json.loads(shown)["systems"]["h"]["Dist-1"]["value"] == pytest.approx(value)


def test_comparison_as_json_and_markdown(folder, capsys):
    words = ["--hypotheses", "h", "--references", "refs", "--compare", "o", "--bootstrap", 50, "--seed", 3]
    _, shown, _ = evaluate(capsys, *words, "--json")
    found = json.loads(shown)
    first, second = (found["systems"][name]["BLEU-2"]["value"] for name in ("h", "o"))
    assert found["differences"]["BLEU-2"]["value"] == pytest.approx(first - second)
    assert 0 < found["differences"]["BLEU-2"]["p"] <= 1
    assert found["settings"]["seed"] == 3
    assert found["systems"]["h"]["Ent-1"]["interval"] == "jackknife"
    _, shown, _ = evaluate(capsys, *words, "--markdown")
    head, rule, *rows = shown.splitlines()
    assert head == "| measure | h | 95 % interval | o | 95 % interval | difference | 95 % interval | p |"
    assert len({line.count("|") for line in (head, rule, *rows)}) == 1
    assert len(rows) == 18


def test_seed_and_number_of_resamples_decide_the_interval(folder, capsys):
    (folder / "h").write_text("".join("a " * n + "\n" for n in range(1, 30)))
    found = []
    for seed in (0, 0, 1):
        _, shown, _ = evaluate(capsys, "--hypotheses", "h", "--json", "--seed", seed, "--bootstrap", 100)
        found.append(json.loads(shown)["systems"]["h"]["length"])
    assert found[0] == found[1] != found[2]


def test_no_number_is_null_and_a_dash(folder, capsys):
    (folder / "h").write_text("a\nb\n")
    _, shown, _ = evaluate(capsys, "--hypotheses", "h", "--json", "--bootstrap", 0)
    found = json.loads(shown)["systems"]["h"]
    assert found["Ent-2"] == {"value": None, "low": None, "high": None, "interval": "jackknife"}
    assert found["length"] == {"value": 1.0, "low": None, "high": None, "interval": "none"}
    _, shown, _ = evaluate(capsys, "--hypotheses", "h")
    assert next(line.split() for line in shown.splitlines() if line.startswith("Ent-2")) == ["Ent-2", "–", "–"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name a file of replies"),
        (("--hypotheses", "none"), "none: No such file or directory"),
        (("--hypotheses", "h", "--references", "h", "none"), "none: No such file or directory"),
        (("--hypotheses", "one", "--references", "refs"), "refs, line 2: no partner; one has 1 line, refs has 2"),
        (("--hypotheses", "h", "--compare", "one"), "one has 1 line, h has 2; compare the same lines"),
        (("--hypotheses", "h", "--keys", "h"), "--keys needs --references"),
        (("--hypotheses", "h", "--meteor-jar", "x.jar"), "--meteor-jar needs --references"),
        (("--hypotheses", "h", "--references", "refs", "--meteor-jar", "x.jar"), "x.jar: no such METEOR jar"),
        (("--hypotheses", "bytes"), "bytes, line 2: byte 1 (0xff) is not UTF-8; convert the file to UTF-8"),
    ],
)
def test_errors_are_one_line(folder, capsys, words, message):
    (folder / "one").write_text("a\n")
    (folder / "bytes").write_bytes(b"a\n\xff\n")
    status, shown, told = evaluate(capsys, *words)
    assert (status, shown) == (1, "")
    assert told.splitlines()[-1] == f"dialogpt eval: {message}" or message in told.splitlines()[-1]
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "words",
    [("--human", "first"), ("--human", "0"), ("--bootstrap", "-1"), ("--raw", "--clean"), ("--references",)],
)
def test_wrong_arguments_are_status_2(folder, words):
    assert main(["eval", "--hypotheses", "h", *words]) == 2


def test_human_place_and_reference_sets(folder, capsys):
    words = ["--hypotheses", "h", "--references", "refs", "--json", "--bootstrap", 0]
    values = {}
    for options in ((), ("--human", "last"), ("--human", "3"), ("--human", "none"), ("--reference-sets", "5")):
        _, shown, _ = evaluate(capsys, *words, *options)
        values[options] = json.loads(shown)["systems"]["h"]["NIST-1"]["value"]
    assert values[()] == values["--human", "last"] == values["--human", "3"] == pytest.approx(2.2885, abs=5e-5)
    assert len(set(values.values())) == 3


def test_the_published_human_row(shared, capsys):
    path = shared / "data/human.ref.6k.txt"
    _, shown, _ = evaluate(capsys, "--hypotheses", path, "--beside", "6k-human", "--bootstrap", 0)
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    shown = {name: (rows[name][1], rows[name][-1]) for name in ("Ent-4", "Dist-1", "Dist-2", "length")}
    assert shown == {
        "Ent-4": ("10.9951", "11"),
        "Dist-1": ("0.145482", "0.1450"),
        "Dist-2": ("0.629633", "0.6300"),
        "length": ("13.100167", "13.1"),
    }


@pytest.fixture
def java(tmp_path, monkeypatch):
    """A `java` that shows how it was called and says what the test wants."""

    def java(says, status=0):
        program = tmp_path / "bin" / "java"
        program.parent.mkdir(exist_ok=True)
        saved = 'for word in "$@"; do case $word in *.txt) cat "$word" > "seen-${word##*/}";; esac; done'
        program.write_text(f'#!/bin/sh\necho "$@" > seen-words\n{saved}\nprintf "{says}"\nexit {status}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        (tmp_path / "m.jar").write_bytes(b"")
        monkeypatch.chdir(tmp_path)
        return tmp_path / "m.jar"

    return java


TEXTS, SETS = ["a b", "", "c\nd"], [["r1"], ["r2", "r3"], ["r4"]]


def test_meteor_is_run_as_the_paper_does(java, tmp_path):
    jar = java("Meteor version: 1.5\\n\\nFinal score:            0.3241\\n")
    assert meteor(TEXTS, SETS, jar=jar) == 0.3241
    assert (tmp_path / "seen-words").read_text().rstrip().endswith("references.txt -r 2 -l en -norm")
    assert (tmp_path / "seen-hypotheses.txt").read_text() == "a b\n\nc d\n"
    assert (tmp_path / "seen-references.txt").read_text() == "r1\nr1\nr2\nr3\nr4\nr4\n"


@pytest.mark.parametrize(
    ("says", "status", "message"),
    [
        ("Meteor version: 1.4\\nFinal score: 0.3\\n", 0, "not METEOR 1.5 but 1.4"),
        ("Final score: 0.3\\n", 0, "a jar that names no version"),
        ("Meteor version: 1.5\\n", 0, "ended without a final score"),
        ("Error: out of memory\\n", 1, "java ended with status 1: Error: out of memory"),
    ],
)
def test_no_other_meteor_under_that_name(java, says, status, message):
    with pytest.raises(MeteorError, match=message):
        meteor(TEXTS, SETS, jar=java(says, status))


def test_meteor_without_java(java, monkeypatch):
    jar = java("")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MeteorError, match="needs Java"):
        meteor(TEXTS, SETS, jar=jar)


def test_meteor_in_the_table(folder, java, capsys):
    jar = java("Meteor version: 1.5\\nFinal score: 0.3241\\n")
    _, shown, _ = evaluate(capsys, "--hypotheses", "h", "--references", "refs", "--meteor-jar", jar, "--compare", "o")
    row = next(line for line in shown.splitlines() if line.startswith("METEOR 1.5"))
    assert row.split() == ["METEOR", "1.5", "0.3241", "–", "0.3241", "–", "+0.0000", "–", "–"]
