"""What became of the lines: the counts of each chunk in; their sum, and a refusal of what teaches nothing, out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from dialogpt_jax.data.dialogue_line import NoDialogueError
from dialogpt_jax.data.example_options import ExampleOptions
from dialogpt_jax.data.examples import WHICH_TURNS
from dialogpt_jax.data.formats import DataError, Dropped, place_in
from dialogpt_jax.data.shards import Columns
from dialogpt_jax.errors import counted

FIRST = 5  # lines of each kind that are named
_MOST_SPEAKERS = 10_000  # names kept for an error message; every line may have its own


class Encoded(NamedTuple):
    """The examples that a chunk of lines gave, and what was dropped of it."""

    columns: Columns
    dropped: list[Dropped]
    counts: Counter[str]
    lengths: np.ndarray
    speakers: set[str]


@dataclass
class DataCounts:
    """What became of the lines; sums of chunks.

    Attributes:
      counts: lines, dialogues, longer (dialogues of more than two turns), split (dialogues of more than one example),
        examples, joined (those of several dialogues), tokens, targets (tokens that weigh something), turns (trained),
        eos_targets (their EOS; a turn that was cut has none), rows (after packing).
      lengths: how many examples have n tokens, at place n.
      dropped: by kind: how many lines, and the first five as (file, line, reason).
      speakers: who said a turn; only collected where `train_on` is a name.
    """

    counts: Counter[str] = field(default_factory=Counter)
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    dropped: dict[str, tuple[int, list[tuple[str, int, str]]]] = field(default_factory=dict)
    speakers: set[str] = field(default_factory=set)

    def add(self, file: str, chunk: Encoded) -> None:
        self.counts.update(chunk.counts)
        lengths = np.zeros(max(len(self.lengths), len(chunk.lengths)), np.int64)
        lengths[: len(self.lengths)] = self.lengths
        lengths[: len(chunk.lengths)] += chunk.lengths
        self.lengths = lengths
        for line, reason, kind in chunk.dropped:
            count, first = self.dropped.get(kind, (0, []))
            self.dropped[kind] = count + 1, [*first, (file, line, reason)][:FIRST]
        if len(self.speakers) < _MOST_SPEAKERS:
            self.speakers |= chunk.speakers


def check_counts(report: DataCounts, files: Sequence, options: ExampleOptions, *, allow_no_eos: bool = False) -> None:
    """Passes if there is something to train on, and something that teaches the model to stop.

    Args:
      allow_no_eos: whether data may pass that does not teach it.

    Raises:
      DataError: there is not, in one line with what is wrong.
    """
    counts, where = report.counts, ", ".join(map(str, files))
    if not counts["lines"]:
        raise NoDialogueError(f"{where}: no line")
    if options.train_on not in WHICH_TURNS and options.train_on not in report.speakers:
        names = sorted(report.speakers)
        known = (
            f"the speakers are {', '.join(names[:20])}{' …' * (len(names) > 20)}" if names else "no turn has a speaker"
        )
        raise DataError(f"{where}: nobody is called {options.train_on!r} here; {known}")
    if not counts["examples"]:
        kind, (count, first) = max(report.dropped.items(), key=lambda item: item[1][0])
        file, line, reason = first[0]
        of = f"none of {counted(counts['lines'], 'lines')} is an example"
        raise NoDialogueError(f"{where}: {of}; {kind}: {count:,}, such as {file}, {place_in(file)} {line}: {reason}")
    if not counts["eos_targets"] and not allow_no_eos:
        raise DataError(
            f"{where}: no EOS is a target, so that a model would never learn to stop: each of {counts['turns']:,} trained "
            f"turns is cut at {options.max_length} tokens; raise --max-length (`dialogpt data --allow-no-eos` lets it pass)"
        )
