"""The same corpus by Apache Beam, on any of its runners: files by pattern in; shards of dialogues and the counts out.

    files ─(a file a worker)→ records by thread ─GroupByKey→ `judge` ─triples said often, a side input→ lines

What is asked of records, threads and targets is what one machine asks: the same functions, and here only what goes where.
Records carry the file and the line where they stand, since a group comes in no order; the lines of the corpus come in none.

    python -m dialogpt_jax.data.reddit.cluster --dumps 'gs://mine/R*.zst' --out gs://mine/corpus --runner DataflowRunner …

Whatever is not named below goes to Beam. Needs `pip install -e '.[extract]'`, in an environment of its own: Beam
pins versions of what jax uses too.
"""

import argparse
import difflib
import heapq
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.io import fileio
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

from dialogpt_jax.data.reddit import TERMS
from dialogpt_jax.data.reddit.bland import targets_of, triples
from dialogpt_jax.data.reddit.dumps import read_dump, uncompressed
from dialogpt_jax.data.reddit.lists import read_leave_out, read_subreddits, read_words
from dialogpt_jax.data.reddit.partition import JSONL, TSV, as_line, finish_line, render
from dialogpt_jax.data.reddit.records import Problem
from dialogpt_jax.data.reddit.rules import QUIRKS, Rules
from dialogpt_jax.data.reddit.split import is_comment, pack_record, read_records, unpack_record
from dialogpt_jax.data.reddit.statistics import Statistics
from dialogpt_jax.data.reddit.threads import LeaveOut, judge
from dialogpt_jax.errors import one_line

NUMBERS = (
    "min_score",
    "min_depth",
    "max_depth",
    "max_turn_words",
    "max_word_characters",
    "max_pair_words",
    "bland_count",
    "bland_share",
    "max_thread",
)
_HALF = 1 << 63  # Beam's integers have a sign
PROBLEMS, COUNTS, SKIPPED = "problems", "counts", "skipped"
Placed = tuple[str, int, bytes]  # the file and the line of a record, and its fields


def add_extract(
    files: beam.PCollection, rules: Rules, leave_out: LeaveOut
) -> tuple[beam.PCollection, beam.PCollection, beam.PCollection]:
    """Adds the corpus of some dumps to a pipeline.

    Args:
      files: what `fileio.ReadMatches(compression="uncompressed")` gives.
      rules, leave_out: as for one machine.

    Returns:
      dialogues as `partition.as_line` has them, problems as JSON, and statistics as JSON, to be added up.
    """
    read = files | "Read" >> beam.ParDo(ReadDump(rules, leave_out)).with_outputs(PROBLEMS, COUNTS, main="records")
    judged = (
        read.records
        | "ByThread" >> beam.GroupByKey()
        | "Judge" >> beam.ParDo(JudgeThread(rules)).with_outputs(COUNTS, main="lines")
    )
    lines, more = judged.lines, []
    if rules.asks_bland:
        often = (
            lines
            | "Triples" >> beam.FlatMap(_triples_of)
            | "Count" >> beam.combiners.Count.PerElement()
            | "Often" >> beam.Filter(lambda pair: pair[1] > rules.bland_count)
            | beam.Keys()
        )
        finished = lines | "Finish" >> beam.ParDo(FinishLine(rules), beam.pvalue.AsList(often)).with_outputs(
            SKIPPED, main="lines"
        )
        lines = finished.lines
        more.append(finished[SKIPPED])
    written = lines | "Written" >> beam.Map(_counted)
    counts = (read[COUNTS], judged[COUNTS], written, *more) | "Counts" >> beam.Flatten() | beam.CombineGlobally(add_up)
    return lines, read[PROBLEMS], counts


