"""One place, two processes: folders take turns, a file has one writer, and a kill leaves nothing that stays in the way."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from dialogpt_jax.whole_writes import BusyError, folder_beside, only_writer, put_in_place, whole_file

PATIENCE = 60  # seconds that a process gets where it must come to an end
A_MOMENT = 1  # second in which one that does not wait would be done

FOLDER = """
import sys
from pathlib import Path
from dialogpt_jax.whole_writes import folder_beside, put_in_place

name, target, step = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
rename = Path.rename

def told(self, to):
    rename(self, to)
    if str(to).endswith(".old") and step == "between":  # the old one is away, the new one not yet there
        print("between", flush=True)
        sys.stdin.readline()

Path.rename = told
print("begun", flush=True)
with folder_beside(target) as folder:
    (folder / "model").write_text(name)
    print("filled", flush=True)
    if step == "filled":
        sys.stdin.readline()
    put_in_place(folder, target, stays=lambda entry: entry.name == "notes")
"""
FILE = """
import sys
from pathlib import Path
from dialogpt_jax.whole_writes import only_writer

with only_writer(Path(sys.argv[1])):
    print("writing", flush=True)
    sys.stdin.readline()
"""


def start(script, *words, says):
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for line in says:
        assert process.stdout.readline() == f"{line}\n"
    return process


def end(process):
    process.communicate("\n", timeout=PATIENCE)
    return process.returncode


@pytest.fixture
def target(tmp_path):
    """A folder with a model and something of the user's."""
    folder = tmp_path / "target"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "mine").write_text("mine")
    (folder / "model").write_text("old")
    return folder


def holds(target, model):
    """The place holds this model and what the user had there, and beside it is nothing."""
    return (
        (target / "model").read_text() == model
        and (target / "notes" / "mine").read_text() == "mine"
        and sorted(os.listdir(target)) == ["model", "notes"]
        and os.listdir(target.parent) == ["target"]
    )


def test_two_processes_that_replace_one_folder_take_turns(target):
    first = start(FOLDER, "first", target, "between", says=["begun", "filled", "between"])
    second = start(FOLDER, "second", target, "", says=["begun"])
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(A_MOMENT)
    assert (end(first), end(second)) == (0, 0)
    assert holds(target, "second")


@pytest.mark.parametrize("step", ["filled", "between"])
def test_what_a_killed_process_left_is_mended_by_the_next(target, step):
    killed = start(FOLDER, "killed", target, step, says=["begun", "filled", "between"][: 2 + (step == "between")])
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(os.listdir(target.parent)) == 2
    with folder_beside(target):
        assert (target / "model").read_text() == "old"  # it is back in its place before another is made
    assert holds(target, "old")


def test_what_was_the_users_is_not_lost_by_a_kill_before_it_has_moved(target):
    new = target.with_name(".target.0123abcd")
    target.rename(new.with_name(new.name + ".old"))
    target.mkdir()
    (target / "model").write_text("new")
    with folder_beside(target, stays=lambda entry: entry.name == "notes"):
        pass
    assert holds(target, "new")


def test_what_a_living_process_writes_stays(target):
    living = start(FOLDER, "living", target, "filled", says=["begun", "filled"])
    with folder_beside(target) as folder:
        (folder / "model").write_text("mine")
        put_in_place(folder, target, stays=lambda entry: entry.name == "notes")
    assert (target / "model").read_text() == "mine"
    assert end(living) == 0
    assert holds(target, "living")


def test_what_another_user_left_stays_and_is_in_nobodys_way(target, monkeypatch):
    theirs, open_ = target.with_name(f".{target.name}.0123abcd"), os.open
    theirs.mkdir()

    def refuse(path, *rest, **named):
        if path == theirs:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_(path, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    with folder_beside(target) as folder:
        assert folder.is_dir()
    assert theirs.is_dir()


def test_a_file_has_one_writer(tmp_path):
    file = tmp_path / "out.jsonl"
    first = start(FILE, file, says=["writing"])
    with pytest.raises(BusyError, match=r"out\.jsonl: another process is writing there; wait for its end"):
        only_writer(file).__enter__()
    assert end(first) == 0
    assert os.listdir(tmp_path) == []
    killed = start(FILE, file, says=["writing"])
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with only_writer(file), only_writer(tmp_path / "other"), pytest.raises(BusyError):
        only_writer(file).__enter__()
    assert os.listdir(tmp_path) == []


def test_a_file_is_whole_or_as_it_was_and_errors_name_it(tmp_path):
    file = tmp_path / "a.txt"
    with whole_file(file) as part:
        part.write_text("one")
        assert not file.exists()

    def broken_off(error):
        with whole_file(file) as part:
            part.write_text("half")
            raise error

    with pytest.raises(KeyboardInterrupt):
        broken_off(KeyboardInterrupt())
    assert file.read_text() == "one"
    with pytest.raises(OSError, match="No space left") as caught:
        broken_off(OSError(errno.ENOSPC, "No space left on device", "part"))
    assert caught.value.filename == str(file)
    assert os.listdir(tmp_path) == ["a.txt"]
