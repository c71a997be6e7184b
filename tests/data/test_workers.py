"""Workers: results in order, few held at once, no jax, no second run of the caller; what goes wrong in one is told."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dialogpt_jax.data.workers import map_in_order

# `eval` can be sent to a process as it is, so that an item is what the worker does.
LOADED = "sorted(name for name in ('jax', 'flax', '__mp_main__', 'pytest') if name in __import__('sys').modules)"
ENDED = "__import__('os').kill(__import__('os').getpid(), 9)"


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(workers):
    items = [f"__import__('time').sleep({0.05 * (n % 3 == 0)}) or {n}" for n in range(20)]
    with map_in_order(eval, items, workers=workers) as results:
        assert list(results) == list(range(20))
    with map_in_order(eval, [], workers=workers) as results:
        assert list(results) == []


def test_it_is_other_processes_that_work_and_they_load_no_jax():
    with map_in_order(
        eval, [f"({LOADED}, __import__('os').getpid(), print('hi', flush=True))"] * 40, workers=2
    ) as results:
        found = list(results)
    assert {tuple(loaded) for loaded, *_ in found} == {()}
    pids = {pid for _, pid, _ in found}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_few_items_are_held_at_once():
    taken = []
    items = (taken.append(n) or str(n) for n in range(100))
    most = 0
    with map_in_order(eval, items, workers=2) as results:
        for done, _ in enumerate(results):
            most = max(most, len(taken) - done)
    assert len(taken) == 100
    assert 2 <= most <= 5


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_worker_or_the_items_raise_is_raised(workers):
    with map_in_order(eval, ["1", "1/0", "2"], workers=workers) as results:
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)

    def items():
        yield "1"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"), map_in_order(eval, items(), workers=workers) as results:
        list(results)


def test_a_killed_worker_is_told():
    said = pytest.raises(ChildProcessError, match="a worker ended with status -9; fewer workers")
    with said, map_in_order(eval, ["1", ENDED, *["2"] * 9], workers=2) as results:
        list(results)


def test_leaving_early_ends_the_workers():
    with map_in_order(
        eval, ["__import__('os').getpid()", *["__import__('time').sleep(600)"] * 8], workers=2
    ) as results:
        pid = next(results)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    # They would go on writing, for as long as an item takes, beside whoever runs the same command again.
    script = tmp_path / "script.py"
    script.write_text(
        "from dialogpt_jax.data.workers import map_in_order\n"
        "item = \"[os.write(2, b'%d\\\\n' % os.getpid()) and __import__('time').sleep(60) for os in [__import__('os')]]\"\n"
        "with map_in_order(eval, [item] * 4, workers=2) as results:\n"
        "    list(results)\n"
    )
    with subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True) as parent:
        pids = [int(parent.stderr.readline()) for _ in range(2)]
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        for _ in range(300):
            alive = [pid for pid in pids if os.path.exists(f"/proc/{pid}") and not is_zombie(pid)]
            if not alive:
                break
            time.sleep(0.1)
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
    assert not alive


def is_zombie(pid):
    """Whether a process has ended, and nobody asked how."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


def test_a_script_without_a_guard_is_not_run_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('once', flush=True)\n"
        "from dialogpt_jax.data.workers import map_in_order\n"
        "with map_in_order(eval, ['1', '2', '3'], workers=2) as results:\n"
        "    print(list(results))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert (done.stdout.split("\n"), done.returncode) == (["once", "[1, 2, 3]", ""], 0), done.stderr
