"""`dialogpt data prepare` as a function: files of dialogues in, a folder of shards and a report out.

    files ─chunks→ numbered lines ─encode (workers)→ columns, what was dropped ─Writer→ folder

The lines are cut into chunks by their number and size alone, and the chunks come back in order: the folder is the same,
byte for byte, whatever the number of workers. Only a few chunks are held at once, so memory does not grow with the corpus.
"""

import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from dialogpt_jax.data.counts import DataCounts, Encoded, check_counts
from dialogpt_jax.data.dialogue_line import Form
from dialogpt_jax.data.example_options import MAX_LENGTH, ExampleOptions, tokenizer_sha256
from dialogpt_jax.data.examples import (
    REPLIES,
    WHICH_TURNS,
    Example,
    Weighed,
    dialogue_examples,
    joined_dialogues,
    order_and_weigh,
)
from dialogpt_jax.data.formats import DataError, Dialogue, Dropped, form_of, parse_line, read_lines
from dialogpt_jax.data.packing import pack
from dialogpt_jax.data.shards import DROPPED_FILE, Shards, Writer, check_folder, open_shards, to_columns
from dialogpt_jax.data.workers import map_in_order
from dialogpt_jax.errors import naming
from dialogpt_jax.text.tokenizer import Tokenizer

CHUNK_LINES, CHUNK_BYTES = 4096, 4 * 1024 * 1024  # whichever is reached first
_WORTH_A_PROCESS = 4_000_000  # bytes of a file: a process takes half a second to start, this as long to encode
Progress = Callable[[int, int, int], None]  # kB read now, kB left, tokens made of them


class Chunk(NamedTuple):
    """Lines of one file, and how many bytes of all files are read after them."""

    file: str
    form: Form
    lines: list[tuple[int, bytes] | Dropped]
    position: int


def prepare(
    files: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str],
    options: ExampleOptions,
    *,
    workers: int | None = None,
    replace: bool = False,
    allow_no_eos: bool = False,
    progress: Progress | None = None,
) -> tuple[Shards, DataCounts]:
    """Writes the examples of files as a folder of shards, whole or not at all.

    Args:
      files: `.jsonl`, `.json`, `.csv` or `.tsv`, each plain or `.gz`; see `dialogue_line.py`.
      folder: does not exist, or is empty; with `replace` it may be prepared data, which is then replaced.
      tokenizer: the directory with its files.
      options: how.
      workers: processes; by default as many as there are cores, but fewer for little text.
      replace: whether prepared data that is at `folder` may be replaced.
      allow_no_eos: whether data may pass in which no EOS is a target, so that a model would never learn to stop.
      progress: called now and then.

    Raises:
      DataError: there is no example, no EOS is a target, or nobody bears the name in `train_on`; a gzip file is broken;
        `folder` is in use.
      OSError: a file cannot be read, or the folder not written; what was there before still is.
    """
    check_folder(folder, replace=replace)
    loaded = Tokenizer.load(tokenizer)
    work = functools.partial(_encode_with, os.fspath(tokenizer), options)
    report = DataCounts()
    writer = Writer(folder)
    try:
        with (
            naming(folder),  # a full disk does not say which
            (writer.folder / DROPPED_FILE).open("w", encoding="utf-8") as dropped,
            map_in_order(work, read_chunks(files), workers=workers or _workers_for(files)) as results,
        ):
            for chunk, encoded in _told(results, files, progress):
                writer.append(encoded.columns)
                report.add(chunk.file, encoded)
                for line in encoded.dropped:
                    fields = {"file": chunk.file, "line": line.line, "reason": line.reason}
                    dropped.write(json.dumps(fields, ensure_ascii=False) + "\n")
        check_counts(report, files, options, allow_no_eos=allow_no_eos)
        with naming(folder):
            writer.finish(_info(report, files, loaded, options))
    finally:
        writer.close()
    return open_shards(folder), report


