"""Data for training: look at it, then prepare it.

    dialogpt data check talk.jsonl                         is it right? lengths, three examples, what is dropped and why
    dialogpt data prepare talk.jsonl more.tsv.gz DIR       once, in parallel; `dialogpt train --data DIR` reads it
    dialogpt data prepare talk.jsonl DIR --train-on Bob    only what Bob says is learned; the rest is context
    dialogpt data prepare talk.jsonl DIR --reverse         for a backward model, p(source | reply)

A file has a dialogue a line, in JSON or Microsoft's TSV, or is a list of them or a table; plain or `.gz`. `dialogpt data
check --help` shows the forms that are read.

Every turn after the first is a target, and so is the EOS after it; a weight says how much. Where messages have roles, what
`assistant` says is a target and the rest is context (--train-on all: every turn). A system message is no turn: its line is
dropped. A longer dialogue is split between turns. A line that is no dialogue is dropped, and named with the reason.
"""

import argparse
import os
import sys

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.progress import show_progress
from dialogpt_jax.data.counts import check_counts
from dialogpt_jax.data.dialogue_line import FORMS
from dialogpt_jax.data.example_options import MAX_LENGTH, make_example_options
from dialogpt_jax.data.examples import REPLIES
from dialogpt_jax.text.tokenizer import Tokenizer

CHECK = (
    "Shows what training would see in files of dialogues: lengths, three examples with the loss mask, what is dropped."
)
PREPARE = "Writes files of dialogues as memory-mapped shards, whole or not at all, the same for any number of workers."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    forms = f"what is read, a dialogue a line; a .json may be a list of such:\n{FORMS}"
    check = actions.add_parser("check", help="look at it", description=CHECK, epilog=forms, formatter_class=raw)
    prepare = actions.add_parser(
        "prepare", help="write it for the trainer", description=PREPARE, epilog=forms, formatter_class=raw
    )
    for action in (check, prepare):
        action.add_argument("files", metavar="FILE", nargs="+", help=".jsonl, .json, .csv, .tsv; each may end in .gz")
    prepare.add_argument("folder", metavar="DIR", help="the folder to write")
    for action in (check, prepare):
        action.add_argument(
            "--tokenizer",
            metavar="DIR_OR_NAME",
            help="the model that will be trained: its directory, or name on the Hub; by default the one in the package",
        )
        action.add_argument(
            "--max-length",
            type=int,
            default=MAX_LENGTH,
            metavar="T",
            help=f"tokens of an example, at most ({MAX_LENGTH})",
        )
        action.add_argument(
            "--train-on",
            default=REPLIES,
            metavar="replies|all|last|NAME",
            help="what `assistant` says, where messages have roles, else every turn after the first (default); "
            "every turn after the first; the last turn only; or one speaker's turns",
        )
        action.add_argument(
            "--reverse", action="store_true", help="turns in reversed order, for a backward (MMI) model: reply first"
        )
        action.add_argument(
            "--joined",
            type=int,
            default=0,
            metavar="N",
            help="each dialogue also stands N times among others as one long dialogue, for single exchanges (0)",
        )
        action.add_argument("--workers", type=_positive, metavar="N", help="processes (as many as there are cores)")
        action.add_argument("--allow-no-eos", action="store_true", help="pass data in which no EOS is a target")
    prepare.add_argument("--pack", action="store_true", help="fill each row with several whole dialogues")
    prepare.add_argument("--force", action="store_true", help="replace the prepared data that is at DIR")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from dialogpt_jax.chat.bot import bundled_directory
    from dialogpt_jax.data.check import dropped_table, first_examples, render_example, render_histogram, summary
    from dialogpt_jax.data.prepare import prepare, survey
    from dialogpt_jax.weights.hub import resolve_tokenizer

    folder = bundled_directory() if args.tokenizer is None else resolve_tokenizer(args.tokenizer)
    chosen = {"max_length": args.max_length, "train_on": args.train_on, "reverse": args.reverse, "joined": args.joined}
    options = make_example_options(folder, **chosen, pack=args.action == "prepare" and args.pack)
    # A pipe has no width; a line of its own for each kind of what is dropped suits it best.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    with show_progress("kB", "tokens") as progress:
        shared = {"workers": args.workers, "progress": progress}
        if args.action == "prepare":
            passed = {"replace": args.force, "allow_no_eos": args.allow_no_eos}
            data, report = prepare(args.files, args.folder, folder, options, **passed, **shared)
        else:
            report = survey(args.files, folder, options, **shared)
    if args.action == "check" and report.counts["examples"]:
        tokenizer = Tokenizer.load(folder)
        for shown in first_examples(args.files, tokenizer, options):
            console.print(render_example(shown, tokenizer, options.eos), soft_wrap=True)
        console.print("\n".join(["tokens       examples", *render_histogram(report.lengths), ""]), soft_wrap=True)
    console.print("\n".join(summary(report, options)), markup=False, soft_wrap=True)
    if report.dropped:
        console.print(dropped_table(report, args.files))
    if args.action == "check":
        check_counts(report, args.files, options, allow_no_eos=args.allow_no_eos)
        return 0
    size = sum(entry.stat().st_size for entry in os.scandir(data.path))
    streams.show(f"wrote {args.folder}: {len(data):,} rows, {size / 1e6:,.1f} MB")
    return 0
