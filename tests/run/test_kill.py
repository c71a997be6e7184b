"""The command `dialogpt train` killed, stopped and divided among processes: every run ends where an unbroken one does.

What comes in is the real command in processes of its own; what is looked at is what it leaves on disk and says.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import fakes
import pytest

from dialogpt_jax.run.fit import CHECKPOINTS

pytestmark = pytest.mark.slow

# Two processes of four devices against one of eight: sums of some hundred float32 terms of about 8, in another order.
TOLERANCE = 1e-5
PATIENCE = 600  # seconds for one process on a busy machine; one that takes longer waits for ever, and is killed
KILLS = int(os.environ.get("DIALOGPT_TESTS_KILLS", "20"))  # .ci/run has fewer
STEPS = 20 + 4 * KILLS  # a life gets through some four
SIZES = f"--steps {STEPS} --batch-size 8 --buckets 1 --max-length 32 --learning-rate 1e-2 --log-every 1 --dropout 0.1"
SIZES += " --save-every 1 --evaluate-every 0"
SERVER = """
import json, os, sys
import dialogpt_jax.cli.progress, dialogpt_jax.cli.train, dialogpt_jax.data.prepare, dialogpt_jax.evaluation.perplexity
import dialogpt_jax.run.fit, dialogpt_jax.evaluation.validation, grain, orbax.checkpoint, tensorboardX
from dialogpt_jax.cli.main import main
for line in sys.stdin:
    out, err, words = json.loads(line)
    child = os.fork()
    if not child:
        sys.stdin = open(os.devnull)  # the command sets up its streams, which it can before they are read only
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
        os._exit(main(words))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
STARTED: list[subprocess.Popen] = []
FLAGS = (
    "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=600"
    " --xla_force_host_platform_device_count="
)


@pytest.fixture(autouse=True)
def nothing_stays():
    """Ends the processes that a failed test has left."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            rest(process)
    STARTED.clear()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and dialogues."""
    folder = tmp_path_factory.mktemp("kill")
    fakes.tiny_bot().save(folder / "model")
    words = ["Hello", "how", "are", "you", "I", "am", "fine", "thanks", "What is this", "And the", "rain", "No"]
    rng = random.Random(0)
    turns = [[" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(rng.randint(2, 4))] for _ in range(50)]
    (folder / "talk.jsonl").write_text("".join(json.dumps({"turns": t}) + "\n" for t in turns))
    return folder


def command(place: Path, *words) -> list[str]:
    return ["train", *map(str, ("--init", place / "model", "--data", place / "talk.jsonl", *SIZES.split(), *words))]


def environment(place: Path, devices: int, **more) -> dict[str, str]:
    more |= {"XLA_FLAGS": FLAGS + str(devices), "XDG_CACHE_HOME": place / "cache", "PYTHONWARNINGS": "ignore"}
    return os.environ | {name: str(value) for name, value in more.items()}


def start(place: Path, *words, devices: int, **more) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-m", "dialogpt_jax.cli.main", *command(place, *words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(place, devices, **more),
    )
    STARTED.append(process)
    end = threading.Timer(PATIENCE, process.kill)
    end.daemon = True
    end.start()
    return process


def finish(process: subprocess.Popen) -> str:
    out, err = rest(process)
    assert process.returncode == 0, err[:3000] + err[-1000:]
    assert "Traceback" not in err
    return out


def rest(process: subprocess.Popen) -> tuple[str, str]:
    """What it still says until it ends. (`communicate` would lose what a loop over the lines has read ahead.)"""
    with process:
        return process.stdout.read(), process.stderr.read()


class Lives:
    """Processes that run the command, each forked from one that has imported everything, so that they begin at once."""

    def __init__(self, place: Path):
        self.place, self.count, self.pid = place, 0, 0
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment(place, 1), **pipes)

    def begin(self, *words) -> None:
        self.count += 1
        self.files = [self.place / f"life {self.count}.{name}" for name in ("out", "err")]
        self.server.stdin.write(json.dumps([*map(str, self.files), command(self.place, *words)]) + "\n")
        self.server.stdin.flush()
        self.pid = int(self.server.stdout.readline())

    def said(self, which: int = 0) -> str:
        return self.files[which].read_text() if self.files[which].exists() else ""

    def hear(self, enough) -> None:
        """Waits until what was said is enough."""
        deadline = time.monotonic() + PATIENCE
        while not enough(self.said()):
            assert time.monotonic() < deadline, self.said(1)
            time.sleep(0.002)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Waits; what it ended with, as `waitpid` says it."""
        return int(self.server.stdout.readline())

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(PATIENCE)
        self.server.stdout.close()


def whole_steps(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / CHECKPOINTS).glob("*") if path.name.isdigit())


def sums(run: Path) -> dict:
    """The checksum, shape and dtype of every array in the last checkpoint."""
    return json.loads((run / CHECKPOINTS / str(whole_steps(run)[-1]) / "about" / "metadata").read_text())["leaves"]


def losses(run: Path) -> dict[int, float]:
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def seen_steps(said: str) -> list[int]:
    return [int(step) for step in re.findall(r"^step (\d+)/", said, re.MULTILINE)]


def test_killed_at_many_moments_it_loses_nothing(place, capfd):
    """Each life is killed a random while after a random line; every second one once a checkpoint is being written.

    The first one lives until it has a whole one.
    """
    lives, run, rng = Lives(place), place / "killed", random.Random(7)
    lives.begin("--out", place / "whole", "--export", place / "expected")
    assert lives.end() == 0, lives.said(1)
    told = repeated = writing = early = 0
    held: list[int] = []
    report = []
    for life in range(KILLS):
        lives.begin("--out", run, "--resume", "--export", place / "found")
        # Steps that it says before it is killed; 0: while it begins.
        wanted = rng.choice([0, 1, 1, 2, 3, 4]) if life else 1
        if not wanted:
            lives.hear(lambda said: "parameters, " in said)
            time.sleep(rng.uniform(0, 3))
        else:
            lives.hear(
                lambda said, wanted=wanted, life=life: len(seen_steps(said)) >= wanted and (life or whole_steps(run))
            )
            if life % 2:
                deadline = time.monotonic() + 5
                while not list((run / CHECKPOINTS).glob("*tmp*")) and time.monotonic() < deadline:
                    time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.02 if life % 2 else 0.25))
        before = whole_steps(run)  # whole before the kill, so they must be there after it
        lives.kill()
        assert lives.end() == signal.SIGKILL, lives.said(1)
        assert not re.search("Traceback|damaged", lives.said(1))
        said, after = lives.said(), whole_steps(run)
        resumed = int((re.findall(r"going on from step (\d+)", said) or ["0"])[0])
        begun = bool(resumed or seen_steps(said))
        assert not begun or resumed == max(held, default=0)
        assert max(after, default=0) >= max(before, default=0) >= max(held, default=0)
        parts = [path.name for path in (run / CHECKPOINTS).glob("*tmp*")]
        last = max(seen_steps(said), default=resumed)
        writing, early = writing + bool(parts), early + (not seen_steps(said))
        repeated, told = repeated + max(min(told, last) - resumed, 0), max(told, last)
        moment = f"while it wrote {', '.join(parts)}" if parts else "between writes"
        report.append(f"{life + 1:3}: from {resumed}, last told {last}, whole then {after}; {moment}")
        held = after
    lives.begin("--out", run, "--resume", "--export", place / "found")
    assert lives.end() == 0, lives.said(1)
    assert f"going on from step {max(held)}" in lives.said()
    lives.close()
    with capfd.disabled():
        print("\n" + "\n".join(report))
        print(
            f"{KILLS} kills: {writing} while a checkpoint was written, {early} before a step was told; "
            f"{repeated} steps done twice"
        )
    assert max(held) < STEPS, "the run was over before the last kill"
    assert writing >= KILLS // 4
    assert (place / "found/model.safetensors").read_bytes() == (place / "expected/model.safetensors").read_bytes()
    assert sums(run) == sums(place / "whole")  # optimiser and key too
    assert losses(run) == losses(place / "whole")
    assert sorted(losses(run)) == list(range(1, STEPS + 1))


def pair(place: Path, *words) -> list[subprocess.Popen]:
    """The command in two processes of four devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": 2}
    return [start(place, *words, devices=4, JAX_PROCESS_ID=number, **common) for number in range(2)]