class ReadDump(beam.DoFn):
    """A file to its records, by thread; the problems and the counts beside them."""

    def __init__(self, rules: Rules, leave_out: LeaveOut):
        self._rules, self._leave_out = rules, leave_out

    def process(self, file: fileio.ReadableFile) -> Iterator:
        name = file.metadata.path
        counts: Counter[str] = Counter()
        kinds: dict[str, list] = {}
        with file.open() as raw:
            lines = read_dump(uncompressed(raw, name), name)
            for number, record in read_records(lines, self._rules, self._leave_out, counts):
                if isinstance(record, Problem):
                    problem = {"file": name, "line": number, "reason": record.reason}
                    yield beam.pvalue.TaggedOutput(PROBLEMS, json.dumps(problem))
                    kind = kinds.setdefault(record.kind, [0, []])
                    kind[0] += 1
                    kind[1] = [*kind[1], (number, record.reason)][:5]
                    continue
                _, line = pack_record(record)
                _, thread, fields = line.split(b" ", 2)
                yield thread.decode(), (name, number, fields)
        statistics = Statistics()
        statistics.add_dump({"file": name, "counts": counts, "problems": kinds})
        yield beam.pvalue.TaggedOutput(COUNTS, statistics.as_json())


class JudgeThread(beam.DoFn):
    """A thread's records to its dialogues; the counts beside them."""

    def __init__(self, rules: Rules):
        self._rules = rules

    def process(self, group: tuple[str, Iterable[Placed]]) -> Iterator:
        name, placed = group
        records, dropped = in_order(placed, self._rules)
        thread, outcomes = judge(name, (unpack_record(name, fields) for _, _, fields in records), self._rules)
        thread = thread._replace(dropped=thread.dropped + dropped)
        statistics = Statistics()
        statistics.add_thread(thread, outcomes)
        for outcome in outcomes:
            if outcome.rule is None:
                yield as_line(thread, outcome, self._rules)
        yield beam.pvalue.TaggedOutput(COUNTS, statistics.as_json())


def in_order(placed: Iterable[Placed], rules: Rules) -> tuple[list[Placed], int]:
    """A thread's records in the order of files and lines, its comments last, and how many more of them it has.

    Of more than are read, those that are not are never in memory together.
    """
    count = 0
    others: list[Placed] = []  # the thread's own, of which there is one and at times another, and what is deleted

    def comments() -> Iterator[Placed]:
        nonlocal count
        for one in placed:
            if is_comment(one[2]):
                count += 1
                yield one
            else:
                others.append(one)

    def place(one: Placed) -> tuple[str, int]:
        return one[0], one[1]

    if "huge_thread" in rules.without:
        first = sorted(comments(), key=place)
    else:
        first = heapq.nsmallest(rules.max_thread, comments(), key=place)
    return sorted(others, key=place) + first, count - len(first)


class FinishLine(beam.DoFn):
    """A dialogue with its bland targets at 0; one that has no other target is counted beside it."""

    def __init__(self, rules: Rules):
        self._rules = rules

    def process(self, line: dict, often: Sequence[int]) -> Iterator:
        if getattr(self, "_of", None) is not often:
            self._of, self._often = often, frozenset(triple + _HALF for triple in often)
        finished = finish_line(line, self._often, self._rules)
        if finished is not None:
            yield finished
            return
        statistics = Statistics()
        statistics.counts["rule bland"] += 1
        yield beam.pvalue.TaggedOutput(SKIPPED, statistics.as_json())


def _triples_of(line: dict) -> Iterator[int]:
    for target in targets_of(line["turns"], line["weights"] or [1.0] * len(line["turns"])):
        yield from (triple - _HALF for triple in triples(target))


def _counted(line: dict) -> dict:
    statistics = Statistics()
    statistics.add_dialogue(line)
    return statistics.as_json()


def add_up(parts: Iterable[dict]) -> dict:
    """The sum of statistics as JSON; Beam calls it on some of them, and on sums."""
    total = Statistics()
    for part in parts:
        one = Statistics.from_json(part)
        total.add(one)
        for kind, (count, first) in one.problems.items():
            before, known = total.problems.get(kind, (0, []))
            total.problems[kind] = before + count, sorted([*known, *first])[:5]
    return total.as_json()


