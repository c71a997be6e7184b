"""`dialogpt data reddit` in processes of its own: words in; its status, its most memory and what it wrote, out."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAM = "import sys; from dialogpt_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
PACKAGE = Path(__file__).parents[1]


def start(*words: object) -> subprocess.Popen:
    """The command, leader of a group of processes."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "data", "reddit", *map(str, words)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(*words: object) -> tuple[str, int, float]:
    """What a command said, the most bytes that it and its workers held together, and the seconds it took."""
    began, most = time.monotonic(), 0
    child = start(*words)
    while child.poll() is None:
        most = max(most, memory_of_group(child.pid))
        time.sleep(0.05)
    said, _ = child.communicate()
    assert child.returncode == 0, said
    return said, most, time.monotonic() - began


def kill_when(ready: Callable[[], bool], *words: object) -> bool:
    """Starts a command and kills it with its workers once something is true; False if it ended before."""
    child = start(*words)
    while child.poll() is None and not ready():
        time.sleep(0.002)
    ended = child.poll() is not None
    if not ended:
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode in (0, -signal.SIGKILL)
    return not ended


def memory_of_group(group: int) -> int:
    """The bytes in memory of all processes of a group."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:  # it has just ended
            pass
    return total


def digests(folder: Path) -> dict[str, str]:
    """What a corpus is, by the names of its files, but for the picture; a run's folder stands in none of them."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.suffix != ".png"
    }
