"""The commands `reply` and `chat`: their output, their exit status, one line for what goes wrong, and the program cache."""

import io
import json
import os
import subprocess
import sys
import warnings

import fakes
import pytest

import dialogpt_jax as dg
from dialogpt_jax.chat.session import Chat
from dialogpt_jax.chat.terminal import Terminal
from dialogpt_jax.cli import common, program_cache
from dialogpt_jax.cli.main import main

# Starting Python and jax on a busy machine; a test that waits this long has failed anyway.
PATIENCE = 240


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A fake model's directory, and the bot that is in it."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    bot = fakes.tiny_bot()
    bot.save(folder)
    return str(folder), bot


@pytest.fixture
def command(model, capfd, monkeypatch):
    """Runs `dialogpt WORDS…` in this process on the fake model: (status, stdout, stderr)."""

    def run(*words, stdin: bytes = b"", named=True):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        words = [words[0], *(["--model", model[0]] if named else []), "--no-compilation-cache", *words[1:]]
        try:
            status = main(words)
        except SystemExit as error:
            status = error.code
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


def test_reply_prints_the_reply(command, model):
    _, bot = model
    assert command("reply", "Hello") == (0, bot.reply("Hello") + "\n", "")
    assert command("reply", "Hello", "no", "why?") == (0, bot.reply(["Hello", "no", "why?"]) + "\n", "")
    assert command("reply", "--seed", "7", "☕ <|endoftext|>") == (0, bot.reply("☕ <|endoftext|>", seed=7) + "\n", "")


def test_reply_reads_turns_from_standard_input(command, model):
    expected = model[1].reply(["Hello", "☕", "why?"]) + "\n"
    assert command("reply", "-", stdin="Hello\r\n\n☕\nwhy?".encode()) == (0, expected, "")


def test_json_has_everything(command, model):
    status, out, err = command(
        "reply", "--json", "--candidates", "3", "--seed", "5", "--max-new-tokens", "9", "Hi ☕", "no"
    )
    assert (status, err) == (0, "")
    assert out.count("\n") == 1
    found = json.loads(out)
    assert set(found) == {"turns", "seed", "reply", "candidates"}
    assert (found["turns"], found["seed"]) == (["Hi ☕", "no"], 5)
    assert "☕" in out  # as it is, not escaped
    candidates = model[1].candidates(["Hi ☕", "no"], n=3, seed=5, max_new_tokens=9)
    assert [c["text"] for c in found["candidates"]] == [c.text for c in candidates]
    assert found["reply"] == candidates[0].text
    for shown, c in zip(found["candidates"], candidates, strict=True):
        assert set(shown) == {"text", "tokens", "logprobs", "logprob", "finished"}
        assert shown["tokens"] == c.tokens.tolist()
        assert shown["logprobs"] == pytest.approx(c.logprobs.tolist(), abs=1e-5)
        assert shown["logprob"] == pytest.approx(c.logprob, abs=1e-5)
        assert shown["finished"] is c.finished


