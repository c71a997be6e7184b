"""`dialogpt data reddit` as a function: dumps in; a folder with the corpus and its statistics out, in bounded memory.

    dumps ─split (a process a dump)→ partitions ─judge (a process a partition)→ candidates, word triples
          ─add up triples→ triples said often ─finish (a process a partition)→ dialogues-00003-of-00016.jsonl

All of it happens in `DIR/unfinished`, one whole file at a time; what a killed run had finished, the same command takes as
it is. When everything is there the parts get their names in `DIR`, `statistics.json` comes last, and `unfinished` goes. The
same dumps and rules give the same lines in the same order, whatever the number of processes, of kills, or the memory.
"""

import contextlib
import functools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dialogpt_jax.data.reddit.bland import said_often
from dialogpt_jax.data.reddit.dumps import check_dumps, suffix_of
from dialogpt_jax.data.reddit.folder import (
    PROBLEMS,
    STATISTICS,
    UNFINISHED,
    ExtractError,
    begin,
    held,
    is_finished,
    plan_of,
)
from dialogpt_jax.data.reddit.partition import JSONL, TSV, Partitions, finish_partition, is_judged, judge_partition
from dialogpt_jax.data.reddit.rules import Rules
from dialogpt_jax.data.reddit.split import MOST, OVERHEAD, Split, save_array, split_dump, write_whole
from dialogpt_jax.data.reddit.statistics import Statistics, as_text
from dialogpt_jax.data.reddit.threads import NOTHING, LeaveOut
from dialogpt_jax.data.workers import map_in_order
from dialogpt_jax.errors import naming

MEMORY = 256 * 2**20  # bytes a process may hold of records; Python's objects come on top
_MOST_PARTITIONS = 4096
# How many bytes of records come of a byte of a dump, guessed high; a wrong guess costs time and no memory.
_GROWTH = {".zst": 4.0, ".xz": 5.0, ".bz2": 4.0, ".gz": 3.0}
Progress = Callable[[int, int, int], None]
Show = Callable[[str, str], contextlib.AbstractContextManager[Progress]]


