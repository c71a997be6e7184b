"""A partition to its part of the corpus: packed records in; candidates with their word triples, then finished lines, out.

`judge_partition` asks all rules but one; `finish_partition` asks that one, whether a target is bland, when the triples of
all partitions are added up. Each writes whole files, `NAME.json` last: what is there is not made again.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dialogpt_jax.data.reddit.bland import add_counts, count_triples, targets_of, triples, without_bland
from dialogpt_jax.data.reddit.rules import Rules, as_tsv
from dialogpt_jax.data.reddit.split import is_comment, read_partition, save_array, unpack_record, write_whole
from dialogpt_jax.data.reddit.statistics import Statistics
from dialogpt_jax.data.reddit.threads import Outcome, judge
from dialogpt_jax.data.reddit.trees import Thread
from dialogpt_jax.errors import naming

JSONL, TSV = "jsonl", "tsv"
_TRIPLES_HELD = 4_000_000  # before they are added up; 32 MB


class Partitions(NamedTuple):
    """How partitions are to be judged.

    Attributes:
      folder: of the split dumps, and of what is made of them.
      dumps, partitions: how many.
      memory: bytes of records that are held at once.
      form: of the finished lines, "jsonl" or "tsv".
    """

    folder: Path
    dumps: int
    partitions: int
    memory: int
    rules: Rules
    form: str


def is_judged(folder: Path, number: int) -> bool:
    """Whether an earlier run has judged a partition."""
    return (folder / f"part-{number:05d}.judged.json").exists()


def judge_partition(job: Partitions, task: tuple[int, int]) -> dict[str, Any]:
    """Writes the candidates of a partition, unless that is done already.

    Args:
      task: the partition, and the bytes and overhead of its records.

    Returns:
      the statistics of what was skipped.
    """
    number, size = task
    stem = job.folder / f"part-{number:05d}"
    done = stem.with_suffix(".judged.json")
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    statistics = Statistics()
    held: list[int] = []
    tables: list[np.ndarray] = []
    lines = stem.with_suffix(".candidates")
    with naming(job.folder), lines.open("w", encoding="utf-8") as file:
        for thread, outcomes in _threads(job, number, size):
            statistics.add_thread(thread, outcomes)
            for outcome in outcomes:
                if outcome.rule:
                    continue
                line = as_line(thread, outcome, job.rules)
                file.write(json.dumps(line) + "\n")
                if job.rules.asks_bland:
                    for target in targets_of(line["turns"], line["weights"] or [1.0] * len(line["turns"])):
                        held += triples(target)
            if len(held) >= _TRIPLES_HELD:
                tables = [add_counts([*tables, count_triples(held)])]
                held = []
        save_array(stem.with_suffix(".triples.npy"), add_counts([*tables, count_triples(held)]))
        said = statistics.as_json()
        file.flush()
        os.fsync(file.fileno())
        write_whole(done, json.dumps(said))
    return said


def as_line(thread: Thread, outcome: Outcome, rules: Rules) -> dict[str, Any]:
    """What is written of a dialogue."""
    subreddit = (thread.submission and thread.submission.subreddit) or outcome.reply.subreddit
    return {
        "turns": list(outcome.turns),
        "weights": list(outcome.weights) if rules.weighted else None,
        "thread": thread.id,
        "ids": list(outcome.ids),
        "subreddit": subreddit,
        "month": outcome.reply.month,
        "cut": outcome.cut,
    }


def _threads(job: Partitions, number: int, size: int) -> Iterator[tuple[Thread, list[Outcome]]]:
    """The threads of a partition by their hashes; a partition that does not fit the memory is read several times."""
    passes = max(1, -(-size // job.memory))
    low, high = (-(-(place << 64) // job.partitions) for place in (number, number + 1))
    edges = [low + (high - low) * place // passes for place in range(passes + 1)]
    most = job.rules.max_thread if "huge_thread" not in job.rules.without else None
    for first, last in pairwise(edges):
        groups: dict[bytes, list[bytes]] = {}
        comments: Counter[bytes] = Counter()
        over: Counter[bytes] = Counter()
        for line in read_partition(job.folder, job.dumps, number):
            if passes > 1 and not first <= int(line[:16], 16) < last:
                continue
            key = line[: line.index(b" ", 17)]
            fields = line[len(key) + 1 :]
            comments[key] += is_comment(fields)
            if most is not None and comments[key] > most and is_comment(fields):
                over[key] += 1  # more comments than a thread may have, whatever they are
            else:
                groups.setdefault(key, []).append(fields)
        for key in sorted(groups):
            name = key[17:].decode()
            thread, outcomes = judge(name, (unpack_record(name, line) for line in groups.pop(key)), job.rules)
            yield thread._replace(dropped=thread.dropped + over[key]), outcomes


def finish_partition(job: Partitions, number: int) -> dict[str, Any]:
    """Writes the finished lines of a partition, unless that is done already; returns their statistics."""
    stem = job.folder / f"part-{number:05d}"
    done = stem.with_suffix(".finished.json")
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    often = {int(triple) for triple in np.load(job.folder / "often.npy")}
    statistics = Statistics()
    with (
        naming(job.folder),
        stem.with_suffix(".candidates").open(encoding="utf-8") as candidates,
        stem.with_suffix(f".{job.form}").open("w", encoding="utf-8") as file,
    ):
        for text in candidates:
            line = finish_line(json.loads(text), often, job.rules)
            if line is None:
                statistics.counts["rule bland"] += 1
                continue
            statistics.add_dialogue(line)
            file.write(render(line, job.form) + "\n")
        file.flush()
        os.fsync(file.fileno())
        said = statistics.as_json()
        write_whole(done, json.dumps(said))
    return said


def finish_line(line: dict[str, Any], often: set[int] | frozenset[int], rules: Rules) -> dict[str, Any] | None:
    """A candidate with the weights of its bland targets at 0; None if that leaves it without a target."""
    if not often:
        return line
    weights = line["weights"] or [1.0] * len(line["turns"])
    only_last = rules.all_comments
    new = without_bland(line["turns"], weights, often, rules.bland_share, only_last=only_last)
    if new is None and (rules.fixes("weightless") or only_last):
        return None
    return line | {"weights": (new or [weights[0]] + [0.0] * (len(weights) - 1)) if rules.weighted else None}


def render(line: dict[str, Any], form: str) -> str:
    """A finished line, without its end."""
    if form == TSV:
        return as_tsv(line["turns"], line["weights"])
    shown = {name: line[name] for name in ("turns", "weights", "thread", "ids", "subreddit", "month")}
    if shown["weights"] is None:
        del shown["weights"]
    return json.dumps(shown)