def encode_files(
    files: Sequence[str | os.PathLike[str]], tokenizer: Tokenizer, options: ExampleOptions
) -> tuple[list[Example], DataCounts]:
    """The examples of files in memory, as `prepare` would write them; for a corpus of megabytes.

    Raises:
      DataError, OSError: as `prepare`.
    """
    found: list[Example] = []
    report = DataCounts()
    for chunk in read_chunks(files):
        examples, encoded = encode_chunk(chunk, tokenizer, options)
        found += examples
        report.add(chunk.file, encoded)
    check_counts(report, files, options)
    return found, report


def survey(
    files: Sequence[str | os.PathLike[str]],
    tokenizer: str | os.PathLike[str],
    options: ExampleOptions,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DataCounts:
    """The report of `prepare`, with nothing written and nothing refused but a file that cannot be read (as there)."""
    report = DataCounts()
    work = functools.partial(_encode_with, os.fspath(tokenizer), options)
    with map_in_order(work, read_chunks(files), workers=workers or _workers_for(files)) as results:
        for chunk, encoded in _told(results, files, progress):
            report.add(chunk.file, encoded)
    return report


def options_for_file(
    file: str | os.PathLike[str],
    eos: int,
    n_positions: int,
    *,
    max_length: int | None = None,
    train_on: str | None = None,
    reverse: bool = False,
    joined: int | None = None,
) -> ExampleOptions:
    """How `dialogpt train` makes examples of a file where it is told nothing else.

    Args:
      file: with its dialogues.
      eos, n_positions: of the model.
      max_length: 128 tokens, or the model's positions if fewer.
      train_on: "replies".
      reverse: see `order_and_weigh`.
      joined: 3 where all that the file holds are single exchanges, and not too many; else 0.

    Raises:
      DataError: a number is out of range, or the columns of a table do not say which are the turns.
      OSError: the file cannot be read.
    """
    length = min(MAX_LENGTH, n_positions) if max_length is None else max_length
    if length > n_positions:
        raise DataError(f"--max-length is {length}; the model's context is {n_positions}")
    if joined is None:
        joined = JOINED if not reverse and are_single_exchanges([file]) else 0
    return ExampleOptions(eos, length, REPLIES if train_on is None else train_on, reverse, joined=joined)


JOINED = 3  # how many times a single exchange also stands among others: one example in two then is a longer chat
MOST_SHORT = 10_000  # dialogues of one exchange each: a corpus beyond them is no fine-tune of a few chats


def are_single_exchanges(files: Sequence[str | os.PathLike[str]]) -> bool:
    """Whether all dialogues of files, at most `MOST_SHORT` of them, have two turns; reads until one has more.

    Raises:
      OSError: a file cannot be read.
      DataError: the columns of a table do not say which are the turns.
    """
    lines = (
        parse_line(*line, form=chunk.form) for chunk in read_chunks(files) for line in chunk.lines if len(line) == 2
    )
    count = 0
    for line in lines:
        if isinstance(line, Dialogue):
            count += 1
            if len(line.turns) > 2 or count > MOST_SHORT:
                return False
    return count > 0


def read_chunks(files: Iterable[str | os.PathLike[str]]) -> Iterator[Chunk]:
    """The lines of files, in order, some thousands at a time."""
    before = 0
    for path in files:
        form = form_of(path)
        with Path(path).open("rb") as raw:
            lines: list[tuple[int, bytes] | Dropped] = []
            size = 0
            for line in read_lines(raw, path, form):
                lines.append(line)
                size += 0 if isinstance(line, Dropped) else len(line[1])
                if len(lines) >= CHUNK_LINES or size >= CHUNK_BYTES:
                    yield Chunk(os.fspath(path), form, lines, before + _read_of(raw))
                    lines, size = [], 0
            before += _read_of(raw)
            if lines:
                yield Chunk(os.fspath(path), form, lines, before)


def _read_of(raw: BinaryIO) -> int:
    return raw.tell() if raw.seekable() else 0  # a pipe does not say


def encode_chunk(chunk: Chunk, tokenizer: Tokenizer, options: ExampleOptions) -> tuple[list[Example], Encoded]:
    """The examples of a chunk, packed if the options says so, and what there is to say of it."""
    dropped: list[Dropped] = []
    numbered: list[tuple[int, Dialogue]] = []
    for line in chunk.lines:
        parsed = line if isinstance(line, Dropped) else parse_line(*line, form=chunk.form)
        if isinstance(parsed, Dropped):
            dropped.append(parsed)
            continue
        dialogue = order_and_weigh(parsed, train_on=options.train_on, reverse=options.reverse)
        assert not isinstance(line, Dropped)
        numbered.append((line[0], dialogue))
    named = options.train_on not in WHICH_TURNS
    speakers = {name for _, dialogue in numbered for name in dialogue.speakers or () if name} if named else set()
    ids = iter(tokenizer.encode_batch([turn for _, dialogue in numbered for turn in dialogue.turns]))
    examples: list[Example] = []
    counts = Counter(lines=len(chunk.lines))
    weighed: list[Weighed] = [([next(ids) for _ in dialogue.turns], dialogue.weights or ()) for _, dialogue in numbered]
    for (number, _), (turns, weights) in zip(numbered, weighed, strict=True):
        new = dialogue_examples(turns, weights, eos=options.eos, max_length=options.max_length)
        if not new:
            reason = f"no turn of {options.train_on!r}" if named else "no turn that weighs anything"
            dropped.append(Dropped(number, f"{reason} after the first", "nothing to train on"))
            continue
        examples += new
        counts.update(
            dialogues=1, split=len(new) > 1, turns=sum(weight > 0 for weight in weights), longer=len(turns) > 2
        )
    rng = np.random.default_rng(numbered[0][0] if numbered else 0)  # another in each chunk, the same in each run
    for _ in range(options.joined):
        for turns, weights in joined_dialogues(weighed, max_length=options.max_length, rng=rng):
            new = dialogue_examples(turns, weights, eos=options.eos, max_length=options.max_length)
            examples += new
            counts.update(joined=len(new), turns=sum(weight > 0 for weight in weights))
    lengths = np.bincount([len(e.tokens_T) for e in examples], minlength=1)
    counts.update(examples=len(examples))
    rows = list(pack(examples, options.max_length)) if options.pack else examples
    columns = to_columns(rows, vocab_size=max(tokenizer.vocab_size, options.eos + 1), max_length=options.max_length)
    targets = np.repeat(columns.runs["weight"] > 0, columns.runs["length"])
    counts.update(rows=len(rows), tokens=len(targets), targets=int(targets.sum()))
    counts.update(eos_targets=int((targets & (columns.tokens == options.eos)).sum()))
    return rows, Encoded(columns, sorted(dropped), counts, lengths, speakers)


def _workers_for(files: Sequence[str | os.PathLike[str]]) -> int:
    size = sum(Path(file).stat().st_size for file in files)
    return max(1, min(os.cpu_count() or 1, size // _WORTH_A_PROCESS))


@functools.lru_cache(maxsize=1)
def _load(folder: str) -> Tokenizer:
    return Tokenizer.load(folder)


def _encode_with(tokenizer: str, options: ExampleOptions, chunk: Chunk) -> tuple[Chunk, Encoded]:
    """A worker's function; the lines themselves need not travel back."""
    return chunk._replace(lines=[]), encode_chunk(chunk, _load(tokenizer), options)[1]


def _told(
    results: Iterable[tuple[Chunk, Encoded]], files: Sequence[str | os.PathLike[str]], progress: Progress | None
) -> Iterator[tuple[Chunk, Encoded]]:
    total, done = sum(Path(file).stat().st_size for file in files), 0
    for chunk, encoded in results:
        if progress is not None:
            progress((chunk.position - done + 999) // 1000, (total - chunk.position) // 1000, encoded.counts["tokens"])
        done = chunk.position
        yield chunk, encoded


def _info(report: DataCounts, files: Sequence, tokenizer: Tokenizer, options: ExampleOptions) -> dict:
    return {
        "max_length": options.max_length,
        "eos_token_id": options.eos,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "train_on": options.train_on,
        "reverse": options.reverse,
        "pack": options.pack,
        "joined": options.joined,
        "counts": {name: report.counts[name] for name in sorted(report.counts)},
        "dropped": {kind: report.dropped[kind][0] for kind in sorted(report.dropped)},
        "sources": [{"file": os.fspath(file), "bytes": Path(file).stat().st_size} for file in files],
    }