def extract(
    dumps: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    rules: Rules,
    *,
    leave_out: LeaveOut = NOTHING,
    form: str = JSONL,
    workers: int | None = None,
    memory: int = MEMORY,
    replace: bool = False,
    show: Show | None = None,
) -> Statistics:
    """Makes the corpus of some dumps, or goes on with it.

    Args:
      dumps: files of comments and submissions, in any order and division.
      folder: new or empty; or what this function has begun or made of the same dumps with the same rules.
      rules: what is asked.
      leave_out: what must not be read.
      form: "jsonl", with the ids of each dialogue, or "tsv", as Microsoft's.
      workers: processes; by default as many as there are cores.
      memory: bytes of records that each of them may hold.
      replace: whether a corpus that is in the folder may be replaced.
      show: of a stage's units, large and small, a context in which a function tells how far it is.

    Raises:
      DumpError, ExtractError: see there.
      OSError: a dump cannot be read, or the folder not written; the same call goes on from there.
    """
    if form not in (JSONL, TSV):
        raise ExtractError(f"the form is {form!r}; there are {JSONL} and {TSV}")
    names = [os.fspath(path) for path in check_dumps(dumps)]
    target = Path(folder)
    work = target / UNFINISHED
    plan = plan_of(names, rules, leave_out, form)
    with held(target), naming(target):
        if is_finished(target, plan, replace=replace):
            return Statistics.from_json(json.loads((target / STATISTICS).read_text(encoding="utf-8"))["statistics"])
        partitions = begin(work, plan, _guess_partitions(names, memory))
        show = show or (lambda *_: contextlib.nullcontext(lambda *_: None))
        processes = workers or os.cpu_count() or 1
        statistics = Statistics()

        job = Split(work, partitions, min(memory // 4, MOST), rules, leave_out)
        sizes = np.zeros(partitions, np.int64)
        with (
            show("kB of dumps", "comments") as progress,
            _watched(work, names, progress),
            map_in_order(
                functools.partial(split_dump, job), list(enumerate(names)), workers=min(processes, len(names))
            ) as results,
        ):
            for said in results:
                statistics.add_dump(said)
                sizes += np.asarray(said["bytes"], np.int64)

        parts = Partitions(work, len(names), partitions, memory, rules, form)
        tasks = [(number, int(size) + OVERHEAD * int(size) // 200) for number, size in enumerate(sizes)]
        processes = min(processes, partitions)
        with (
            show("kB of records", "dialogues") as progress,
            map_in_order(functools.partial(judge_partition, parts), tasks, workers=processes) as results,
        ):
            done = {number for number, _ in tasks if is_judged(work, number)}  # by an earlier run, in its time
            left = sum(int(size) // 1000 for number, size in enumerate(sizes) if number not in done)
            for (number, _), said in zip(tasks, results, strict=True):
                statistics.add(Statistics.from_json(said))
                if number not in done:
                    left -= int(sizes[number]) // 1000
                    progress(int(sizes[number]) // 1000, left, _candidates(said))

        if not (work / "often.npy").exists():
            tables = [np.load(work / f"part-{number:05d}.triples.npy", mmap_mode="r") for number in range(partitions)]
            save_array(work / "often.npy.part", said_often(tables, rules.bland_count))
            (work / "often.npy.part").replace(work / "often.npy")
        with map_in_order(functools.partial(finish_partition, parts), range(partitions), workers=processes) as results:
            for said in results:
                statistics.add(Statistics.from_json(said))
        _publish(work, target, partitions, form, len(names))
        said = {"plan": plan, "statistics": statistics.as_json()}
        write_whole(target / "statistics.txt", "\n".join(as_text(statistics)) + "\n")
        write_whole(target / STATISTICS, json.dumps(said, indent=1) + "\n")
        shutil.rmtree(work)
    return statistics


def _candidates(said: dict[str, Any]) -> int:
    counts = said["counts"]
    return counts.get("replies", 0) - sum(n for name, n in counts.items() if name.startswith("rule "))


def _guess_partitions(names: Sequence[str], memory: int) -> int:
    size = sum(os.stat(name).st_size * _GROWTH.get(suffix_of(name), 0.6) for name in names)
    return max(1, min(_MOST_PARTITIONS, -(-int(size * 1.5) // memory)))


@contextlib.contextmanager
def _watched(work: Path, names: Sequence[str], progress: Progress, *, every: float = 1.0) -> Iterator[None]:
    """Tells how far the dumps are split, from what the processes note beside them, until the block ends.

    What an earlier run has split is no part of it: it took none of this one's time.
    """
    sizes = {number: os.stat(name).st_size for number, name in enumerate(names)}
    sizes = {number: size for number, size in sizes.items() if not (work / f"{number:05d}.json").exists()}
    for number in sizes:  # what a run noted that was killed; the dump is split from its start
        (work / f"{number:05d}.at").unlink(missing_ok=True)
    ended = threading.Event()
    told = [0, 0]

    def look() -> None:
        read = comments = 0
        for number, size in sizes.items():
            stem = work / f"{number:05d}"
            with contextlib.suppress(OSError, ValueError, KeyError):
                if stem.with_suffix(".json").exists():
                    said = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
                    new, inside = size, said["counts"].get("comments", 0)
                else:  # while it is being written it may hold less
                    new, inside = map(int, stem.with_suffix(".at").read_text().split())
                read, comments = read + new, comments + inside
        if read > told[0]:
            progress((read - told[0]) // 1000, (sum(sizes.values()) - read) // 1000, comments - told[1])
            told[:] = read, comments

    def watch() -> None:
        while not ended.wait(every):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()


def _publish(work: Path, target: Path, partitions: int, form: str, dumps: int) -> None:
    """Gives the finished parts their names; an empty part has none."""
    with (work / "problems").open("w", encoding="utf-8") as together:
        for number in range(dumps):
            with (work / f"{number:05d}.problems").open(encoding="utf-8") as problems:
                shutil.copyfileobj(problems, together)
    if (work / "problems").stat().st_size:
        (work / "problems").replace(target / PROBLEMS)
    for number in range(partitions):
        part = work / f"part-{number:05d}.{form}"
        if part.exists() and part.stat().st_size:
            part.replace(target / f"dialogues-{number:05d}-of-{partitions:05d}.{form}")
