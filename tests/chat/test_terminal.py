"""The terminal: a line of stdout for each turn through a pipe, one line on stderr for what goes wrong, and it goes on."""

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import fakes
import pytest

import dialogpt_jax as dg
from dialogpt_jax.chat.session import Chat
from dialogpt_jax.chat.terminal import COMMANDS, HELP, SETTABLE, Terminal, _edit_lines, completions
from dialogpt_jax.errors import escape_controls

LENGTH = 8
# Starting Python and jax on a busy machine; a test that waits this long has failed anyway.
PATIENCE = 240


@pytest.fixture(scope="module")
def bot():
    return fakes.tiny_bot()


@pytest.fixture
def talk(bot, monkeypatch, capfd):
    """Runs the terminal on bytes of input: (lines of stdout, lines of stderr, the chat)."""

    def run(data: bytes | str, seed=0):
        data = data if isinstance(data, bytes) else data.encode()
        stdin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="surrogateescape")  # as the command has it
        monkeypatch.setattr(sys, "stdin", stdin)
        terminal = Terminal(bot, bot.chat(seed=seed, max_new_tokens=LENGTH), name="fake")
        assert terminal.run() == 0
        out, err = capfd.readouterr()
        assert "\033" not in out + err  # no colours in a pipe
        assert "Traceback" not in err
        return out.split("\n")[:-1], err.splitlines(), terminal.chat

    return run


def one_line(text: str) -> str:
    """A reply as it stands in a pipe."""
    return escape_controls(text.replace("\n", " ").replace("\r", " "), keep="\t")


def test_each_line_gets_its_reply_on_a_line(talk, bot):
    lines = ["Hello", "☕", "no", "<|endoftext|>", "שלום \u202eabc", "a\x00b", "[bold]x[/]", "\x1b[31mred"]
    out, err, chat = talk("\n".join(lines))  # the last one without a line end
    assert chat.turns[::2] == lines
    assert out == [one_line(reply) for reply in chat.turns[1::2]]
    assert err == []
    other = bot.chat(max_new_tokens=LENGTH)
    assert [other.say(line) for line in lines] == chat.turns[1::2]


def test_windows_line_ends_and_empty_lines_are_no_turns(talk):
    assert talk(b"Hello\r\n\r\n   \n\nno\r\n")[2].turns[::2] == ["Hello", "no"]
    out, err, chat = talk(b"")
    assert (out, err, chat.turns) == ([], [], [])


def test_a_reply_with_line_ends_is_one_line_in_a_pipe(talk, bot, monkeypatch):
    said = bot.tokenizer.encode("one\r\ntwo\n☕")
    monkeypatch.setattr(Chat, "_tokens", lambda self, context, keys_B: iter([*said, bot.config.eos_token_id]))
    out, _, chat = talk("Hello\nno\n")
    assert out == ["one  two ☕"] * 2
    assert chat.turns[1] == "one\r\ntwo\n☕"


EVIL = "\x1b]0;title\x07 \x9b31m\x08\u2028\ttab"
SEEN = "\\x1b]0;title\\x07 \\x9b31m\\x08\\u2028\ttab"


def test_controls_in_replies_and_in_saved_chats_are_shown_escaped(talk, bot, monkeypatch, tmp_path):
    said = bot.tokenizer.encode(EVIL)
    monkeypatch.setattr(Chat, "_tokens", lambda self, context, keys_B: iter([*said, bot.config.eos_token_id]))
    out, _, chat = talk("Hello\nno\n")
    assert out == [SEEN] * 2
    assert chat.turns[1] == EVIL  # the chat keeps what is true
    bot.chat().save(tmp_path / "chat.json")
    state = json.loads((tmp_path / "chat.json").read_text()) | {"turns": [EVIL.strip(), EVIL]}
    (tmp_path / "chat.json").write_text(json.dumps(state))
    _, err, chat = talk(f"/load {tmp_path / 'chat.json'}\n/undo\n/load {EVIL}\n:smile:/\n/{EVIL} [b]\n")
    text = "\n".join(err)
    assert all(c == "\n" or c.isprintable() for c in text)
    assert err[-1].startswith("/\\x1b]0;title\\x07")


