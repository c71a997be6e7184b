"""A process of one engine: requests in, a JSON object a line on stdin; answers out, one line each.

    {"do": "call", "name": "make", "words": {…}} → {"value": …}      a function of the engine's module
    {"do": "make", "key": 0, "words": {…}}       → {"seconds": 1.2}  makes a `Program` and runs it once, to warm it
    {"do": "time", "key": 0, "calls": 3}         → {"seconds": [0.1, 0.1, 0.1]}
    {"do": "drop"}                               → {}                lets all programs go

    python -m dialogpt_jax.bench.worker MODULE [train]

What fails is {"error": "one line"}. What libraries print goes to stderr. When its input ends, the command is gone: then it
ends at once, whatever it does, and what it began with it.
"""

import gc
import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dialogpt_jax.bench.cases import ENGINES, OURS
from dialogpt_jax.errors import one_line
from dialogpt_jax.freed_memory import keep_freed_memory

TRAINS = "train"  # said to a process that measures nothing else
LONG = 20.0  # seconds: what takes so long is not run once more only to see how often it fits into a turn


class Program(NamedTuple):
    """What is timed: `run`, until its result is there. `before` is not timed."""

    run: Callable[[], Any]
    before: Callable[[], Any] = lambda: None


def timed(program: Program) -> float:
    """Seconds of one call."""
    program.before()
    start = time.perf_counter()
    program.run()
    return time.perf_counter() - start


def answer(module: Any, programs: dict[int, Program], request: dict[str, Any]) -> dict[str, Any]:
    """Does what a request says."""
    if request["do"] == "call":
        return {"value": getattr(module, request["name"])(**request["words"])}
    if request["do"] == "make":
        programs[request["key"]] = module.make(**request["words"])
        first = timed(programs[request["key"]])  # compiles
        return {"seconds": first if first > LONG else timed(programs[request["key"]])}
    if request["do"] == "time":
        return {"seconds": [timed(programs[request["key"]]) for _ in range(request["calls"])]}
    programs.clear()
    gc.collect()
    return {}


def requests() -> Iterator[str]:
    """The lines of the input, which a thread reads, so that its end is seen while something is measured."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():  # a group of its own, as the command makes it
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def main() -> None:
    if sys.argv[1:] == [ENGINES[OURS].module, TRAINS]:
        keep_freed_memory()  # as `dialogpt train` does; torch in bfloat16 is slower with it
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not write into the answers
    module, programs = None, {}  # type: ignore[var-annotated]
    for line in requests():
        try:
            module = module or importlib.import_module(sys.argv[1])
            told = answer(module, programs, json.loads(line))
        except Exception as error:
            told = {"error": one_line(error).splitlines()[0]}
        answers.write(json.dumps(told) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
