"""A dump to partitions: its lines in; its records, those of one partition together, in one file with an index, out.

A thread has a hash of 64 bits. The partitions are ranges of it in their order, and within one the threads are sorted by it,
so that the corpus has the same lines in the same order for any number of partitions. A record is a line `hash thread JSON`;
some megabytes of them are cut into a compressed block for each partition, and blocks are appended to the dump's file: one
file a dump, however many partitions, and what a partition needs of it is found by the index. A finished dump has
`NAME.json`, which is written last; without that it is split anew.
"""

import hashlib
import json
import os
import types
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dialogpt_jax.data.reddit.dumps import read_dump, uncompressed
from dialogpt_jax.data.reddit.records import Comment, Gone, Problem, Submission, parse_record
from dialogpt_jax.data.reddit.rules import Rules
from dialogpt_jax.data.reddit.threads import LeaveOut, gone_elsewhere, read
from dialogpt_jax.errors import naming

INDEX = np.dtype([("partition", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("raw", "<u4"), ("records", "<u4")])
FIRST = 5  # problems of each kind that are named
OVERHEAD = 90  # bytes that Python needs for a line in a list, beside the line
MOST = 2**30  # bytes of records that are held, and may all be of one block, however much memory there is: see INDEX


class Split(NamedTuple):
    """How a dump is to be split.

    Attributes:
      folder: where the files go.
      partitions: how many.
      memory: bytes of records that are held before they are written.
    """

    folder: Path
    partitions: int
    memory: int
    rules: Rules
    leave_out: LeaveOut


def hash_thread(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def partition_of(number: int, partitions: int) -> int:
    """The partition of a hash: of 3, the first holds the lowest third of the hashes."""
    return number * partitions >> 64


def pack_record(record: Comment | Submission | Gone) -> tuple[int, bytes]:
    """The hash of a record's thread, and the record as a line without its end. Who wrote it is left behind."""
    thread = record.id if isinstance(record, Submission) else record.thread
    number = hash_thread(thread)
    fields: list[Any]
    if isinstance(record, Comment):
        fields = ["c", record.id, record.parent, record.score, record.subreddit, record.month, record.body]
    elif isinstance(record, Gone):
        fields = ["d", record.id]
    else:
        fields = ["s", record.subreddit, record.title, record.comments]
    return number, f"{number:016x} {thread} {json.dumps(fields, separators=(',', ':'))}".encode()


def is_comment(fields: bytes) -> bool:
    """Whether a packed line's JSON is that of a comment."""
    return fields.startswith(b'["c"')


def unpack_record(thread: str, line: bytes) -> Comment | Submission | Gone:
    """The record of a packed line's JSON."""
    kind, *fields = json.loads(line)
    if kind == "d":
        return Gone(fields[0], thread)
    if kind == "s":
        subreddit, title, comments = fields
        return Submission(thread, subreddit, "", title, comments)
    own, parent, score, subreddit, month, body = fields
    return Comment(own, parent, thread, score, subreddit, month, "", body)


def read_records(lines: Iterator[tuple[int, bytes | Problem]], rules: Rules, leave_out: LeaveOut, counts: Counter):
    """The records of a dump's lines that are read, and (number, problem) for each line that is none; counts all of them."""
    for number, line in lines:
        counts["lines"] += 1
        record = line if isinstance(line, Problem) else parse_record(line)
        if isinstance(record, Problem):
            counts["problems"] += 1
            yield number, record
            continue
        counts["comments" if isinstance(record, Comment) else "submissions"] += 1
        kept = read(record, rules, leave_out)
        if isinstance(kept, str):
            counts[f"rule {kept}" if isinstance(record, Comment) else "submissions left out"] += 1
            gone = gone_elsewhere(record, kept, rules, leave_out) if isinstance(record, Comment) else None
            if gone:
                yield number, gone
            continue
        yield number, kept


def split_dump(job: Split, numbered: tuple[int, str]) -> dict[str, Any]:
    """Splits one dump, unless that is done already.

    Returns:
      what `NAME.json` says: counts, the first problems of each kind, the size of each partition.
    """
    number, name = numbered
    stem = job.folder / f"{number:05d}"
    done = stem.with_suffix(".json")
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    first: dict[str, list[tuple[int, str]]] = {}
    writer = _Blocks(stem.with_suffix(".records"), job)
    at = stem.with_suffix(".at")
    with open(name, "rb") as raw, naming(job.folder):
        with (
            writer.file,
            stem.with_suffix(".problems").open("w", encoding="utf-8") as problems,
        ):
            for line, record in read_records(
                read_dump(uncompressed(raw, name), name), job.rules, job.leave_out, counts
            ):
                if isinstance(record, Problem):
                    kinds[record.kind] += 1
                    if len(first.setdefault(record.kind, [])) < FIRST:
                        first[record.kind].append((line, record.reason))
                    problems.write(json.dumps({"file": name, "line": line, "reason": record.reason}) + "\n")
                elif writer.add(record):
                    at.write_text(f"{raw.tell()} {counts['comments']}")  # how far: for whoever shows it
            writer.flush()
            writer.file.flush()
            os.fsync(writer.file.fileno())
        index = writer.index()
        save_array(stem.with_suffix(".npy"), index)
        raw_sizes = np.bincount(index["partition"], weights=index["raw"], minlength=job.partitions)
        said = {
            "file": name,
            "counts": dict(sorted(counts.items())),
            "problems": {kind: [kinds[kind], first[kind]] for kind in sorted(kinds)},
            "bytes": [int(size) for size in raw_sizes],
        }
        write_whole(done, json.dumps(said))
        at.unlink(missing_ok=True)
    return said


class _Blocks:
    """Records in, compressed blocks of partitions in a file out."""

    def __init__(self, path: Path, job: Split):
        self.file = path.open("wb")
        self._job, self._held = job, 0
        self._lines: dict[int, list[bytes]] = {}
        self._index: list[np.ndarray] = []

    def add(self, record: Comment | Submission | Gone) -> bool:
        """Keeps a record; True where that filled the memory, so that blocks were written."""
        number, line = pack_record(record)
        self._lines.setdefault(partition_of(number, self._job.partitions), []).append(line)
        self._held += len(line) + OVERHEAD
        if self._held < self._job.memory:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        rows = np.empty(len(self._lines), INDEX)
        for place, partition in enumerate(sorted(self._lines)):
            lines = self._lines.pop(partition)
            raw = b"\n".join(lines) + b"\n"
            block = zlib.compress(raw, 1)
            rows[place] = (partition, self.file.tell(), len(block), len(raw), len(lines))
            self.file.write(block)
        self._index.append(rows)
        self._held = 0

    def index(self) -> np.ndarray:
        """Where each block lies, those of one partition together, in the order of the dump."""
        rows = np.concatenate([np.empty(0, INDEX), *self._index])
        return rows[np.argsort(rows["partition"], kind="stable")]


def read_partition(folder: Path, dumps: int, partition: int) -> Iterator[bytes]:
    """The packed lines of a partition, in the order of the dumps; one block is in memory at a time."""
    for number in range(dumps):
        stem = folder / f"{number:05d}"
        index = np.load(stem.with_suffix(".npy"), mmap_mode="r")
        first, last = np.searchsorted(index["partition"], [partition, partition + 1])
        with stem.with_suffix(".records").open("rb") as file:
            for row in index[first:last]:
                file.seek(int(row["offset"]))
                yield from zlib.decompress(file.read(int(row["size"]))).splitlines()


def save_array(path: Path, array: np.ndarray) -> None:
    """A `.npy` file. To a file itself NumPy writes by C, and of a full disk it says neither its name nor its number."""
    with path.open("wb") as file:
        writer: Any = types.SimpleNamespace(write=file.write)
        np.save(writer, array)


def write_whole(path: Path, text: str) -> None:
    """A file with a text, whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