def test_the_same_seed_repeats_and_another_does_not(talk):
    lines = "Hello\nhow are you\nno\n"
    assert talk(lines)[0] == talk(lines)[0]
    assert talk(lines)[0] != talk(lines, seed=1)[0]


def test_undo_and_the_same_line_give_the_same_reply(talk):
    out, err, _ = talk("Hello\nno\n/undo\nno\n/undo\n/undo\nHello\n")
    assert out[1] == out[2]
    assert out[0] == out[3]
    assert err == ["took back: no", "took back: no", "took back: Hello"]


def test_retry_says_another_reply_and_reset_begins_anew(talk):
    out, err, chat = talk("Hello\n/retry\n/retry\n/reset\nHello\n")
    assert len(set(out[:3])) > 1
    assert out[3] == out[0]
    assert err == ["begun anew"]
    assert len(chat.turns) == 2


def test_save_and_load_go_on(talk, tmp_path):
    file = tmp_path / "my chat.json"
    out, err, _ = talk(f"Hello\n/save {file}\nno\n")
    assert err == [f"wrote {file}"]
    again, err, chat = talk(f"/load {file}\nno\n", seed=5)
    assert err == [f"2 turns of {file}"]
    assert again == out[1:]
    assert len(chat.turns) == 4


def test_help_and_settings_are_no_part_of_the_conversation(talk):
    out, err, chat = talk(
        "/help\n/settings\n/settings temperature 0.25\n/settings top_k none\n/settings\n/quit\nHello\n"
    )
    assert (out, chat.turns) == ([], [])
    text = "\n".join(err)
    for command in ("/undo", "/retry", "/reset", "/save", "/load", "/settings", "/help", "/quit", "Ctrl-C", "Ctrl-D"):
        assert command in text
    assert (
        "temperature 0.3, top_k 50, top_p 0.9, no_repeat_ngram 3, max_new_tokens 8, seed 0"
        in err[len(HELP.splitlines())]
    )
    assert "temperature 0.25, top_p 0.9, no_repeat_ngram 3, max_new_tokens 8, seed 0" in err[-1]
    assert chat.sampling == dg.Sampling(temperature=0.25, top_p=0.9, no_repeat_ngram=3)
    _, err, chat = talk("/settings no_repeat_ngram 4\n/settings ngram_scope own\n/settings ngram_scope mine\n")
    assert "no_repeat_ngram 4, ngram_scope own, " in err[1]
    assert err[2] == "ngram_scope is 'mine'; it must be one of reply, own, context"
    assert chat.sampling.no_repeat_ngram == 4


