"""The engines' processes as seen from the command: a module in; a `Worker` that answers, or says in one line why not, out.

Each worker has a session of its own, so that Ctrl-C reaches the command alone, which ends them all, with the processes
that they began. A worker whose command is gone reads the end of its input, and does the same.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dialogpt_jax


class EngineError(ValueError):
    """An engine that could not do what was asked, or whose process ended; one line."""


class Worker:
    """A process of one engine; it starts when it is made. `words` are its module, and more for `worker.py`."""

    def __init__(self, *words: str, environment: Mapping[str, str] | None = None):
        self._told = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dialogpt_jax.bench.worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            encoding="utf-8",
            env=environment_of_child() | dict(environment or {}),
            start_new_session=True,
        )
        self.pid = self._process.pid

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        """The answer to a request of `worker.py`.

        Raises:
          EngineError: it answered by an error, or ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do} | words) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise EngineError(self._last_words())
        found = json.loads(line)
        if "error" in found:
            raise EngineError(found["error"])
        return found

    def call(self, name: str, **words: Any) -> Any:
        """What a function of the engine's module gives."""
        return self.ask("call", name=name, words=words)["value"]

    def kill(self) -> None:
        """Ends the process and those that it began, whatever they do."""
        waited_for = self._process.returncode is not None  # then its number may be another's
        if not waited_for and hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()

    def close(self) -> None:
        """The same, and waits for its end."""
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                assert stream is not None
                stream.close()
        self._told.close()

    def _last_words(self) -> str:
        status = self._process.wait()
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        if how.endswith("SIGKILL"):  # of which it knew nothing: what it told last is a progress bar, or the like
            return f"its process {how}"
        self._told.seek(0)
        told = self._told.read().decode("utf-8", "replace").strip().splitlines()
        return f"its process {how}" + (f": {told[-1].strip()}" if told else "")


def environment_of_child() -> dict[str, str]:
    """This process's environment, in which Python finds the same package."""
    paths = [str(Path(dialogpt_jax.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@contextlib.contextmanager
def workers_of(
    words: Mapping[str, Sequence[str]], environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, Worker]]:
    """A worker for each name, by its words; at the end, however it comes, none is left."""
    workers: dict[str, Worker] = {}
    try:
        for name, own in words.items():
            workers[name] = Worker(*own, environment=environment)
        yield workers
    finally:
        for worker in workers.values():
            worker.kill()  # all of them before the first is waited for, in which Ctrl-C may come again
        for worker in workers.values():
            worker.close()
