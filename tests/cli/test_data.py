"""`dialogpt data`: what it prints, its exit status, one line for what goes wrong."""

import gzip
import json

import pytest

from dialogpt_jax.chat.loading import bundled_directory
from dialogpt_jax.cli.main import main
from dialogpt_jax.data.shards import open_shards
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.weights.directory import read_config

UNKNOWN = "no `turns`, `messages`, `conversations`, or `prompt` and `response`"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["bytes"], 257).save(folder)
    return str(folder)


@pytest.fixture
def command(capfd, tokenizer):
    """Runs `dialogpt data WORDS…` with a tokenizer of bytes: (status, stdout, stderr)."""

    def run(*words, own=True):
        try:
            status = main(["data", *map(str, words), *(["--tokenizer", tokenizer] if own else [])])
        except SystemExit as error:
            status = error.code
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


@pytest.fixture
def talk(tmp_path):
    file = tmp_path / "talk.jsonl"
    lines = [
        {"turns": ["Hi ☕!", "Hello.", "Bye."], "speakers": ["Ann", "Bob", "Ann"], "weights": [0, 0.3, 1]},
        "broken",
        {"turns": ["one"]},
        ["Where?", "Here."],
    ]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def test_check_shows_everything(command, talk):
    status, out, err = command("check", talk)
    assert status == 0
    assert [line.rstrip() for line in out.splitlines()] == [
        f"{talk}, line 1: 20 tokens",
        " context  Hi ☕!⟨EOS⟩",
        "   × 0.3  Hello.⟨EOS⟩",
        " learned  Bye.⟨EOS⟩",
        "",
        f"{talk}, line 4: 13 tokens",
        " context  Where?⟨EOS⟩",
        " learned  Here.⟨EOS⟩",
        "",
        "tokens       examples",
        f"    13-14             1  {'█' * 40}",
        "    15-16             0",
        "    17-18             0",
        f"    19-20             1  {'█' * 40}",
        "",
        "4 lines: 2 dialogues, 2 dropped",
        "2 examples of at most 128 tokens",
        "33 tokens, 18 of them targets (54.5%)",
        "EOS is a target after 3 of 3 trained turns",
        "padding: 31.2% in the trainer's buckets, 87.1% in rows of one length, 74.2% with --pack",
        "dropped because       lines  first  such as",
        f'no known form             1  2      {UNKNOWN}, but "broken"',
        "fewer than two turns      1  3      one turn; a dialogue has at least two",
    ]
    assert "tokens/s" in err


def test_check_takes_its_choices(command, talk):
    _, out, _ = command("check", talk, "--train-on", "Bob", "--reverse", "--max-length", "16", "--workers", "2")
    assert " context  Bye.⟨EOS⟩" in out  # the last is the first
    assert "0.3  Hello.⟨EOS⟩" in out
    assert "no turn of 'Bob' after the first" in out
    assert "\n1 example of at most 16 tokens\n" in out


def test_what_never_ends_is_refused_and_force_is_another_thing(command, tmp_path):
    file = tmp_path / "long.jsonl"
    file.write_text('["a", "a long reply"]')
    status, out, err = command("check", file, "--max-length", "8")
    assert status == 1
    assert "EOS is a target after 0 of 1 trained turn; 1 longer than 8 tokens lost its end" in out
    assert " learned  a long …" in out
    (line,) = [line for line in err.splitlines() if line.startswith("dialogpt data: ")]
    assert "no EOS is a target, so that a model would never learn to stop" in line
    assert command("check", file, "--max-length", "8", "--allow-no-eos")[0] == 0
    assert command("prepare", file, tmp_path / "data", "--max-length", "8", "--force")[0] == 1
    assert not (tmp_path / "data").exists()
    assert command("prepare", file, tmp_path / "data", "--max-length", "8", "--allow-no-eos")[0] == 0


def test_prepare_writes_what_the_flags_say(command, talk, tmp_path):
    folder = tmp_path / "data"
    flags = ("--reverse", "--pack", "--max-length", "64", "--workers", "2", "--train-on", "last")
    status, out, _ = command("prepare", talk, talk, folder, *flags)
    assert status == 0
    data = open_shards(folder)
    assert "dropped because" in out
    assert out.splitlines()[-1].startswith(f"wrote {folder}: {len(data)} rows, ")
    assert out.endswith(" kB\n")
    chosen = {name: data.info[name] for name in ("reverse", "pack", "max_length", "train_on", "eos_token_id")}
    assert chosen == {"reverse": True, "pack": True, "max_length": 64, "train_on": "last", "eos_token_id": 256}
    assert data.info["counts"]["lines"] == 8
    assert [source["file"] for source in data.info["sources"]] == [str(talk)] * 2
    status, _, err = command("prepare", talk, folder)
    assert (status, err.count("\n")) == (1, 1)
    assert f"{folder}: prepared data is there already; --force replaces it" in err
    assert command("prepare", talk, folder, "--force")[0] == 0
    assert open_shards(folder).info["reverse"] is False