def test_settings_change_the_replies(talk, bot):
    out, _, chat = talk("/settings temperature=0\n/settings max_new_tokens 5\n/settings seed = 9\nHello\n")
    assert (chat.seed, chat.max_new_tokens, chat.sampling.temperature) == (9, 5, None)
    assert out == [one_line(bot.reply("Hello", sampling=dg.Sampling(temperature=0), max_new_tokens=5))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"/nonsense", "/nonsense is no command; /help lists them"),
        (b"/", "/ is no command"),
        (b"/[bold]", "/[bold] is no command"),
        (b"/undo", "nothing to undo"),
        (b"/retry", "nothing to retry"),
        (b"/save", "/save wants a file"),
        (b"/load", "/load wants a file"),
        (b"/load /no/such/file", "/no/such/file: No such file or directory"),
        (b"/load /", "/: Is a directory"),
        (b"/save /", "/: "),
        (b"/save /no/such/file", "/no/such/file: No such file or directory"),
        (b"/save .", ".: "),
        (b"/settings temperature=", "temperature has no value; /settings NAME VALUE, or NAME=VALUE"),
        (b"/settings heat 3", "heat is no setting; there are temperature, "),
        (
            b"/settings penalty_alpha 0.6",
            "penalty_alpha is no setting of a chat; `dialogpt reply --penalty-alpha 0.6` ",
        ),
        (
            b"/settings penalty-alpha=0.6",
            "penalty-alpha is no setting of a chat; `dialogpt reply --penalty-alpha 0.6` ",
        ),
        (b"/settings temperature hot", "temperature: 'hot' is not a number"),
        (b"/settings temperature -1", "temperature is -1"),
        (b"/settings temperature nan", "temperature is nan"),
        (b"/settings top_k 100000", "top_k is 100000"),
        (b"/settings top_k 1.5", "top_k is 1.5"),
        (b"/settings max_new_tokens 0", "max_new_tokens is 0; it must be a whole number from 1"),
        (b"/settings max_new_tokens none", "max_new_tokens: 'none' is not a whole number"),
        (b"/settings seed inf", "seed: 'inf' is not a whole number"),
        (b"/settings seed -1", "seed is -1"),
        (b"/settings seed 99999999999999999999", "seed is 99999999999999999999"),
        (b"\xff\xfe", "lone surrogate"),
    ],
)
def test_what_goes_wrong_is_one_line_and_the_chat_goes_on(talk, bot, line, message):
    out, err, chat = talk(line + b"\nHello\n")
    assert len(err) == 1
    assert message in err[0]
    assert out == [one_line(bot.reply("Hello", max_new_tokens=LENGTH))]
    assert len(chat.turns) == 2


def test_a_turn_that_is_too_long_is_one_line_and_gets_a_reply(talk):
    out, err, chat = talk("€" * 5000 + "\nno\n" + "€" * 5000 + "\nno\n")
    assert len(out) == 4
    assert len(chat.turns) == 8
    assert err == ["the last turn has 15001 tokens; its first 14913 were left out (n_positions is 96)"] * 2


def test_an_input_that_is_closed_is_an_empty_one(bot, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert Terminal(bot, bot.chat(), name="fake").run() == 0


@pytest.mark.parametrize("at", [1, 2])
def test_ctrl_c_stops_a_reply_and_not_the_program(talk, bot, monkeypatch, at):
    """The signal comes in the middle of a step; the reply ends after it, and what was said is a turn."""
    before = signal.getsignal(signal.SIGINT)
    real, said = Chat._tokens, []

    def interrupted(self, context, keys_B):
        for count, token in enumerate(real(self, context, keys_B), start=1):
            if count == at and not said:
                said.append(token)
                signal.raise_signal(signal.SIGINT)
            yield token

    expected = bot.chat(max_new_tokens=LENGTH)
    whole = expected.say("Hello")
    monkeypatch.setattr(Chat, "_tokens", interrupted)
    out, err, chat = talk("Hello\nno\n")
    assert err == []
    assert len(out) == 2
    assert chat.turns[0::2] == ["Hello", "no"]
    assert chat.turns[1] != whole
    assert whole.startswith(chat.turns[1])
    after = dg.Chat(bot, max_new_tokens=LENGTH, turns=chat.turns[:2])
    assert chat.turns[3] == after.say("no")
    assert signal.getsignal(signal.SIGINT) is before


def read_until(terminal: int, wanted: str, seen: str = "", *, nudge=lambda: None) -> str:
    """What the program has written by the time that `wanted` stands in it; `nudge` is called now and then."""
    end, again = time.monotonic() + PATIENCE, time.monotonic() + 3
    while wanted not in seen:
        assert time.monotonic() < end, f"waited for {wanted!r} after {seen!r}"
        if time.monotonic() > again:
            nudge()
            again = time.monotonic() + 3
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_on_a_terminal_there_are_a_prompt_colours_and_ctrl_c(bot, tmp_path):
    bot.save(tmp_path / "model")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dialogpt_jax.cli.main", "chat", "--no-compilation-cache"]
    command += ["--model", str(tmp_path / "model"), "--max-new-tokens", "4"]
    env = os.environ | {"TERM": "xterm-256color", "PYTHONUTF8": "1", "JAX_PLATFORMS": "cpu"}
    env.pop("NO_COLOR", None)
    program = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=tmp_path)
    os.close(theirs)
    try:
        seen = read_until(ours, "you:")
        assert "parameters" in seen
        assert "/help" in seen
        # At the prompt: another prompt. Python's readline can miss a signal that comes just as it begins to wait.
        read_until(ours, "you:", nudge=lambda: program.send_signal(signal.SIGINT))
        os.write(ours, b"Hello\n")
        seen = read_until(ours, "you:", read_until(ours, "bot:"))
        assert "\033[1;32m" in seen  # bold green
        os.write(ours, b"/nonsense\n")
        read_until(ours, "you:", read_until(ours, "is no command"))
        os.write(ours, b"\x04")  # Ctrl-D
        assert program.wait(PATIENCE) == 0
    finally:
        program.kill()
        program.wait()
        os.close(ours)


