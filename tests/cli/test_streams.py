"""Standard input, output and error: pipes that close, disks that are full, streams that are closed, bytes from Windows."""

import io
import json
import os
import signal
import subprocess
import sys

import fakes
import pytest

from dialogpt_jax.cli import program_cache, streams

PATIENCE = 240  # seconds that a process gets on a busy machine


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A fake model's directory, and the bot that is in it."""
    folder = tmp_path_factory.mktemp("streams") / "model"
    bot = fakes.tiny_bot()
    bot.save(folder)
    return str(folder), bot


def shell(line: str, *, model: str = "", stdin: bytes = b"", **env: str):
    """A line of bash in which `dialogpt` is the command, with the outputs buffered as they are for a user."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONUNBUFFERED", "XLA_FLAGS", "PYTHONUTF8")}
    clean |= {"DIALOGPT_NO_COMPILATION_CACHE": "1", "PYTHON": sys.executable, "MODEL": model} | env
    begin = 'set -o pipefail; dialogpt() { "$PYTHON" -m dialogpt_jax.cli.main "$@"; }; '
    return subprocess.run(["bash", "-c", begin + line], input=stdin, env=clean, capture_output=True, timeout=PATIENCE)


def test_a_chat_ends_when_its_reader_leaves(model):
    """Three turns, a reader of one line: the second reply finds the pipe closed, and the third turn is never made."""
    done = shell(
        'dialogpt chat --model "$MODEL" --max-new-tokens 4 | head -1; echo ${PIPESTATUS[0]}',
        model=model[0],
        stdin=b"Hello\nno\n/reset\n",
    )
    first = model[1].chat(max_new_tokens=4).say("Hello")
    assert done.stdout.decode().splitlines() == [*first.splitlines(), "141"]
    assert done.stderr == b""  # neither a complaint nor what `/reset` says


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.long
def test_a_full_disk_is_one_line_that_names_the_output_and_status_1(model):
    for words in (
        'inspect "$MODEL" --json',
        'reply --model "$MODEL" Hello',
        'chat --model "$MODEL"',
        "--help",
        "reply --help",
    ):
        done = shell(f"dialogpt {words} > /dev/full", model=model[0], stdin=b"Hello\nno\n")
        name = f"dialogpt {words.split()[0]}" if not words.startswith("-") else "dialogpt"
        assert (done.returncode, done.stderr.decode()) == (1, f"{name}: standard output: No space left on device\n")


def test_what_is_told_has_its_controls_escaped(capsys):
    streams.tell("warning: tensor \x1b]0;title\x07\n\x9b2J\rfine")
    assert capsys.readouterr() == ("", "warning: tensor \\x1b]0;title\\x07\n\\x9b2J\\rfine\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("letters", [10, 100_000])  # within what the output holds back, and beyond it
@pytest.mark.parametrize("write", [streams.show, streams.print_json])
def test_a_full_disk_is_named_however_much_is_written(write, letters, monkeypatch):
    def write_all():
        write(json.dumps("x" * letters))
        streams.flush()

    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="No space left on device: 'standard output'"):
            write_all()
        streams.drop_output()


def test_streams_that_are_closed_are_empty(model):
    done = shell('dialogpt reply --model "$MODEL" - <&-', model=model[0])
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"dialogpt reply: the dialogue has no turn; give at least one text to reply to\n"
    assert shell("dialogpt --help 2>&-").returncode == 0
    assert shell("dialogpt --help >&-").returncode == 0
    done = shell("dialogpt reply --seed x Hi 2>&-")
    assert (done.returncode, done.stdout) == (1, b"")  # the complaint does not land among the output


def test_an_ascii_terminal_gets_help_replies_and_json(model):
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    for command in ("", "chat", "reply", "inspect", "convert", "data", "data check", "data prepare", "train", "eval"):
        done = shell(f"dialogpt {command} --help", **ascii_only)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.isascii()
        assert done.stdout.strip()


def test_main_runs_where_standard_input_has_been_read_from():
    line = """printf 'Hello\\nno\\n' | "$PYTHON" -c 'import sys; from dialogpt_jax.cli.main import main
print(input()); sys.exit(main(["--version"]))'"""
    done = shell(line)
    assert (done.returncode, done.stderr, done.stdout.splitlines()[0]) == (0, b"", b"Hello")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_is_the_same_value_in_every_encoding(encoding, monkeypatch):
    """And no control character is bare in it, which a terminal might obey."""
    value = {"text": "Hi 😀 é \x1b]0;x\x07 \x9b31m \x7f"}
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", newline="")
    monkeypatch.setattr(sys, "stdout", out)
    streams.print_json(json.dumps(value, ensure_ascii=False))
    out.flush()
    written = out.buffer.getvalue().decode(encoding)
    assert json.loads(written) == value
    assert written.count("\n") == 1
    assert all(c.isprintable() for c in written.rstrip("\n"))
    assert ("😀" in written) is (encoding == "utf-8")


@pytest.mark.long
def test_windows_line_ends_and_a_byte_order_mark_change_no_reply(model):
    expected = (model[1].reply(["Hello", "no"], max_new_tokens=4) + "\n").encode()
    for data in (b"Hello\nno\n", b"\xef\xbb\xbfHello\r\nno\r\n", b"Hello\r\n\r\nno"):
        done = shell('dialogpt reply --model "$MODEL" --max-new-tokens 4 -', model=model[0], stdin=data)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, b"")