def test_the_tokenizer_of_the_package_is_the_default(command, talk, tmp_path):
    assert command("prepare", talk, tmp_path / "data", own=False)[0] == 0
    info = open_shards(tmp_path / "data").info
    assert (info["vocab_size"], info["eos_token_id"]) == (8192, 8191)
    most = read_config(bundled_directory()).n_positions
    status, _, err = command("prepare", talk, tmp_path / "more", "--max-length", most + 1, own=False)
    assert status == 1
    assert f"max_length is {most + 1}; the model in" in err
    assert f"has a context of {most} (n_positions)" in err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["check", "nowhere.jsonl"], 1, "nowhere.jsonl: No such file or directory"),
        (["check", "TALK", "--train-on", "Joe"], 1, "nobody is called 'Joe' here; the speakers are Ann, Bob"),
        (["check", "TALK", "--max-length", "1"], 1, "max_length is 1"),
        (["check", "TALK", "--workers", "0"], 2, 'Invalid value "0" for --workers. Must be >= 1'),
        (["check", "TALK", "."], 1, ". is a folder; name the files in it, such as ./*.jsonl"),
        (["prepare", ".", "there"], 1, ". is a folder; name the files in it"),
        (["prepare", "TALK"], 2, "behind them the folder DIR to write"),
        ([], 2, ""),
    ],
)
def test_what_goes_wrong_is_told(command, talk, words, status, said):
    found, out, err = command(*(str(talk) if word == "TALK" else word for word in words), own=bool(words))
    assert found == status
    assert said in err
    assert words or "prepare" in out


def test_one_is_one_and_a_list_has_items(command, tmp_path):
    file = tmp_path / "talk.json"
    file.write_text(json.dumps([["a", "b"]], indent=2))
    status, out, err = command("check", file)
    assert status == 0
    assert f"{file}, item 1: 4 tokens" in out
    assert "\n1 item: 1 dialogue, 0 dropped\n1 example of at most 128 tokens\n" in out
    assert err.startswith("1 kB, 4 tokens in ")
    file.write_text(json.dumps([["a", "b"], ["c"]], indent=2))
    _, out, _ = command("check", file)
    assert "2 items: 1 dialogue, 1 dropped" in out
    assert "dropped because       items  first" in out


def test_a_refusal_points_to_its_own_help(command, tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text("{}")
    _, _, err = command("check", file)
    assert "none of 1 line is an example" in err
    assert "(--help shows them)" in err
    assert "data check --help" not in err
    assert "(`dialogpt data check --help` shows them)" in command("prepare", file, tmp_path / "data")[2]
    assert command("prepare", "--help")[0] == 0
    file.write_text('["a", "b"]')
    assert command("prepare", file, tmp_path / "data")[0] == 0
    status, _, err = command("check", tmp_path / "data")
    assert status == 1
    assert f"is prepared data, which was checked; `dialogpt train --data {tmp_path / 'data'}` trains on it" in err


def test_a_broken_gzip_is_an_error(command, tmp_path):
    file = tmp_path / "talk.jsonl.gz"
    file.write_bytes(gzip.compress(b'["a", "b"]\n' * 20)[:-9])
    for words in (("check", file), ("prepare", file, tmp_path / "data")):
        status, out, err = command(*words)
        assert (status, out) == (1, "")
        assert f"dialogpt data: {file}, line 21: the gzip file is broken" in err
    assert list(tmp_path.iterdir()) == [file]


def test_help_teaches(command):
    assert "dialogpt data check talk.jsonl" in command("--help", own=False)[1]
    out = command("check", "--help", own=False)[1]
    for part in ('{"turns": ["Hi!", "Hello."]}', '"weight": 0.3', '"role": "user"', "EOS 1.0 Hello. ⇥ 1.0 Bye."):
        assert part in out
    assert all(part in out for part in ('"from": "gpt"', '"prompt": "Hi!"', "prompt,response", "turn 1,turn 2"))
    assert "--train-on" in command("prepare", "--help", own=False)[1]