def test_tab_completes_commands_settings_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.json").touch()
    (tmp_path / "chats").mkdir()
    assert completions("/") == [f"{name} " for name in COMMANDS]
    assert completions("/se") == ["/settings "]
    assert completions("/settings to") == ["top_k ", "top_p ", "top_n_sigma "]
    assert completions("/settings ") == [f"{name} " for name in SETTABLE]
    assert completions("/load ch") == ["chat.json", "chats/"]
    assert completions("Hello /s") == completions("") == completions("/undo x") == []
    assert [
        line.split()[0] for line in HELP.splitlines() if re.match(r"/\w+ (?!top_k|bad_words|beams|rank)", line)
    ] == list(COMMANDS)
    assert max(map(len, HELP.splitlines())) <= 60  # no line is broken in a narrow window


def test_a_chat_is_saved_over_a_chat_and_over_no_other_file(talk, tmp_path):
    data, chat = tmp_path / "talk.jsonl", tmp_path / "chat.json"
    data.write_text('{"turns": ["Hi!", "Hello."]}\n', encoding="utf-8")
    chat.touch()
    out, err, _ = talk(f"Hello\n/save {data}\n/save {chat}\nno\n/save {chat}\n")
    assert err == [f"{data} is there, and is no chat; name another file", f"wrote {chat}", f"wrote {chat}"]
    assert len(out) == 2
    assert data.read_text(encoding="utf-8") == '{"turns": ["Hi!", "Hello."]}\n'
    assert len(json.loads(chat.read_text(encoding="utf-8"))["turns"]) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("columns", [40, 100])
