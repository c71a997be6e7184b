"""Work for other processes: a function and its items in, results in the items' order out.

Workers are plain child processes that speak pickle over their pipes, not `multiprocessing`: that imports the caller's
main program again in each child (a notebook or a script without a guard breaks), and a fork copies the threads' locks
that jax and `tokenizers` hold. These import neither jax nor the program, and start in a quarter of a second. They end with
their parent, however it ends: whoever runs the command again would write beside them.
"""

import collections
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# The package's own `__init__` imports jax; a stand-in with its path finds the modules without it.
_BOOT = """
import sys, types
sys.path[:] = {path!r}
package = types.ModuleType("dialogpt_jax")
package.__path__ = [{package!r}]
sys.modules["dialogpt_jax"] = package
from dialogpt_jax.data.workers import serve
serve({parent})
"""
_SECONDS_TO_DIE = 5.0  # enough to write a traceback
_SECONDS_BETWEEN_LOOKS = 0.1  # at the parent; less than Python needs to start, so that no other run is there yet
# One thread each: there are as many workers as there are cores.
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> contextlib.AbstractContextManager[Iterator[Result]]:
    """`map(function, items)` by several processes; at most `workers + 2` items and results are held at once.

        with map_in_order(function, items, workers=4) as results:
            for result in results: …

    Args:
      function: can be pickled, with a module that needs no jax; it is sent to each worker once.
      items: taken as they are needed.
      workers: processes; with 1, this one does the work.

    Raises:
      Exception: what `function` or `items` raised.
      ChildProcessError: a worker was killed.
    """
    if workers == 1:
        return contextlib.nullcontext(map(function, items))
    return _in_processes(function, items, workers)


@contextlib.contextmanager
def _in_processes(function: Callable, items: Iterable, count: int) -> Iterator[Iterator]:
    package = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", _BOOT.format(path=sys.path, package=package, parent=os.getpid())]
    children: list[subprocess.Popen] = []
    idle: queue.SimpleQueue[tuple[subprocess.Popen, list[Any]]] = queue.SimpleQueue()
    threads = ThreadPoolExecutor(count)  # each waits for one worker

    def ask(item: Any) -> Any:
        child, messages = idle.get()
        messages.append(item)
        try:
            for message in messages:  # the function too, if this is the worker's first item
                child.stdin.write(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            result, error = pickle.load(child.stdout)  # type: ignore[arg-type]
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            with contextlib.suppress(subprocess.TimeoutExpired):  # it has ended, or it never answered
                child.wait(timeout=_SECONDS_TO_DIE)
            child.kill()
            status = child.wait()
            raise ChildProcessError(f"a worker ended with status {status}; fewer workers need less memory") from None
        finally:
            idle.put((child, []))
        if error is not None:
            raise error
        return result

    try:
        for _ in range(count):
            children.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **_ONE_THREAD}
                )
            )
            idle.put((children[-1], [function]))
        yield _ordered(threads, ask, items, count + 2)
    finally:
        for child in children:
            child.kill()
        threads.shutdown(wait=True, cancel_futures=True)
        for child in children:
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]


def _ordered(threads: ThreadPoolExecutor, ask: Callable, items: Iterable, most: int) -> Iterator:
    waiting: collections.deque[Future] = collections.deque()
    for item in items:
        if len(waiting) == most:
            yield waiting.popleft().result()
        waiting.append(threads.submit(ask, item))
    while waiting:
        yield waiting.popleft().result()


def _end_with(parent: int) -> None:
    """Ends this process once its parent is gone, within an item; between two of them stdin says so."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def serve(parent: int) -> None:
    """A worker's life: a function from stdin, then items until it ends; a result or an exception for each to stdout."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this process
    items, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what prints, from Python or below it, must not come between
    try:
        function = pickle.load(items)
        while True:
            item = pickle.load(items)
            answer: tuple[Any, Exception | None]
            try:
                answer = function(item), None
            except Exception as error:
                answer = None, error
            results.write(pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))
            results.flush()
    except (EOFError, BrokenPipeError):  # the parent has left
        return
