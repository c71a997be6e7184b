"""A request to stop: a signal in; out, after the step that runs, the same answer in every process.

A scheduler that takes a machine away sends SIGTERM and waits some seconds. One process sees it between two steps. Of
several, each may get it at another moment, or only one at all: jax's own preemption service then chooses a step that
all of them reach.
"""

import signal
import threading
from types import FrameType

import jax


class Stopping:
    """Watches for SIGTERM, and Ctrl-C, while a run goes; a second Ctrl-C interrupts at once. A context manager.

    With several processes jax takes SIGTERM itself (`jax.distributed.initialize`), and Ctrl-C is as always.
    """

    def __init__(self) -> None:
        self._asked = ""
        self._before: dict[int, object] = {}

    def asked(self, step: int) -> str:
        """What asked for a stop after this step, as a word for a person; "" if nothing did. Every process answers alike."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else ""
        return self._asked

    def __enter__(self) -> "Stopping":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