def test_on_a_terminal_words_are_whole_turns_are_shown_and_what_is_typed_leaves_no_mark(columns, monkeypatch, tmp_path):
    """On a terminal of our own, in this process: a chat with long turns is loaded, and a reply is stopped."""
    import fcntl
    import struct
    import termios

    bot = fakes.tiny_bot()
    said = "I like to go to the cinema in the evening, and then we talk about the films that we have seen."
    chat = Chat(bot, seed=0, max_new_tokens=6, turns=["One?", "Two.", "Hello\x1b[2J", said, "And?", said])
    chat.save(tmp_path / "chat.json")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    marks = []

    def tokens(self, context, keys_B):
        for number, token in enumerate(bot.tokenizer.encode(said), start=1):
            if number == 9:
                os.write(ours, b"/undo\n")  # typed ahead, in the middle of the reply
                assert select.select([theirs], [], [], PATIENCE)[0]
                marks.append(termios.tcgetattr(theirs)[3] & termios.ECHO)
                signal.raise_signal(signal.SIGINT)
            yield token

    lines, edited = iter(["Hello", EOFError]), []

    def typed(prompt):
        line = next(lines)
        if line is EOFError:
            raise EOFError
        return line

    with open(theirs, "r+b", buffering=0, closefd=False) as raw:
        stream = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
        for name in ("stdin", "stdout", "stderr"):
            monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr("builtins.input", typed)
        monkeypatch.setattr("dialogpt_jax.chat.terminal._edit_lines", lambda: edited.append(True))
        monkeypatch.setattr(Chat, "_tokens", tokens)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(columns))  # what is asked for the width is descriptor 1, which pytest has
        terminal = Terminal(bot, Chat.load(tmp_path / "chat.json", bot), name="fake", loaded="chat.json")
        assert terminal.run() == 0
        monkeypatch.undo()
        seen = re.sub(r"\x1b\[[0-9;]*m|\r", "", read_until(ours, "(stopped)"))
    assert edited == [True]
    assert marks == [0]
    assert termios.tcgetattr(theirs)[3] & termios.ECHO
    os.close(ours)
    os.close(theirs)
    shown = seen.split("\n")
    assert all(len(line) <= columns for line in shown)
    assert "/undo" not in seen
    assert "6 turns of chat.json; the last 4:" in seen
    assert "One?" not in seen
    assert "you: Hello\\x1b[2J" in shown
    whole = " ".join(shown)
    assert whole.count(f"bot: {said}") == 2
    assert next(line for line in shown if line.startswith("bot: ")) == (
        "bot: I like to go to the cinema in the" if columns == 40 else f"bot: {said}"
    )
    assert said.startswith(terminal.chat.turns[-1])
    assert f"bot: {terminal.chat.turns[-1]}" in whole


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (4, "(cut after 4 tokens; /settings max_new_tokens 8 lets replies run longer)"),
        (60, "(cut after 60 tokens; /settings max_new_tokens 96 lets replies run longer)"),  # the model's positions
        (96, "(cut: the model has 96 positions, and no more)"),
    ],
)
def test_a_reply_that_is_cut_is_told_with_the_number_to_set(bot, limit, said):
    assert Terminal(bot, bot.chat(max_new_tokens=limit), name="fake")._why_cut() == said


def test_tab_offers_what_fits_the_line_up_to_the_cursor(monkeypatch):
    readline = pytest.importorskip("readline")
    before, delimiters = readline.get_completer(), readline.get_completer_delims()
    bound = []
    monkeypatch.setattr(readline, "parse_and_bind", bound.append)
    try:
        _edit_lines()
        assert bound[0] in ("tab: complete", "bind ^I rl_complete")
        assert readline.get_completer_delims() == " "  # else the slash, or a file's name, would be no part of a word
        monkeypatch.setattr(readline, "get_line_buffer", lambda: "/settings top_k")
        monkeypatch.setattr(readline, "get_endidx", lambda: len("/settings to"))
        complete = readline.get_completer()
        assert [complete("", number) for number in range(4)] == ["top_k ", "top_p ", "top_n_sigma ", None]
    finally:
        readline.set_completer(before)
        readline.set_completer_delims(delimiters)


def test_a_reply_on_a_terminal_has_its_controls_escaped(bot, monkeypatch, capfd):
    monkeypatch.setattr("dialogpt_jax.chat.terminal._no_echo", contextlib.nullcontext)
    terminal = Terminal(bot, bot.chat(), name="fake")
    terminal.person = True
    terminal._show(iter(["Hi \x1b]0;ti", "tle\x07 there\t", "☕"]))
    assert "Hi \\x1b]0;title\\x07 there\t☕\n" in capfd.readouterr().out


@pytest.mark.parametrize("loaded", [False, True])
def test_the_first_line_of_a_reply_is_broken_where_the_name_before_it_leaves_room(loaded, bot, monkeypatch, capfd):
    monkeypatch.setattr("dialogpt_jax.chat.terminal._no_echo", contextlib.nullcontext)
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal(bot, bot.chat(), name="fake")
    terminal.person = True
    if loaded:
        terminal.chat = Chat(bot, turns=["Hi!", "Hi there, my dear all."])
        terminal._show_turns("chat.json")
    else:
        terminal._show(iter(["Hi there, ", "my dear", " all."]))
    assert "bot: Hi there, my\ndear all.\n" in re.sub(r"\x1b\[[0-9;]*m", "", capfd.readouterr().out)