@pytest.mark.long
def test_drafts_change_no_reply_and_json_says_how_often_they_were_right(command, model, tmp_path):
    words = ("reply", "--json", "--temperature", "0.9", "Hi", "no", "Hello")
    plain = json.loads(command(*words)[1])
    status, out, err = command("reply", "--draft", model[0], "--draft-tokens", "2", *words[1:])
    assert (status, err) == (0, "")
    found = json.loads(out)
    [candidate] = found["candidates"]
    assert found["reply"] == plain["reply"]
    tokens, forwards = (
        len(candidate["tokens"]) - 1,
        -(-(len(candidate["tokens"]) - 1) // 3),
    )  # its own model: all are right
    assert (candidate["forwards"], candidate["accepted"]) == (forwards, tokens - tokens // 3)
    assert candidate["tokens_a_forward"] == round(tokens / forwards, 4)
    said = "Hi\nno\n/settings\n"
    chat = command("chat", "--draft", "lookup", stdin=said.encode())
    assert chat[1] == command("chat", stdin=said.encode())[1]
    assert "drafts accepted in" in chat[2]
    data = tmp_path / "data.jsonl"
    data.write_text('{"turns": ["Hi", "no"]}\n{"turns": ["Hello", "Hi", "yes"]}\n')
    status, out, _ = command("eval", "--data", str(data), "--draft", "lookup", "--bootstrap", "0", "--json")
    settings = json.loads(out)["settings"]
    assert (status, settings["draft"]) == (0, "3 looked up")
    assert settings["forwards"] > 0


def test_controls_in_a_reply_are_shown_escaped_and_true_in_json(command, monkeypatch):
    evil = "one\n\x1b]0;title\x07 \x9b31m\ttab ☕"
    monkeypatch.setattr("dialogpt_jax.text.tokenizer.Tokenizer.decode", lambda self, ids: evil)
    assert command("reply", "Hi")[:2] == (0, "one\n\\x1b]0;title\\x07 \\x9b31m\ttab ☕\n")
    status, out, _ = command("reply", "--json", "Hi")
    assert status == 0
    assert all(c == "\n" or c.isprintable() for c in out)
    assert json.loads(out)["reply"] == evil
    status, _, err = command("reply", "--seed", "\x1b]0;title\x07", "Hi")
    assert status == 1
    assert all(c == "\n" or c.isprintable() for c in err)


def test_a_drawn_seed_is_told_and_repeats(command):
    status, out, err = command("reply", "--json", "--seed", "random", "Hello")
    assert status == 0
    seed = json.loads(out)["seed"]
    assert json.loads(command("reply", "--json", "--seed", str(seed), "Hello")[1]) == json.loads(out)
    assert err == "" or str(seed) in err


@pytest.mark.long
def test_the_flags_are_the_sampling(command, model):
    import dialogpt_jax as dg

    sampling = dg.Sampling(temperature=0.9, top_k=20, top_p=0.8)
    flags = ("--temperature", "0.9", "--top-k", "20", "--top-p", "0.8", "--max-new-tokens", "12")
    assert command("reply", *flags, "Hello")[1] == model[1].reply("Hello", sampling=sampling, max_new_tokens=12) + "\n"
    assert command("reply", "--temperature", "0", "Hello")[1] == model[1].reply("Hello", sampling=dg.GREEDY) + "\n"


def test_a_file_gets_a_reply_a_line_and_goes_on_where_it_stopped(command, model, tmp_path):
    dialogues = [["Hello"], ["Hello", "no", "why?"], ["☕"], ["no"]]
    data, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(json.dumps({"turns": turns}) + "\n" for turns in dialogues), encoding="utf-8")
    flags = ("--data", str(data), "--max-new-tokens", "9", "--seed", "3")
    expected = model[1].replies(dialogues, max_new_tokens=9, seed=3)
    status, shown, _ = command("reply", *flags)
    lines = [json.loads(line) for line in shown.splitlines()]
    assert status == 0
    assert [line["reply"] for line in lines] == expected
    assert [line["turns"] for line in lines] == dialogues
    assert [(line["index"], line["seed"]) for line in lines] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert command("reply", *flags, "--out", str(out))[:2] == (0, "")
    whole = out.read_bytes()
    assert whole.decode() == shown  # one schema
    for cut in (
        len(whole),
        whole.index(b"\n") + 1,
        whole.rindex(b"\xe2") + 1,
        20,
        0,
    ):  # as a run that was killed leaves it
        out.write_bytes(whole[:cut])
        assert command("reply", *flags, "--out", str(out))[0] == 0
        assert out.read_bytes() == whole
    status, _, err = command("reply", *flags[:-1], "4", "--out", str(out))
    assert status == 1
    assert "line 1: replies of another run (seed 3, now 4; data and model as before)" in err
    status, _, err = command("reply", *flags, "--top-k", "5", "--out", str(out))
    assert status == 1
    assert "line 1: replies of another run (other settings; data and model as before)" in err
    data.write_text(data.read_text(encoding="utf-8") + '{"turns": ["why?"]}\n', encoding="utf-8")
    status, _, err = command("reply", *flags, "--out", str(out))
    assert status == 1
    assert err.endswith(
        "line 1: replies of another run (other dialogues, now 5; model and settings as before); name another file, or "
        "delete it to begin anew\n"
    )
    data.write_text("".join(json.dumps({"turns": turns}) + "\n" for turns in dialogues), encoding="utf-8")
    assert out.read_bytes() == whole
    for other in (data.read_bytes(), data.read_bytes().splitlines()[0], b"something else"):
        out.write_bytes(other)
        status, _, err = command("reply", *flags, "--out", str(out))
        assert (status, out.read_bytes()) == (1, other)
        assert f"{out}, line 1: no replies to a file; name another file" in err
    out.write_bytes(whole.replace(b'"no", "why?"', b'"so", "why?"'))
    assert f"{out}, line 2: not the dialogue at index 1" in command("reply", *flags, "--out", str(out))[2]
    data.write_text('{"turns": ["Hi"]}\n{"turns": []}\n')
    out.unlink()
    status, shown, err = command("reply", *flags, "--out", str(out))
    assert (status, shown, out.exists()) == (1, "", False)
    assert f"{data}, line 2: no turn" in err
    assert command("reply", "--out", str(out), "Hi")[0] == 2
    # Replies that came before are dialogues, too; written over, or deleted as of another run, they would be gone.
    data.write_bytes(whole)
    (tmp_path / "link").symlink_to(data)
    for same in (data, tmp_path / "link"):
        status, _, err = command("reply", *flags[:-1], "4", "--out", str(same))
        assert (status, data.read_bytes()) == (2, whole)
        assert f"--out is {same}, the file of --data; name another" in err


HOLDING = """
import sys
from dialogpt_jax.cli.main import main
from dialogpt_jax.evaluation import harness

batches = harness.roll_batches

def hold(*words, **named):
    print("writing", flush=True)
    sys.stdin.readline()
    yield from batches(*words, **named)

harness.roll_batches = hold
sys.exit(main(sys.argv[1:]))
"""


def test_a_second_process_may_not_write_to_the_same_file(command, model, tmp_path):
    data, out = tmp_path / "in.jsonl", tmp_path / "folder" / "out.jsonl"
    data.write_text('{"turns": ["Hello"]}\n{"turns": ["no"]}\n')
    flags = ("--data", str(data), "--max-new-tokens", "5", "--out", str(out))
    words = [sys.executable, "-c", HOLDING, "reply", "--model", model[0], "--no-compilation-cache", *flags]
    first = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "writing\n"
        status, shown, err = command("reply", *flags)
        assert (status, shown) == (1, "")
        assert err.splitlines()[-1] == f"dialogpt reply: {out}: another process is writing there; wait for its end"
    finally:
        first.communicate("\n", timeout=PATIENCE)
    assert first.returncode == 0
    assert [json.loads(line)["turns"] for line in out.read_text().splitlines()] == [["Hello"], ["no"]]
    assert os.listdir(out.parent) == ["out.jsonl"]


def test_replies_are_not_sorted_into_a_pipe_and_a_link_stays(command, tmp_path):
    data, real = tmp_path / "in.jsonl", tmp_path / "real"
    data.write_text('{"turns": ["Hello"]}\n')
    os.mkfifo(tmp_path / "pipe")
    status, _, err = command("reply", "--data", str(data), "--max-new-tokens", "5", "--out", str(tmp_path / "pipe"))
    assert (status, (tmp_path / "pipe").is_fifo()) == (1, True)
    assert f"{tmp_path / 'pipe'}: no plain file" in err
    (tmp_path / "link").symlink_to(real)
    assert command("reply", "--data", str(data), "--max-new-tokens", "5", "--out", str(tmp_path / "link"))[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert real.read_text().count("\n") == 1


def test_a_dialogue_that_the_assistant_ended_is_told(command, tmp_path):
    user, own = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "no"}
    data = tmp_path / "in.jsonl"
    lines = [{"messages": [user]}, {"messages": [user, own]}, {"turns": ["Hello", "no"]}, {"messages": [user, own]}]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, shown, err = command("reply", "--data", str(data), "--max-new-tokens", "3")
    assert (status, shown.count("\n")) == (0, 4)
    assert f"{data}: 2 of 4 dialogues end with the assistant's own message, the first on line 2" in err
    data.write_text(json.dumps(lines[0]) + "\n")
    assert "assistant" not in command("reply", "--data", str(data), "--max-new-tokens", "3")[2]


def test_chat_talks_through_a_pipe_and_loads(command, model, tmp_path):
    file = tmp_path / "chat.json"
    status, out, err = command("chat", "--max-new-tokens", "8", stdin=f"Hello\n/save {file}\nno\n".encode())
    assert (status, err.splitlines()) == (0, [f"wrote {file}"])
    first, second = out.splitlines()
    chat = model[1].chat(max_new_tokens=8)
    assert [chat.say("Hello"), chat.say("no")] == [first, second]
    assert command("chat", "--load", str(file), stdin=b"no\n") == (0, second + "\n", "")


def test_the_terminal_is_told_which_chat_was_loaded(command, model, tmp_path, monkeypatch):
    """It shows a person the chat's last turns."""
    loaded = []

    class Noting(Terminal):
        def run(self):
            loaded.append((self._loaded, self.chat.turns))
            return 0

    monkeypatch.setattr("dialogpt_jax.chat.terminal.Terminal", Noting)
    file = str(tmp_path / "chat.json")
    Chat(model[1], turns=["Hello", "no"]).save(file)
    assert command("chat", "--load", file)[0] == command("chat")[0] == 0
    assert loaded == [(file, ["Hello", "no"]), (None, [])]


def test_what_is_said_beside_load_goes_before_what_the_file_says(command, model, tmp_path, monkeypatch):
    chats = []

    class Noting(Terminal):
        def run(self):
            chats.append(self.chat)
            return 0

    monkeypatch.setattr("dialogpt_jax.chat.terminal.Terminal", Noting)
    file = str(tmp_path / "chat.json")
    Chat(model[1], turns=["Hello", "no"], seed=3, max_new_tokens=9, sampling=dg.Sampling(temperature=0.5)).save(file)
    for words in (
        (),
        ("--temperature", "1", "--seed", "5", "--max-new-tokens", "6"),
        ("--beams", "4"),
        ("--rank", "pmi"),
    ):
        assert command("chat", "--load", file, *words)[0] == 0
    plain, changed, searched, ranked = chats
    assert (plain.seed, plain.max_new_tokens, plain.sampling.temperature) == (3, 9, 0.5)
    assert (changed.seed, changed.max_new_tokens, changed.sampling.temperature) == (5, 6, 1)
    assert (searched.beams.beams, searched.rank, searched.seed) == (4, None, 3)
    assert (ranked.beams, ranked.rank.by) == (None, "pmi")


def test_a_warning_is_one_line_and_the_reply_comes(command):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        status, out, err = command("reply", "€" * 500)
    assert status == 0
    assert out.strip()
    assert err == "dialogpt reply: the last turn has 1501 tokens; its first 1445 were left out (n_positions is 96)\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("reply", ""), "turn 1, the one to reply to, is empty"),
        (("reply", "Hi", " "), "turn 2, the one to reply to, is empty"),
        (("reply", "-"), "the dialogue has no turn"),
        (("reply", "\udcff"), "lone surrogate, U+DCFF"),
        (("reply", "--seed", "-1", "Hi"), "--seed is '-1'; give a whole number from 0"),
        (("reply", "--seed", "x", "Hi"), "--seed is 'x'"),
        (("reply", "--seed", "²", "Hi"), "--seed is '²'"),
        (("reply", "--seed", str(2**63), "Hi"), f"seed is {2**63}"),
        (("reply", "--temperature", "-1", "Hi"), "temperature is -1"),
        (("reply", "--temperature", "nan", "Hi"), "temperature is nan"),
        (("reply", "--top-k", "100000", "Hi"), "top_k is 100000; it must be a whole number from 1 to 1024"),
        (("reply", "--top-k", "-1", "Hi"), "top_k is -1"),
        (("reply", "--top-p", "0", "Hi"), "top_p is 0"),
        (("reply", "--min-p", "2", "Hi"), "min_p is 2"),
        (("reply", "--repetition-penalty", "0", "Hi"), "repetition_penalty is 0"),
        (("reply", "--max-new-tokens", "0", "Hi"), "max_new_tokens is 0"),
        (("reply", "--candidates", "0", "Hi"), "n is 0"),
        (("reply", "--draft", "lookup", "--draft-tokens", "99", "Hi"), "draft_tokens is 99"),
        (("chat", "--draft", "/no/such"), "/no/such"),
        (("chat", "--seed", "1.5"), "--seed is '1.5'"),
        (("chat", "--top-p", "1.1"), "top_p is 1.1"),
        (("chat", "--max-new-tokens", "-3"), "max_new_tokens is -3"),
        (("chat", "--load", "/no/such/file"), "/no/such/file: No such file or directory"),
        (("chat", "--load", "/"), "/: Is a directory"),
    ],
)
def test_bad_input_is_one_line_and_status_1(command, words, message):
    status, out, err = command(*words)
    assert (status, out) == (1, "")
    assert err.startswith(f"dialogpt {words[0]}: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    "words",
    [
        ("reply",),
        ("reply", "--dtype", "int4", "Hi"),
        ("reply", "--top-k", "x", "Hi"),
        ("chat", "--nonsense"),
        ("talk",),
        ("reply", "--draft", "lookup", "--beams", "2", "Hi"),
        ("chat", "--draft", "lookup", "--rank", "mmi"),
        ("reply", "--draft-tokens", "2", "Hi"),
        ("reply", "--draft", "-", "Hi"),
    ],
)
def test_bad_arguments_are_status_2(command, words):
    status, out, err = command(*words)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("dialogpt")


