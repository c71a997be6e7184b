"""A word while XLA compiles: what jax tells of its programs in, a line on a terminal out that goes away when it is done.

A first reply with other settings, or of another length, compiles for some seconds, in which nothing else would be seen.
"""

import contextlib
import sys
import threading
from typing import TextIO

AFTER = 1.0  # seconds that a compilation takes before it is told
WORD = "compiling for these settings ..."
# What jax tells of each program: it is lowered just before it is compiled, or read from the cache.
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"


def tell_of_compiling() -> None:
    """From now on a compilation that takes long is told on standard error, where that is a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        import jax.monitoring

        jax.monitoring.register_event_duration_secs_listener(CompilingWord(sys.stderr).hear)


class CompilingWord:
    """The word, which is there while a program compiles and is wiped out after it, whatever else stands on its line."""

    def __init__(self, stream: TextIO, after: float = AFTER):
        self._stream, self._after = stream, after
        self._lock, self._shown = threading.Lock(), False
        self._timer: threading.Timer | None = None

    def hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """What jax calls with each duration that it has measured."""
        if event == _LOWERED:
            self._stop()
            self._timer = threading.Timer(self._after, self._show)
            self._timer.daemon = True
            self._timer.start()
        elif event == _COMPILED:
            self._stop()

    def _show(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():  # else the compilation is over
                self._write(WORD)
                self._shown = True

    def _stop(self) -> None:
        with self._lock:
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
