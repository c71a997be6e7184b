"""What `dialogpt data check` shows: a report and the first examples in, lines for a person out.

A turn stands on a line of its own behind "context", "learned" or its weight, so that the mask is read without colours too;
with them, context is dim, a target green, a weight under 1 yellow and over 1 bold.

Letters: T tokens.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from dialogpt_jax.data.batches import Buckets
from dialogpt_jax.data.counts import DataCounts
from dialogpt_jax.data.example_options import ExampleOptions
from dialogpt_jax.data.examples import Example
from dialogpt_jax.data.formats import place_in
from dialogpt_jax.data.packing import plan_rows
from dialogpt_jax.data.prepare import encode_chunk, read_chunks
from dialogpt_jax.errors import counted, escape_controls
from dialogpt_jax.text.tokenizer import Tokenizer

EOS_MARK, CUT_MARK = "⟨EOS⟩", "…"
BINS, BAR = 16, 40  # lines of the histogram, and the widest bar
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_SAMPLE = 8192  # examples that are packed to see how full rows get


class Shown(NamedTuple):
    """An example and where it is from: file, line, and of how many examples of its dialogue it is the first."""

    file: str
    line: int
    example: Example
    of: int


def first_examples(files: Sequence, tokenizer: Tokenizer, options: ExampleOptions, count: int = 3) -> Iterator[Shown]:
    """The first example of each of the first dialogues that give one."""
    options = dataclasses.replace(options, pack=False, joined=0)
    for chunk in read_chunks(files):
        for line in chunk.lines:
            examples, _ = encode_chunk(chunk._replace(lines=[line]), tokenizer, options)
            if examples:
                yield Shown(chunk.file, line[0], examples[0], len(examples))
                count -= 1
            if not count:
                return


def render_example(shown: Shown, tokenizer: Tokenizer, eos: int) -> Text:
    """An example, a turn a line: what it is for, its text, its EOS; `…` where it is cut."""
    tokens_T, weights_T, _ = shown.example
    part = f", the first of {shown.of} examples" if shown.of > 1 else ""
    text = Text(
        f"{escape_controls(shown.file)}, {place_in(shown.file)} {shown.line}: {counted(len(tokens_T), 'tokens')}{part}\n",
        style="bold",
    )
    ends = np.flatnonzero(tokens_T == eos).tolist()
    starts = [0, *(end + 1 for end in ends)]
    for start, end in zip(starts, [*ends, len(tokens_T)], strict=True):
        if start == len(tokens_T):
            break
        weight = float(weights_T[start])
        style = "dim" if not weight else "yellow" if weight < 1 else "green" if weight == 1 else "bold green"
        label = "context" if not weight else "learned" if weight == 1 else f"× {weight:g}"
        text.append(f"{label:>8}  ", style=style)
        said = escape_controls(tokenizer.decode(tokens_T[start:end]), keep="")
        text.append(said or CUT_MARK, style=style)  # a context whose end alone had room
        text.append(EOS_MARK if end < len(tokens_T) else CUT_MARK, style=f"{style} reverse" if weight else style)
        text.append("\n")
    return text


def render_histogram(lengths: np.ndarray) -> list[str]:
    """The lengths of the examples, a bar for each range.

    Args:
      lengths: how many examples have n tokens, at place n; the last is the longest.
    """
    longest = len(lengths) - 1
    width = -(-longest // BINS)
    padded = np.zeros(width * -(-longest // width), np.int64)
    padded[:longest] = lengths[1:]
    counts = padded.reshape(-1, width).sum(axis=1)
    lines: list[str] = []
    for number, count in enumerate(counts.tolist()):
        if not count and not lines:  # shorter than every example
            continue
        eighths = max(round(8 * BAR * count / counts.max()), int(count > 0))  # the shortest bar is for a count of 1
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        low, high = number * width + 1, min((number + 1) * width, longest)
        span = f"{low:>6}-{high:<6}" if low < high else f"{low:>6}{'':7}"
        lines.append(f"{span}{count:>10,}  {bar}".rstrip())
    return lines


def padding(lengths: np.ndarray, max_length: int) -> tuple[float, float, float]:
    """The share of a batch that is padding: rows of one length, in the trainer's buckets, and packed."""
    sizes = np.arange(len(lengths))
    count, tokens = int(lengths.sum()), int((sizes * lengths).sum())
    buckets = np.array([length for _, length in Buckets(64, max_length).shapes(max_length)])
    bucketed = int((buckets[np.searchsorted(buckets, sizes)] * lengths).sum())
    places = np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64)  # a sample, spread evenly over all
    sample = np.searchsorted(np.cumsum(lengths), places, side="right")
    packed = len(plan_rows(sample, max_length)) * max_length
    return 1 - tokens / (count * max_length), 1 - tokens / bucketed, 1 - int(sample.sum()) / packed


def summary(report: DataCounts, options: ExampleOptions, files: Sequence = ()) -> list[str]:
    """The counts of the files, in sentences."""
    counts = report.counts
    lost = sum(count for count, _ in report.dropped.values())
    lines = [
        f"{counted(counts['lines'], _places(files))}: {counted(counts['dialogues'], 'dialogues')}, {lost:,} dropped"
    ]
    if not counts["examples"]:
        return lines
    split = f"; {counted(counts['split'], 'longer dialogues', ('was', 'were'))} split" if counts["split"] else ""
    split += (
        f"; {counts['joined']:,} of them {'is' if counts['joined'] == 1 else 'are'} several dialogues joined"
        if counts["joined"]
        else ""
    )
    share = counts["targets"] / counts["tokens"]
    cut = counts["turns"] - counts["eos_targets"]
    ends = f"EOS is a target after {counts['eos_targets']:,} of {counted(counts['turns'], 'trained turns')}"
    one, bucketed, packed = padding(report.lengths, options.max_length)
    alone = not (counts["longer"] or options.joined or options.reverse)
    advice = (
        "every dialogue is one exchange: a bot that learns them alone derails later in a chat; join them "
        "(--joined 3, which `dialogpt train` does by itself where --data is a file)"
    )
    return [
        *lines,
        f"{counted(counts['examples'], 'examples')} of at most {options.max_length} tokens{split}",
        f"{counted(counts['tokens'], 'tokens')}, {counts['targets']:,} of them targets ({share:.1%})",
        ends
        + (
            f"; {cut:,} longer than {options.max_length} tokens lost {'its' if cut == 1 else 'their'} end"
            if cut
            else ""
        ),
        f"padding: {bucketed:.1%} in the trainer's buckets, {one:.1%} in rows of one length, {packed:.1%} with --pack",
        *([advice] if alone else []),
    ]


def _places(files: Sequence) -> str:
    """Lines, or items where every file is one list."""
    return "items" if files and all(place_in(file) == "item" for file in files) else "lines"


def dropped_table(report: DataCounts, files: Sequence) -> Table:
    """What was dropped, by kind: how many lines, the first of them, and what is wrong with the very first."""
    table = Table("dropped because", _places(files), "first", "such as", box=None, pad_edge=False, header_style="bold")
    table.columns[1].justify = "right"
    for kind, (count, first) in sorted(report.dropped.items(), key=lambda item: -item[1][0]):
        where = [f"{file}:{line}" if len(files) > 1 else str(line) for file, line, _ in first]
        rest = [CUT_MARK] if count > len(first) else []
        table.add_row(
            kind,
            f"{count:,}",
            Text(escape_controls(", ".join([*where, *rest]))),
            Text(escape_controls(first[0][2], keep="")),
        )
    return table
