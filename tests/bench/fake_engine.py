"""An engine of the benchmark that computes nothing: it notes each call in a file, and fails as its model's name says."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dialogpt_jax.bench.worker import Program

LOG = Path(os.environ["FAKE_ENGINE_LOG"])


def note(*words: str) -> None:
    note_of(os.getpid(), *words)


def note_of(pid: int, *words: str) -> None:
    with LOG.open("a") as file:
        file.write(" ".join([*words, str(pid)]) + "\n")


def write_model(folder: str, *, size: str | None, model: str | None, gguf: bool) -> dict:
    note("write", folder)
    if os.environ.get("FAKE_ENGINE_FAULT", "") == "killed at once":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"parameters": 1000, "layers": 1, "width": 8, "vocabulary": 100}


def write_contexts(folder: str, *, contexts: int, drawn: bool) -> int:
    return contexts


def describe_machine(dtypes: list[str]) -> dict:
    speeds = {"bandwidth": 1e9, "flops": dict.fromkeys(dtypes, 1e12)}
    device = os.environ.get("FAKE_ENGINE_DEVICE", "cpu")
    return {"device": device, "cpu": "a CPU", "cores": 2, "cpu_flags": ["avx2"], "jax": "0", "python": "3"} | speeds


def least(folder: str, dtype: str, case: dict, speeds: dict) -> float:
    return 0.001


def training_operations(folder: str, case: dict) -> float:
    return 1e12


def compiles() -> bool:
    return "FAKE_ENGINE_COMPILES" in os.environ


def profile(folder: str, dtype: str, case: dict) -> dict:
    if os.environ.get("FAKE_ENGINE_FAULT", "") == f"no profile {dtype}":
        raise ValueError("no such trace")
    return {"plain_ms": 2.0, "traced_ms": 3.0, "scopes": [{"scope": "loop/block", "ms": 3.0, "share": 1.0}]}


def make(folder: str, dtype: str, what: str, case: dict, threads: int) -> Program:
    fault = os.environ.get("FAKE_ENGINE_FAULT", "")
    note("begun", *sys.argv[2:])
    print("a library that prints", flush=True)

    def run() -> None:
        note("run", dtype, case["line"])
        if fault == f"killed {dtype}":
            print("loading: 100%", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == f"error {dtype}":
            raise ValueError("no such\nkernel")
        if fault == f"exits {dtype}":
            print("out of memory", file=sys.stderr, flush=True)
            os._exit(3)
        if fault == "hangs":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            note_of(child.pid, "child")
            time.sleep(60)
        time.sleep(0.004)

    return Program(run)
