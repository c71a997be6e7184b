"""A word while XLA compiles: what jax tells of its programs in, a line on a terminal out that goes away when it is done.

A first reply with other settings, or of another length, compiles for some seconds, in which nothing else would be seen.
Those of a chat's first reply are made on another thread while the first line is typed, and told where they are waited for.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TextIO

AFTER = 1.0  # seconds that a compilation takes before it is told
WORD = "compiling for these settings ..."
# What jax tells of each program: it is lowered just before it is compiled, or read from the cache.
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
PROMPT_FIRST = 0.2  # seconds: a signal that comes before the prompt waits for a key would be heard at the next key only
_AHEAD = "compiling ahead"  # the name of the thread


def tell_of_compiling() -> "CompilingWord | None":
    """From now on a compilation that takes long is told on standard error, where that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    import jax.monitoring

    word = CompilingWord(sys.stderr)
    jax.monitoring.register_event_duration_secs_listener(word.hear)
    return word


def compile_ahead(use: Callable[[], Iterable[object]], word: "CompilingWord | None" = None) -> Callable[[], None]:
    """Uses some programs on another thread, so that they are compiled.

    What goes wrong there goes wrong again where the programs are wanted, and is told then.

    Args:
      use: a part of it at a time; when somebody waits, no other part is begun.
      word: what tells whoever waits.

    Returns:
      The function that waits for the end.
    """
    wanted = threading.Event()

    def quietly() -> None:
        wanted.wait(PROMPT_FIRST)
        with contextlib.suppress(Exception):
            for _ in use():
                if wanted.is_set():
                    break

    thread = threading.Thread(target=quietly, name=_AHEAD, daemon=True)
    thread.start()

    def wait() -> None:
        wanted.set()
        if word is None:
            thread.join()
        elif thread.is_alive():
            word.tell_until(thread.join)

    return wait


def is_compiling_ahead() -> bool:
    """Whether a thread of `compile_ahead` is at work still."""
    return any(thread.name == _AHEAD for thread in threading.enumerate())


class CompilingWord:
    """The word, which is there while a program compiles and is wiped out after it, whatever else stands on its line.

    Several threads may compile at the same time: the word stays until the last of them is done.
    """

    def __init__(self, stream: TextIO, after: float = AFTER):
        self._stream, self._after = stream, after
        self._lock, self._shown = threading.Lock(), False
        self._timer: threading.Timer | None = None
        self._compiling: set[threading.Thread] = set()

    def hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """What jax calls with each duration that it has measured."""
        if threading.current_thread().name == _AHEAD:  # somebody is typing
            return
        if event == _LOWERED:
            self._start()
        elif event == _COMPILED:
            self._stop()

    def tell_until(self, end: Callable[[], object]) -> None:
        """The word until a function returns, if that takes long."""
        self._start()
        try:
            end()
        finally:
            self._stop()

    def _start(self) -> None:
        self._stop()
        with self._lock:
            self._compiling.add(threading.current_thread())
            if self._timer is None:
                self._timer = threading.Timer(self._after, self._show)
                self._timer.daemon = True
                self._timer.start()

    def _show(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():  # else the compilation is over
                self._write(WORD)
                self._shown = True

    def _stop(self) -> None:
        with self._lock:
            self._compiling -= {threading.current_thread()}
            if any(thread.is_alive() for thread in self._compiling):
                return
            self._compiling.clear()
            if self._timer is not None:
                self._timer.cancel()
            if self._shown:
                back = "\b" * len(WORD)
                self._write(back + " " * len(WORD) + back)
            self._timer, self._shown = None, False

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody can read it
            self._stream.write(text)
            self._stream.flush()
