"""`dialogpt data`: files of dialogues in; what training would see, or the same prepared for it, out."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.flags import EXAMPLES_READ, FROM_1, UsageError, flags_of, make_app, said
from dialogpt_jax.cli.progress import show_progress
from dialogpt_jax.data.check import dropped_table, first_examples, render_example, render_histogram, summary
from dialogpt_jax.data.counts import DataCounts, check_counts
from dialogpt_jax.data.dialogue_line import FORMS, NoDialogueError
from dialogpt_jax.data.dialogue_value import DataError
from dialogpt_jax.data.example_options import ExampleOptions, make_example_options
from dialogpt_jax.data.prepare import prepare, survey
from dialogpt_jax.data.shards import INFO_FILE
from dialogpt_jax.errors import counted, size_of
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.weights.hub import resolve_tokenizer

READ = f"""\
A file has a dialogue a line, or is a list of them or a table; plain or `.gz`:

{FORMS}
"""
RULES = """\
Every turn after the first is a target, and so is the EOS after it; a weight says how much. Where messages have roles, \
what `assistant` says is a target and the rest is context (--train-on all: every turn). A system message is no turn: its \
line is dropped. A longer dialogue is split between turns. A line that is no dialogue is dropped, and named with the reason.

Examples:
"""
CHECK_EXAMPLES = """\
  dialogpt data check talk.jsonl           is it right? what is dropped, and why
"""
PREPARE_EXAMPLES = """\
  dialogpt data prepare talk.jsonl more.tsv.gz DIR
                                           then `dialogpt train --data DIR`
  dialogpt data prepare talk.jsonl chats.jsonl chats.jsonl DIR
                                           named twice: twice its share
  dialogpt data prepare talk.jsonl DIR --train-on Bob
                                           only what Bob says is learned
  dialogpt data prepare talk.jsonl DIR --reverse
                                           for p(source | reply)