def test_a_model_that_is_none_is_one_line(capfd, tmp_path):
    file = tmp_path / "a file"
    file.write_text("x")
    for model in (str(file), str(tmp_path), str(tmp_path / "nothing" / "here" / "at all")):
        assert main(["reply", "--no-compilation-cache", "--model", model, "Hi"]) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "Traceback" not in err


def test_help_says_what_there_is(capfd):
    for words, wanted in (
        (["--help"], ("chat", "reply", "inspect", "convert")),
        (["reply", "--help"], ("--json", "--model", "--dtype", "--seed", "--temperature", "--top-k", "--top-p")),
        (["chat", "--help"], ("--model", "--seed", "--max-new-tokens", "--no-compilation-cache")),
    ):
        assert main(words) == 0
        out = capfd.readouterr().out
        assert all(word in out for word in wanted)


def test_the_program_cache_can_be_turned_off_and_a_folder_that_cannot_be_is_survived(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(common, "keep_compiled_programs", lambda **how: called.append(how["whole"]))
    monkeypatch.setattr("dialogpt_jax.chat.loading.load", lambda *args, **named: "a bot")
    assert common.load_bot(common.ModelFlags()) == "a bot"
    assert called == [False]
    common.load_bot(common.ModelFlags(compilation_cache=False))
    monkeypatch.setenv(program_cache.OFF_VARIABLE, "1")
    assert program_cache.keep_compiled_programs() is None


KEEPING = {program_cache.OFF_VARIABLE: ""}  # which the tests set


def process(*words, env=None, **named):
    """`dialogpt WORDS…` as another process, with the outputs buffered as they are for a user."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONUNBUFFERED", "XLA_FLAGS")}
    clean |= {"PYTHONUTF8": "1"} | (env or {})
    command = [sys.executable, "-m", "dialogpt_jax.cli.main", *words]
    return subprocess.run(command, env=clean, timeout=PATIENCE, **named)


@pytest.mark.long
def test_a_second_start_neither_traces_nor_compiles(model, tmp_path):
    """One program makes a reply, and is on disk after the first start, whole: the second finds it there."""
    words = ("reply", "--model", model[0], "Hello", "no")
    captured = {"capture_output": True, "text": True, "encoding": "utf-8"}
    runs = []
    for _ in range(2):
        env = KEEPING | {"XDG_CACHE_HOME": str(tmp_path), "JAX_LOG_COMPILES": "1"}
        done = process(*words, env=env, **captured)
        kept = {path.name for path in (tmp_path / "dialogpt_jax" / "whole").iterdir()}
        assert (done.returncode, done.stdout) == (0, model[1].reply(["Hello", "no"]) + "\n")
        runs.append((done.stderr, kept))
    (first, kept), (second, kept_then) = runs
    assert "Finished tracing reply_program" in first
    assert second == ""
    assert kept == kept_then
    assert len(kept) == 1
    assert not list((tmp_path / "dialogpt_jax" / "xla").glob("*-cache"))  # it is kept once


def test_a_cache_folder_that_cannot_be_written_is_survived(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = process(
        *("reply", "--model", model[0], "Hello"),
        env=KEEPING | {"XDG_CACHE_HOME": str(tmp_path / "file")},
        capture_output=True,
    )
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, model[1].reply("Hello") + "\n", b"")


@pytest.mark.long
def test_a_reader_that_leaves_is_no_error_and_a_full_disk_is_one_line(model):
    words = ("reply", "--no-compilation-cache", "--model", model[0], "Hello")
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = process(*words, stdout=theirs, stderr=subprocess.PIPE)
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (141, b"")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as full:
            done = process(*words, stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (1, b"dialogpt reply: standard output: No space left on device\n")
