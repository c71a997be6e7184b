"""The half of `dialogpt eval` that asks a model: its flags in, replies and a table's numbers out."""

import argparse
import dataclasses
import os
import sys

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.common import load_bot
from dialogpt_jax.cli.program_cache import OFF_VARIABLE
from dialogpt_jax.cli.progress import show_progress
from dialogpt_jax.data.formats import held_out
from dialogpt_jax.evaluation import harness, model_measures, tables
from dialogpt_jax.evaluation.contexts import Context, cut
from dialogpt_jax.evaluation.intervals import compare
from dialogpt_jax.evaluation.replies import Reply, read_replies


def add_model_arguments(group: "argparse._ArgumentGroup") -> None:
    """The arguments of `dialogpt eval --data`."""
    group.add_argument(
        "--data", metavar="FILE", help="dialogues, in any form that training reads: see `dialogpt data check --help`"
    )
    group.add_argument(
        "--model",
        metavar="M",
        help="a model directory or a name on the Hub; by default the one that ships with the package",
    )
    group.add_argument("--revision", help="branch, tag or commit of a Hub model")
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="compute in this (float32)",
    )
    group.add_argument(
        "--contexts",
        type=positive,
        metavar="N",
        help="the first N: each dialogue cut before a drawn turn, then each before another … By default every turn after "
        "the first of its dialogue is replied to once",
    )
    group.add_argument(
        "--decode",
        choices=tuple(harness.DECODINGS),
        default="greedy",
        help="the best token; top-k sampling (k 10, the paper's); nucleus sampling (p 0.9); what `dialogpt reply` does "
        "(temperature 0.7, k 50, p 0.9)",
    )
    group.add_argument("--temperature", type=float, metavar="T", help="another than that of --decode")
    group.add_argument("--top-k", type=positive, metavar="K", help="another than that of --decode")
    group.add_argument("--top-p", type=float, metavar="P", help="another than that of --decode")
    group.add_argument("--max-new-tokens", type=positive, default=40, metavar="N", help="the longest reply (40)")
    group.add_argument(
        "--batch-size", type=positive, default=32, metavar="N", help="replies made together on each device (32)"
    )
    group.add_argument(
        "--out",
        metavar="FILE",
        help="JSON lines: every reply with its context's number, seed, log-probability and whether it ended; goes on "
        "where it stopped",
    )
    group.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="only the I-th of N parts (from 1), without measures: one process of several, each with its --out. Put one "
        "behind the other (cat), their files are the --out that the command without --part takes up",
    )
    group.add_argument(
        "--no-compilation-cache",
        action="store_true",
        help=f"do not keep compiled programs in the user's cache folder (also: {OFF_VARIABLE}=1)",
    )


def run_model(args: argparse.Namespace) -> tables.Table | None:
    """The replies of `--model` to contexts of `--data`, and their measures; none of one `--part`."""
    for flag in ("hypotheses", "references", "keys", "reference_sets", "meteor_jar"):
        if getattr(args, flag) is not None:
            raise ValueError(f"--{flag.replace('_', '-')} does not go with --data")
    if args.clean:
        raise ValueError("--clean does not go with --data; --out writes replies that can be cleaned")
    if args.part and not args.out:
        raise ValueError("--part needs --out")
    settings = settings_of(args)
    dialogues, dropped = held_out(args.data)
    if dropped:
        streams.tell(dropped)
    contexts = cut(dialogues, args.contexts)
    if not contexts:
        raise ValueError(f"{args.data}: no dialogue has a second turn; there is nothing to reply to")
    other = None if args.compare is None else _replies_of(args.compare, contexts)
    bot = load_bot(args)
    with show_progress("replies", "tokens") as progress:
        found = harness.answer(
            bot,
            contexts,
            settings,
            out=args.out,
            part=args.part or (0, 1),
            progress=lambda new, left: progress(len(new), left, sum(reply.tokens for reply in new)),
        )
    if args.part:
        print(f"{len(found)} of {len(contexts)} replies in {args.out}", file=sys.stderr)
        return None
    bootstrap = {"resamples": args.bootstrap, "seed": args.seed}
    if other is None:
        systems = {args.decode: model_measures.measure_model(bot, contexts, found, dialogues, **bootstrap)}
        differences = []
    else:
        names = (args.decode, os.path.basename(str(args.compare)))
        systems = {
            name: model_measures.measure_replies(contexts, answers, **bootstrap)
            for name, answers in ((names[0], found), (names[1], other))
        }
        differences = [compare(*pair) for pair in zip(*systems.values(), strict=True)]
    run = harness.describe_run(bot, contexts, settings)
    named = {name: getattr(args, name) for name in ("data", "decode", "compare", "bootstrap")}
    title = f"{len(contexts)} contexts of {len(dialogues)} dialogues, {run['sampling']}, seed {args.seed}"
    return tables.Table(title, systems, differences, {**named, **run})


def settings_of(args: argparse.Namespace) -> harness.Settings:
    """The settings that the flags name."""
    changes = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p")}
    changes = {name: value for name, value in changes.items() if value is not None}
    sampling = dataclasses.replace(harness.DECODINGS[args.decode], **changes)
    return harness.Settings(sampling, args.seed, args.max_new_tokens, args.batch_size)


def _replies_of(path: str, contexts: list[Context]) -> list[Reply]:
    """The replies of a file, found to be to these contexts."""
    os.stat(path)  # here, a file that is missing is an error
    found = read_replies(path)
    if sorted(found) != list(range(len(contexts))):
        raise ValueError(f"{path} has replies to {len(found)} contexts; --data and --contexts give {len(contexts)}")
    wrong = next((i for i, context in enumerate(contexts) if found[i].truth != context.truth), None)
    if wrong is not None:
        raise ValueError(f"{path} has replies to other contexts than --data and --contexts give (the first is {wrong})")
    return [found[i] for i in range(len(contexts))]


def positive(word: str) -> int:
    """An argument that is a whole number from 1."""
    value = count(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{word} is less than 1")
    return value


def count(word: str) -> int:
    """An argument that is a whole number from 0."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number ≥ 0")
    return int(word)


def _part(word: str) -> tuple[int, int]:
    first, slash, second = word.partition("/")
    if not slash or not 1 <= positive(first) <= positive(second):
        raise argparse.ArgumentTypeError(f"{word!r} is not I/N, a part from 1 to N")
    return int(first) - 1, int(second)