def _spelt(name: str) -> list[str]:
    """A flag as `dialogpt data reddit` has it, and as Beam has its own."""
    return sorted({f"--{name.replace('_', '-')}", f"--{name}"})


def _refuse_misspelt(parser: argparse.ArgumentParser, others: Sequence[str]) -> None:
    """Ends the program at a flag that is nearly one of ours: Beam would leave it out with a warning."""
    ours = sorted({name.replace("_", "-") for name in parser._option_string_actions if name.startswith("--")})
    for flag in (word.partition("=")[0] for word in others if word.startswith("--")):
        close = difflib.get_close_matches(flag.replace("_", "-"), ours, n=1, cutoff=0.8)
        if close:
            parser.error(f"{flag} is no flag of this pipeline or of Beam; did you mean {close[0]}?")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dialogpt_jax.data.reddit.cluster", epilog=TERMS, description="Other flags are Beam's own."
    )
    parser.add_argument("--dumps", required=True, nargs="+", help="patterns of files, in any of Beam's file systems")
    parser.add_argument("--out", required=True, help="a folder in any of Beam's file systems")
    parser.add_argument("--form", choices=(JSONL, TSV), default=JSONL)
    lists = ("offensive", "subreddits", "common_words", "leave_out")
    for name in lists:
        parser.add_argument(*_spelt(name), metavar="FILE", help="on this machine, as `dialogpt data reddit`")
    parser.add_argument("--faithful", default="", metavar="QUIRK,…", help="as `dialogpt data reddit`")
    parser.add_argument("--without", default="", metavar="RULE,…", help="as `dialogpt data reddit`")
    for name in NUMBERS:
        default = getattr(Rules, name)
        parser.add_argument(*_spelt(name), type=type(default), default=default, metavar="N")
    for name in ("all_comments", "titles"):
        parser.add_argument(*_spelt(name), action="store_true")
    said, others = parser.parse_known_args(argv)
    _refuse_misspelt(parser, others)
    readers: dict[str, Any] = {"offensive": read_words, "subreddits": read_subreddits, "common_words": read_words}
    try:
        rules = Rules(
            **{name: getattr(said, name) for name in (*NUMBERS, "all_comments", "titles")},
            **{name: reader(getattr(said, name)) for name, reader in readers.items() if getattr(said, name)},
            faithful=frozenset(QUIRKS if said.faithful == "all" else filter(None, said.faithful.split(","))),
            without=frozenset(filter(None, said.without.split(","))),
        )
        leave_out = read_leave_out(said.leave_out) if said.leave_out else LeaveOut()
    except (ValueError, OSError) as error:
        parser.error(one_line(error))
    options = PipelineOptions(others)
    options.view_as(SetupOptions).save_main_session = False
    if any(found.metadata_list for found in FileSystems.match([f"{said.out.rstrip('/')}/*"])):
        parser.error(f"{said.out}: holds files already; name a new folder")  # else shards of two corpora stand together
    with beam.Pipeline(options=options) as pipeline:
        files = (
            pipeline
            | beam.Create(said.dumps)
            | fileio.MatchAll(empty_match_treatment=fileio.EmptyMatchTreatment.DISALLOW)
            | "Spread" >> beam.Reshuffle()
            | fileio.ReadMatches(compression="uncompressed")
        )
        lines, problems, counts = add_extract(files, rules, leave_out)
        form = said.form
        (
            lines
            | "Render" >> beam.Map(lambda line: render(line, form))
            | "WriteLines" >> beam.io.WriteToText(f"{said.out}/dialogues", file_name_suffix=f".{form}")
        )
        problems | "WriteProblems" >> beam.io.WriteToText(f"{said.out}/problems", file_name_suffix=".jsonl")
        (
            counts
            | beam.Map(json.dumps)
            | "WriteCounts" >> beam.io.WriteToText(f"{said.out}/statistics", ".json", shard_name_template="")
        )


if __name__ == "__main__":
    main(sys.argv[1:])
