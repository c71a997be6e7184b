"""A word on a terminal while a program compiles, and nothing of it afterwards."""

import io
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counter import count_compilations
from fakes import tiny_tokenizer

import dialogpt_jax as dg
from dialogpt_jax.cli.chat import reply_ahead
from dialogpt_jax.cli.compiling import WORD, CompilingWord, compile_ahead, is_compiling_ahead, tell_of_compiling

WIPED = "\b" * len(WORD) + " " * len(WORD) + "\b" * len(WORD)


class Screen(io.StringIO):
    def isatty(self):
        return True


_ears = []  # jax lets no listener go: one for all, that passes on


def _pass_on(event, duration, **named):
    for ear in _ears:
        ear(event, duration, **named)


jax.monitoring.register_event_duration_secs_listener(_pass_on)


@pytest.fixture
def ears(monkeypatch):
    """What is registered with jax while the test runs."""
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", _ears.append)
    yield _ears
    _ears.clear()


@jax.jit
def slow_to_compile(x):
    for _ in range(60):
        x = jnp.sort(jnp.tanh(x) @ x, axis=0)
    return x


def test_a_compilation_of_a_program_is_told_and_wiped_out(ears):
    screen = Screen()
    ears.append(CompilingWord(screen, after=0.001).hear)
    slow_to_compile(np.ones((3, 3), np.float32))
    shown = screen.getvalue()
    assert shown.startswith(WORD)
    assert shown.replace(WORD + WIPED, "") == ""
    screen.truncate(0)
    slow_to_compile(np.ones((3, 3), np.float32))  # compiled already
    assert screen.getvalue() == ""


def test_what_is_over_soon_is_not_told():
    screen = Screen()
    word = CompilingWord(screen, after=0.05)
    for _ in range(3):
        word.hear("/jax/core/compile/jaxpr_to_mlir_module_duration", 0.1, fun_name="f")
        word.hear("/jax/core/compile/backend_compile_duration", 0.1, fun_name="f")
    time.sleep(0.2)
    word._show()  # a timer that ran out just as the compilation ended
    assert screen.getvalue() == ""
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_the_word_stays_until_the_last_of_several_threads_has_compiled():
    screen, done = Screen(), threading.Event()
    word = CompilingWord(screen, after=0.1)

    def compile_long():
        word.hear("/jax/core/compile/jaxpr_to_mlir_module_duration", 0.1)
        done.wait(20)
        word.hear("/jax/core/compile/backend_compile_duration", 0.1)

    def compile_and_die():  # its end is never told
        word.hear("/jax/core/compile/jaxpr_to_mlir_module_duration", 0.1)

    long, dying = threading.Thread(target=compile_long), threading.Thread(target=compile_and_die)
    long.start()
    dying.start()
    dying.join()
    word.hear("/jax/core/compile/jaxpr_to_mlir_module_duration", 0.1)
    word.hear("/jax/core/compile/backend_compile_duration", 0.1)
    time.sleep(0.4)
    assert screen.getvalue() == WORD
    done.set()
    long.join()
    assert screen.getvalue() == WORD + WIPED


def test_threads_that_compile_again_and_again_are_told_without_a_fault():
    screen, faults = Screen(), []
    word = CompilingWord(screen, after=1e-4)

    def compile_often():
        try:
            for _ in range(400):
                word.hear("/jax/core/compile/jaxpr_to_mlir_module_duration", 0.1)
                word.hear("/jax/core/compile/backend_compile_duration", 0.1)
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=compile_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert screen.getvalue().replace(WORD + WIPED, "") == ""


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_nothing_is_told_where_there_is_no_terminal(stream, monkeypatch, ears):
    monkeypatch.setattr(sys, "stderr", stream)
    tell_of_compiling()
    assert not ears
    monkeypatch.setattr(sys, "stderr", Screen())
    tell_of_compiling()
    assert len(ears) == 1


def test_a_terminal_that_is_gone_is_survived():
    screen = Screen()
    screen.close()
    word = CompilingWord(screen, after=0.001)
    word.hear("/jax/core/compile/jaxpr_to_mlir_module_duration", 0.1)
    time.sleep(0.1)
    word.hear("/jax/core/compile/backend_compile_duration", 0.1)


def test_a_chat_s_programs_are_there_when_the_first_line_is_and_nothing_was_said():
    tokenizer = tiny_tokenizer()
    config = dg.GPT2Config(
        vocab_size=tokenizer.vocab_size,
        n_positions=48,
        n_embd=8,
        n_layer=1,
        n_head=1,
        eos_token_id=tokenizer.end_of_text_id,
    )
    shapes = jax.eval_shape(lambda: dg.init_params(config, jax.random.key(0)))
    bot = dg.Bot(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), config, tokenizer)
    chat = bot.chat(max_new_tokens=8)
    compile_ahead(lambda: reply_ahead(bot, chat))
    while is_compiling_ahead():
        time.sleep(0.01)
    assert chat.turns == []
    with count_compilations() as programs:
        chat.say("Hello")
    assert programs == []


def test_nothing_more_is_compiled_ahead_when_somebody_waits():
    done, begun, go_on = [], threading.Event(), threading.Event()

    def use():
        for part in range(3):
            yield done.append(part)
            begun.set()
            go_on.wait()

    wait = compile_ahead(use)
    begun.wait()
    threading.Timer(0.1, go_on.set).start()
    wait()
    assert done == [0, 1]


def test_what_is_compiled_ahead_is_told_to_whom_waits_alone(ears):
    screen = Screen()
    word = CompilingWord(screen, after=0.001)
    ears.append(word.hear)
    wait = compile_ahead(lambda: [slow_to_compile(np.ones((4, 4), np.float32))], word)
    while is_compiling_ahead():
        time.sleep(0.01)
    wait()
    assert screen.getvalue() == ""
    compile_ahead(lambda: [slow_to_compile(np.ones((5, 5), np.float32))], word)()
    assert not is_compiling_ahead()
    assert screen.getvalue() == WORD + WIPED


def test_what_goes_wrong_ahead_is_left_to_the_reply_itself(capfd):
    compile_ahead(lambda: [1 // 0])()
    assert capfd.readouterr() == ("", "")


LEFT = """
import atexit, time
from dialogpt_jax.cli import compiling, main
def start():
    compiling.compile_ahead(lambda: [time.sleep(600)])
    atexit.register(print, "torn down")
    {end}
main.main = start
main.run_process()
"""


@pytest.mark.parametrize(("end", "status"), [("return 2", 2), ("raise SystemExit(143)", 143)])
def test_a_process_that_compiles_still_ends_without_being_torn_down(end, status):
    done = subprocess.run([sys.executable, "-c", LEFT.format(end=end)], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")
