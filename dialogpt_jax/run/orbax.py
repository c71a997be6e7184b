"""Orbax, imported at its first use and without its log lines; its errors as one line, the same in every process."""

import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def agreed(read: Callable[[], Any]) -> tuple[Any, str]:
    """What `read` returns; or `None` and the reason, if it failed in any process: they must go the same way."""
    value, reason = None, ""
    try:
        value = read()
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # the checkpoint may be whole
    except Exception as error:  # Orbax, tensorstore and json have no common one for what they cannot read
        reason = root_cause(error)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        if not np.all(multihost_utils.process_allgather(np.asarray(value is not None))):
            return None, reason or "another process could not read it"
    return value, reason


def root_cause(error: BaseException) -> str:
    """What was wrong first, in one line: the system's own words where it is an error of the system."""
    while error.__cause__ is not None:
        error = error.__cause__
    if number := re.search(r"os_error_code='(\d+)'", str(error)):  # tensorstore says it at the end of a long line
        return os.strerror(int(number[1]))
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:200] + "…"


@functools.cache
def orbax() -> Any:
    """Orbax, imported at the first use, since it takes seconds; and what it says beside its errors, silenced."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)  # see without_orphans
    sys.unraisablehook = without_orphans(sys.unraisablehook)
    return ocp


def without_orphans(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """An unraisable hook that passes on to `hook` all but what follows from an error that Orbax has raised already.

    After a first error Orbax leaves its event loop: tensorstore's threads then answer to nobody, and its own coroutines
    are dropped, some before they ran. Python would print a traceback for each.
    """

    def pass_on(unraisable: Any) -> None:
        coroutine = getattr(unraisable.object, "cr_code", None)
        lost = coroutine is not None and "orbax" in coroutine.co_filename
        orphan = unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed"
        if not lost and not orphan:
            hook(unraisable)

    return pass_on