"""
app = make_app("data", "dialogpt data COMMAND", help_epilogue=RULES + CHECK_EXAMPLES + PREPARE_EXAMPLES)
check_app = make_app(
    "check",
    "dialogpt data check [OPTIONS] FILE...",
    help="Show what training would see: lengths, three examples with the loss mask, what is dropped and why.",
    help_epilogue=READ + RULES + CHECK_EXAMPLES,
)
prepare_app = make_app(
    "prepare",
    "dialogpt data prepare [OPTIONS] FILE... DIR",
    help="Write memory-mapped shards, whole or not at all, the same for any number of workers.",
    help_epilogue=READ + RULES + PREPARE_EXAMPLES,
)
app.command(check_app)
app.command(prepare_app)
app.command("dialogpt_jax.cli.data_pairs:app", name="pairs", help="Make pairs of replies, to train a ranker on.")
app.command("dialogpt_jax.cli.data_reddit:app", name="reddit", help="Rebuild the paper's corpus from dumps of Reddit.")

HELP = {
    "train_on": "replies: what `assistant` says, where messages have roles, else every turn after the first; all: every "
    "turn after the first; last: the last turn only; or one speaker's turns, by name",
    "joined": "each dialogue also stands N times among others as one long dialogue, for single exchanges",
    "reverse": "turns in reversed order, for a backward (MMI) model: reply first",
    "pack": "fill each row with several whole dialogues",
}
if TYPE_CHECKING:

    class CheckFlags(Any): ...

    class PrepareFlags(Any): ...
else:
    CheckFlags = flags_of(ExampleOptions, EXAMPLES_READ, without=("eos", "pack"), help=HELP)
    PrepareFlags = flags_of(ExampleOptions, EXAMPLES_READ, without=("eos",), help=HELP)

TokenizerFlag = Annotated[
    str | None,
    Parameter(
        name="--tokenizer",
        metavar="MODEL",
        help="the model that will be trained: its directory, or name on the Hub; by default the one in the package",
    ),
]
Workers = Annotated[
    int | None, FROM_1, Parameter(name="--workers", metavar="N", help="processes (as many as there are cores)")
]
AllowNoEOS = Annotated[bool, Parameter(name="--allow-no-eos", help="pass data in which no EOS is a target")]


@check_app.default
def check(
    *files: Annotated[str, Parameter(name="FILE", help=".jsonl, .json, .csv, .tsv; each may end in .gz")],
    tokenizer: TokenizerFlag = None,
    examples: CheckFlags = CheckFlags(),  # noqa: B008  (frozen)
    workers: Workers = None,
    allow_no_eos: AllowNoEOS = False,
) -> int:
    if not files:
        raise UsageError("no file to look at; name a file of dialogues")
    _refuse_folders(files)
    folder = _folder(tokenizer)
    options = make_example_options(folder, **said(examples))
    try:
        return _check(files, folder, options, workers, allow_no_eos)
    except NoDialogueError as error:
        raise NoDialogueError(error.what, help="--help") from None


def _check(files: Sequence[str], folder: Path, options: ExampleOptions, workers: int | None, allow_no_eos: bool) -> int:
    with show_progress("kB", "tokens") as progress:
        report = survey(files, folder, options, workers=workers, progress=progress)
    console = _console()
    if report.counts["examples"]:
        loaded = Tokenizer.load(folder)
        for shown in first_examples(files, loaded, options):
            console.print(render_example(shown, loaded, options.eos), soft_wrap=True)
        console.print("\n".join(["tokens       examples", *render_histogram(report.lengths), ""]), soft_wrap=True)
    _show_counts(console, report, files, options)
    check_counts(report, files, options, allow_no_eos=allow_no_eos)
    return 0


@prepare_app.default
def write(
    *files_and_folder: Annotated[
        str,
        Parameter(
            name="FILE DIR",
            help=".jsonl, .json, .csv, .tsv, each may end in .gz; the folder to write comes last",
        ),
    ],
    tokenizer: TokenizerFlag = None,
    examples: PrepareFlags = PrepareFlags(),  # noqa: B008
    workers: Workers = None,
    allow_no_eos: AllowNoEOS = False,
    force: Annotated[bool, Parameter(help="replace the prepared data that is at DIR")] = False,
) -> int:
    if len(files_and_folder) < 2:
        raise UsageError("name the files of dialogues, and behind them the folder DIR to write")
    *files, target = files_and_folder
    _refuse_folders(files)
    folder = _folder(tokenizer)
    options = make_example_options(folder, **said(examples))
    with show_progress("kB", "tokens") as progress:
        passed = {"replace": force, "allow_no_eos": allow_no_eos}
        data, report = prepare(files, target, folder, options, **passed, workers=workers, progress=progress)
    _show_counts(_console(), report, files, options)
    size = sum(entry.stat().st_size for entry in os.scandir(data.path))
    streams.show(f"wrote {target}: {counted(len(data), 'rows')}, {size_of(size)}")
    return 0


def _refuse_folders(files: Sequence[str]) -> None:
    for file in filter(os.path.isdir, files):
        if os.path.exists(os.path.join(file, INFO_FILE)):
            raise DataError(f"{file} is prepared data, which was checked; `dialogpt train --data {file}` trains on it")
        raise DataError(f"{file} is a folder; name the files in it, such as {os.path.join(file, '*.jsonl')}")


def _folder(tokenizer: str | None) -> Path:
    from dialogpt_jax.chat.loading import bundled_directory  # imports jax, which these commands do not need

    return bundled_directory() if tokenizer is None else resolve_tokenizer(tokenizer)


def _console() -> Console:
    # A pipe has no width; a line of its own for each kind of what is dropped suits it best.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def _show_counts(console: Console, report: DataCounts, files, options: ExampleOptions) -> None:
    console.print("\n".join(summary(report, options, files)), markup=False, soft_wrap=True)
    if report.dropped:
        console.print(dropped_table(report, files))
