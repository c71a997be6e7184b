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
import time
from pathlib import Path

import fakes
import pytest

from dialogpt_jax.training.loop import CHECKPOINTS

pytestmark = pytest.mark.slow

# Two processes of four devices against one of eight: sums of some hundred float32 terms of about 8, in another order.
TOLERANCE = 1e-5
PATIENCE = 600  # seconds for one process on a busy machine
KILLS, STEPS = 20, 80
SIZES = f"--steps {STEPS} --batch-size 8 --buckets 1 --max-length 32 --learning-rate 1e-2 --log-every 1 --dropout 0.1"
SIZES += " --save-every 1 --evaluate-every 0"
FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and dialogues."""
    folder = tmp_path_factory.mktemp("kill")
    fakes.tiny_bot().save(folder / "model")
    words = "Hello how are you I am fine thanks What is this And the rain No".split()
    rng = random.Random(0)
    turns = [[" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(rng.randint(2, 4))] for _ in range(50)]
    (folder / "talk.jsonl").write_text("".join(json.dumps({"turns": t}) + "\n" for t in turns))
    return folder


def start(place: Path, *words, devices: int = 1, **environment) -> subprocess.Popen:
    command = [sys.executable, "-m", "dialogpt_jax.cli.main", "train", "--init", place / "model"]
    command += ["--data", place / "talk.jsonl", *SIZES.split(), *words]
    environment = {"XLA_FLAGS": FLAGS + str(devices), "XDG_CACHE_HOME": place / "cache"} | environment
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err[-3000:]
    assert "Traceback" not in err
    return out


def whole_steps(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / CHECKPOINTS).glob("*") if path.name.isdigit())


def sums(run: Path) -> dict:
    """The checksum, shape and dtype of every array in the last checkpoint."""
    return json.loads((run / CHECKPOINTS / str(whole_steps(run)[-1]) / "about" / "metadata").read_text())["leaves"]


def losses(run: Path) -> dict[int, float]:
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def seen_steps(lines: list[str]) -> list[int]:
    return [int(found[1]) for line in lines if (found := re.match(r"step (\d+)/", line))]


def test_killed_at_twenty_moments_it_loses_nothing(place, capfd):
    """Each life is killed a random while after a random line; every second one while a checkpoint is being written."""
    finish(start(place, "--out", place / "whole", "--export", place / "expected"))
    run, rng = place / "killed", random.Random(7)
    held: list[int] = []
    told, repeated, writing = 0, 0, 0
    report = []
    for life in range(KILLS):
        process = start(place, "--out", run, "--resume", "--export", place / "found")
        lines: list[str] = []
        wanted = rng.choice([0, 1, 1, 2, 3, 4])  # steps that it says before it is killed; 0: while it begins
        delay = rng.uniform(0, 0.25)
        if wanted:
            for line in process.stdout:
                lines.append(line)
                if len(seen_steps(lines)) >= wanted:
                    break
            assert process.poll() is None, process.stderr.read()[-3000:]
        else:
            for line in process.stdout:
                lines.append(line)
                if "parameters, " in line:
                    delay = rng.uniform(0, 4.0)
                    break
        if life % 2 and wanted:
            deadline = time.monotonic() + 20
            while not list((run / CHECKPOINTS).glob("*tmp*")) and time.monotonic() < deadline:
                time.sleep(0.0005)
            delay = rng.uniform(0, 0.03)
        time.sleep(delay)
        before = whole_steps(run)  # whole before the kill, so they must be there after it
        process.send_signal(signal.SIGKILL)
        rest, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL, (rest, err)
        assert "Traceback" not in err
        lines += rest.splitlines(keepends=True)
        resumed = next((int(found[1]) for line in lines if (found := re.match(r"going on from step (\d+)", line))), 0)
        if any("step" in line for line in lines):
            assert resumed == max(held, default=0), "a whole checkpoint was not taken up"
            assert "damaged" not in err
        after = whole_steps(run)
        assert max(after, default=0) >= max(before, default=0)
        parts = [path.name for path in (run / CHECKPOINTS).glob("*tmp*")]
        writing += bool(parts)
        last = max(seen_steps(lines), default=resumed)
        repeated += max(told - resumed, 0) if seen_steps(lines) else 0
        told = max(told if not seen_steps(lines) else 0, last)
        moment = "while " + ", ".join(parts) if parts else ("between writes" if seen_steps(lines) else "as it began")
        report.append(f"{life + 1:3}: began at {resumed}, last told {last}, whole {after}, {moment}")
        held = after
    out = finish(start(place, "--out", run, "--resume", "--export", place / "found"))
    assert f"going on from step {max(held)}" in out
    with capfd.disabled():
        print("\n" + "\n".join(report))
        print(f"{KILLS} kills, {writing} of them while a checkpoint was written; {repeated} steps were done twice")
    assert max(held) < STEPS, "the run was over before the last kill"
    assert writing >= 5
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
    flags = ("--steps", "24", "--dropout", "0", "--save-every", "0")
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
    (step,) = whole_steps(stopped)
    assert 5 <= step < 24
    assert f"stopped by SIGTERM after step {step} of 24" in outs[0]
    assert not seen_steps(outs[1].splitlines())  # only the first one speaks
    assert not (place / "never").exists()
    again = place / "again"
    shutil.copytree(stopped, again)

    out = finish(start(place, *flags, "--out", stopped, "--resume", "--valid", place / "talk.jsonl", devices=8))
    assert f"going on from step {step}" in out
    expected = losses(place / "one")
    assert losses(stopped) == pytest.approx(expected, abs=TOLERANCE)
    assert sorted(expected) == list(range(1, 25))

    both = [finish(process) for process in pair(place, *flags, "--out", again, "--resume", "--export", place / "both")]
    assert f"going on from step {step}" in both[0]
    assert losses(again) == pytest.approx(expected, abs=TOLERANCE)
    assert (place / "both" / "model.safetensors").exists()
    assert both[1] == ""


def test_what_one_process_cannot_do_stops_both(place):
    """Process 0 prepares the data; the other does not wait for it for ever."""
    began = time.monotonic()
    processes = pair(place, "--out", place / "bad", "--train-on", "Joe")
    ends = [(process.communicate(timeout=PATIENCE)[1], process.returncode) for process in processes]
    assert [status for _, status in ends] == [1, 1]
    assert "nobody is called 'Joe' here" in ends[0][0]
    assert "process 0 could not prepare the data; its own line says why" in ends[1][0]
    assert time.monotonic() - began < 150
