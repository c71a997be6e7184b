"""What a process frees stays with it: counted by the pages that it is given anew, not by time."""

import platform
import subprocess
import sys

import pytest

from dialogpt_jax.bench import worker
from dialogpt_jax.bench.cases import ENGINES, OURS
from dialogpt_jax.cli import train

# Scratch memory as XLA takes it: by a thread, 256 MB at a time, written and freed; pages given at the second time.
PROGRAM = """
import resource, sys, threading
{before}
import numpy as np

def use():
    for _ in range(2):
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        np.ones(256 << 20, np.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

faults = []
thread = threading.Thread(target=use)
thread.start()
thread.join()
print(faults[2] - faults[1])
"""
KEEPING = "from dialogpt_jax.freed_memory import keep_freed_memory\nassert keep_freed_memory()"


def pages(before: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)], capture_output=True, text=True, check=True
    )
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_a_thread_frees_is_there_for_what_it_wants_next():
    kept, usual = pages(KEEPING), pages("")
    assert kept < 100
    assert usual > 100  # or the test would show nothing: huge pages are 2 MB, others 4 kB


class Reached(Exception):
    """A command has come as far as a test wants it to."""


def stop(*_):
    raise Reached


def test_whoever_trains_keeps_it(monkeypatch):
    monkeypatch.setattr(train, "keep_freed_memory", stop)
    with pytest.raises(Reached):
        train.app(["--data", "DIR", "--out", "RUN"], result_action="return_value")


@pytest.mark.parametrize("more", [[], [worker.TRAINS]], ids=["replies", "trains"])
@pytest.mark.parametrize("engine", ENGINES)
def test_of_the_engines_that_are_compared_only_ours_keeps_it_where_it_trains(engine, more, monkeypatch):
    kept = []
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr("sys.argv", ["worker", ENGINES[engine].module, *more])
    monkeypatch.setattr("os.dup", stop)  # before it takes over this process's output
    with pytest.raises(Reached):
        worker.main()
    assert kept == [True] * (engine == OURS and more != [])