def test_two_processes_are_one_and_stop_together(place):
    flags = ("--steps", "24", "--dropout", "0", "--save-every", "0", "--evaluate-every", "4")
    finish(start(place, *flags, "--out", place / "one", "--valid", place / "talk.jsonl", devices=8))

    stopped = place / "two"
    first, second = pair(place, *flags, "--out", stopped, "--valid", place / "talk.jsonl", "--export", place / "never")
    heard = []
    for line in first.stdout:
        heard.append(line)
        if line.startswith("step 5/"):
            break
    second.send_signal(signal.SIGTERM)  # one of them alone
    outs = ["".join(heard) + finish(first), finish(second)]
    *earlier, step = sorted(whole_steps(stopped))
    assert set(earlier) <= set(range(4, step, 4))  # the best ones, which stand where they were evaluated
    assert 5 <= step < 24
    assert f"stopped by SIGTERM after step {step} of 24" in outs[0]
    assert not seen_steps(outs[1])  # only the first one speaks
    assert not (place / "never").exists()
    again = place / "again"
    shutil.copytree(stopped, again)

    out = finish(start(place, *flags, "--out", stopped, "--resume", "--valid", place / "talk.jsonl", devices=8))
    assert f"going on from step {step}" in out
    expected = losses(place / "one")
    assert losses(stopped) == pytest.approx(expected, abs=TOLERANCE)
    assert sorted(expected) == list(range(1, 25))

    # As if one of the first evaluations had been the best of all: the first process, which alone reads that, has nothing
    # better to save, and so the other must not wait for it.
    metrics = again / "metrics.jsonl"
    metrics.write_text(re.sub(r'"valid_loss": [\d.]+', '"valid_loss": 0.01', metrics.read_text()))
    words = ("--out", again, "--resume", "--valid", place / "talk.jsonl", "--export", place / "both")
    both = [finish(process) for process in pair(place, *flags, *words)]
    assert f"going on from step {step}" in both[0]
    assert losses(again) == pytest.approx(expected, abs=TOLERANCE)
    assert max(set(whole_steps(again)) - {24}) <= step
    assert (place / "both" / "model.safetensors").exists()
    assert not seen_steps(both[1])


def test_what_one_process_cannot_do_stops_both(place):
    """Process 0 prepares the data; the other does not wait for it for ever."""
    began = time.monotonic()
    processes = pair(place, "--out", place / "bad", "--train-on", "Joe")
    ends = [(rest(process)[1], process.returncode) for process in processes]
    assert [status for _, status in ends] == [1, 1]
    assert "nobody is called 'Joe' here" in ends[0][0]
    assert "process 0 could not prepare the data; its own line says why" in ends[1][0]
    assert time.monotonic() - began < 150