INTERRUPTED = """
import signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from dialogpt_jax.cli.main import main
sys.exit(main(["reply", "--no-compilation-cache", "Hi"]))
"""


@pytest.mark.parametrize("module", ["cyclopts", "dialogpt_jax.cli.reply", "jax", "flax", "dialogpt_jax.chat.bot"])
def test_ctrl_c_during_the_imports_is_130_and_no_traceback(module):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(module=module)], capture_output=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


SWALLOWED = """
import gc, signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup, it is ignored from the start
from dialogpt_jax.cli import main as command

left = 2

def collected(phase, info):
    global left
    if phase == "stop" and left:
        left -= 1
        signal.raise_signal({number})

def work(words, prefix):
    gc.callbacks.append(collected)
    try:
        while left:
            gc.collect()
        time.sleep({patience})
    finally:
        time.sleep(0.2)  # in which no second signal comes
        print("put away")

command._run = work
command.run_process()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_that_comes_in_a_callback_of_the_collector_is_not_lost(number):
    """Python only prints what such a callback raises; jax has one."""
    script = SWALLOWED.format(number=int(number), patience=PATIENCE)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=PATIENCE + 60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"put away\n", b"")


LEAVING = """
import atexit, signal, sys
from dialogpt_jax.cli import main as command
atexit.register(signal.raise_signal, signal.SIGINT)
command._run = lambda words, prefix: print("Hello.") or 0
command.run_process()
"""


def test_ctrl_c_when_all_is_said_is_no_traceback():
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"Hello.\n", b"")


COMPILING = """
import os, signal, sys, threading
import jax
from dialogpt_jax.cli.main import run_process
def interrupt(event, duration_secs, **kwargs):
    if event.endswith("jaxpr_to_mlir_module_duration") and kwargs["fun_name"] == "jit(reply_program)":
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
jax.monitoring.register_event_duration_secs_listener(interrupt)
sys.argv[1:] = ["reply", "--no-compilation-cache", "Hi"]
run_process()
"""


@pytest.mark.long
def test_ctrl_c_while_a_program_compiles_is_130():
    done = subprocess.run([sys.executable, "-c", COMPILING], capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("dialogpt reply --model $MODEL --max-new-tokens 4 Hello", "whole/*"),
        ("echo Hello | dialogpt chat --model $MODEL --max-new-tokens 4", "xla/*-cache"),
    ],
    ids=["a reply's", "jax's"],
)
def test_a_damaged_program_is_made_anew_once_and_nothing_is_said(model, tmp_path, words, kept):
    place = {"XDG_CACHE_HOME": str(tmp_path), "DIALOGPT_NO_COMPILATION_CACHE": ""}
    expected = (0, (model[1].reply("Hello", max_new_tokens=4) + "\n").encode(), b"")
    runs = []
    for left in (0.5, 0.0, 1.0):
        done = shell(words, model=model[0], **place)
        assert (done.returncode, done.stdout, done.stderr) == expected
        programs = {path: path.read_bytes() for path in (tmp_path / "dialogpt_jax").glob(kept)}
        runs.append(programs)
        for path, data in programs.items():
            path.write_bytes(data[: int(len(data) * left)])
    assert runs[0].keys() == runs[1].keys() == runs[2].keys() != set()
    assert all(len(data) > 100 for programs in runs for data in programs.values())


def test_a_cache_that_cannot_be_used_is_told_once(monkeypatch, tmp_path):
    import jax

    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        assert program_cache.heal("something else") == "something else"
        trouble = "Error writing persistent compilation cache entry for 'jit_f': OSError: No space left on device"
        assert (
            program_cache.heal(trouble)
            == f"compiled programs are not kept in {tmp_path}: OSError: No space left on device"
        )
        assert program_cache.heal(trouble) is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_enable_compilation_cache", True)


def test_a_program_that_was_kept_by_half_goes_away_and_the_others_stay(monkeypatch, tmp_path):
    """A process that was killed while it wrote: jax can then write no other program, until it is gone."""
    import jax

    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    for name in ("jit_half-1-cache", "jit_whole-2-cache", "jit_whole-2-atime"):
        (tmp_path / name).write_bytes(b"program")
    try:
        missing = f"FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}/jit_half-1-atime'"
        trouble = f"Error writing persistent compilation cache entry for 'jit_f': {missing}"
        assert program_cache.heal(trouble) is None
        assert jax.config.values["jax_enable_compilation_cache"]
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_enable_compilation_cache", True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jit_whole-2-atime", "jit_whole-2-cache"]


WAITING = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup, it is ignored from the start
from dialogpt_jax.weights import {module} as writer
from dialogpt_jax.cli.main import main

def wait(*_, **__):
    print("half", flush=True)
    time.sleep({patience})

writer.{step} = wait
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_killed_command_leaves_nothing_half_written(model, tmp_path, number):
    """The model's directory is written and not yet in its place when the signal comes."""
    script = WAITING.format(module="directory", step="put_in_place", patience=PATIENCE)
    words = [sys.executable, "-c", script, "convert", model[0], str(tmp_path / "new")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (128 + number, b"", b"")
    assert list(tmp_path.iterdir()) == []


def test_json_goes_into_an_output_without_an_encoding(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    streams.print_json('{"a": "☕"}')
    assert sys.stdout.getvalue() == '{"a": "☕"}\n'
