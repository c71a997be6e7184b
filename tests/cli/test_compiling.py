"""A word on a terminal while a program compiles, and nothing of it afterwards."""

import io
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialogpt_jax.cli.compiling import WORD, CompilingWord, tell_of_compiling

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
