"""How many programs XLA compiled while a block ran, by jax's own events.

    with count_compilations() as programs:
        f(x)
    assert programs == []          # their durations, in seconds

One listener is registered for the whole process, since jax has no public way to take one off.
"""

import contextlib
from collections.abc import Iterator

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"

_open: list[list[float]] = []


def _note(event: str, duration: float, **_) -> None:
    if event == COMPILED:
        for programs in _open:
            programs.append(duration)


jax.monitoring.register_event_duration_secs_listener(_note)


@contextlib.contextmanager
def count_compilations() -> Iterator[list[float]]:
    """A list that gets one duration for each program compiled inside the block."""
    programs: list[float] = []
    _open.append(programs)
    try:
        yield programs
    finally:
        _open[:] = [other for other in _open if other is not programs]
