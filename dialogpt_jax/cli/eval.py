"""The paper's measures, from files or from a model: NIST, BLEU, METEOR 1.5, Ent-n, Dist-n, length, repetition.

    dialogpt eval --hypotheses replies.txt --references ref0.txt ref1.txt ref2.txt
    dialogpt eval --hypotheses replies.txt --references test.refs.txt --compare other.txt
    dialogpt eval --data valid.jsonl.gz --decode greedy --contexts 6000 --out greedy.jsonl
    dialogpt eval --data valid.jsonl.gz --decode topk --contexts 6000 --out topk.jsonl --compare greedy.jsonl

A reference file with tabs holds all references of a line: `key ⇥ 12|reference ⇥ reference …`, the layout of the 6k test
and of DSTC-7. Each measure comes with its 95 % interval: BLEU, NIST and the means by resampling lines, Ent and Dist by
leaving out each line.

A model answers contexts cut from dialogues, and its replies are measured against the turns that really came. With --out
they are written as they come; stopped, the same command goes on from there.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dialogpt_jax.cli.common import NO_CACHE_VARIABLE, load_bot
from dialogpt_jax.cli.progress import show_progress
from dialogpt_jax.data.formats import read_dialogues
from dialogpt_jax.evaluation import files, measures, replies, tables
from dialogpt_jax.evaluation.cleaning import clean
from dialogpt_jax.evaluation.contexts import cut
from dialogpt_jax.evaluation.intervals import Estimate, compare
from dialogpt_jax.evaluation.meteor import meteor

if TYPE_CHECKING:
    from dialogpt_jax.evaluation.harness import Settings

DECODINGS = ("greedy", "topk", "nucleus", "chat")  # those of `evaluation/harness.py`, which starts jax


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `dialogpt eval`."""
    from_files = parser.add_argument_group("from files")
    from_files.add_argument(
        "--hypotheses",
        metavar="FILE",
        help="replies, one a line; or `key ⇥ … ⇥ reply`, joined to the references by key",
    )
    from_files.add_argument(
        "--references",
        metavar="FILE",
        nargs="+",
        help="one reference a line in each file (an empty line: none here), or one file with tabs (above). Without it: "
        "only what needs no reference",
    )
    from_files.add_argument(
        "--compare",
        metavar="FILE",
        help="a second system's replies, on the same lines; with --data, a file that --out wrote for the same contexts",
    )
    from_files.add_argument(
        "--human",
        type=_human,
        default=-1,
        metavar="PLACE",
        help="which reference of a file with tabs is the human reply, taken out for every system: `last` (default; the "
        "6k test), its place from 1 (2 in DSTC-7), or `none`",
    )
    from_files.add_argument(
        "--reference-sets",
        type=_positive,
        metavar="N",
        help="exactly N references a line, repeated from the first where there are fewer, as DSTC-7 does with N = 6 "
        "(NIST changes with repeated references); by default all, as many as each line has",
    )
    from_files.add_argument("--keys", metavar="FILE", help="score only these keys of a reference file with tabs")
    words = from_files.add_mutually_exclusive_group()
    words.add_argument(
        "--raw",
        action="store_true",
        help="the texts as they are (default): Ent, Dist and length count the words between spaces, case kept; this "
        "gives the published human row of the 6k test. BLEU and NIST split and lower-case by their own rules anyway",
    )
    words.add_argument(
        "--clean",
        action="store_true",
        help="first clean replies and references as DSTC-7 does: lower case, `http…` to `__url__`, only letters, "
        "digits and ():,.!?\"' kept, signs apart, `don't` to `do n't`",
    )
    from_files.add_argument("--meteor-jar", metavar="PATH", help="meteor-1.5.jar, for METEOR 1.5; needs Java")
    _add_model_arguments(parser.add_argument_group("from a model"))
    shown = parser.add_argument_group("results")
    shown.add_argument(
        "--bootstrap",
        type=_count,
        default=measures.RESAMPLES,
        metavar="N",
        help="resampled sets of lines (default 1000; 0: no such intervals)",
    )
    shown.add_argument("--seed", type=_count, default=0, help="of the resampling, and of a model's draws (default 0)")
    shown.add_argument(
        "--beside",
        choices=tuple(tables.PUBLISHED),
        metavar="ROW",
        help=f"a row of DialoGPT's tables as a column: {', '.join(tables.PUBLISHED)}",
    )
    layout = shown.add_mutually_exclusive_group()
    layout.add_argument("--markdown", action="store_true", help="a Markdown table")
    layout.add_argument("--json", action="store_true", help="JSON, in full precision")


def _add_model_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--data", metavar="FILE", help='dialogues, one a line: {"turns": [text, …]}; .jsonl or .jsonl.gz'
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
        type=_positive,
        metavar="N",
        help="the first N: each dialogue cut before a drawn turn, then each before another … By default every turn after "
        "the first of its dialogue is replied to once",
    )
    group.add_argument(
        "--decode",
        choices=DECODINGS,
        default="greedy",
        help="the best token; top-k sampling (k 10, the paper's); nucleus sampling (p 0.9); what `dialogpt reply` does "
        "(temperature 0.7, k 50, p 0.9)",
    )
    group.add_argument("--temperature", type=float, metavar="T", help="another than that of --decode")
    group.add_argument("--top-k", type=_positive, metavar="K", help="another than that of --decode")
    group.add_argument("--top-p", type=float, metavar="P", help="another than that of --decode")
    group.add_argument("--max-new-tokens", type=_positive, default=40, metavar="N", help="the longest reply (40)")
    group.add_argument(
        "--batch-size", type=_positive, default=32, metavar="N", help="replies made together on each device (32)"
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
        help=f"do not keep compiled programs in the user's cache folder (also: {NO_CACHE_VARIABLE}=1)",
    )


def run(args: argparse.Namespace) -> int:
    """Measures, and prints the table."""
    if args.data is not None:
        return run_model(args)
    if args.hypotheses is None:
        raise ValueError(
            "nothing to measure: name a file of replies with --hypotheses FILE, or dialogues with --data FILE"
        )
    for needing in ("model", "out", "contexts", "part"):
        if getattr(args, needing) is not None:
            raise ValueError(f"--{needing} needs --data")
    return run_files(args)


def run_model(args: argparse.Namespace) -> int:
    """The replies of `--model` to contexts of `--data`, and their measures."""
    for other in ("hypotheses", "references", "keys", "reference_sets", "meteor_jar"):
        if getattr(args, other) is not None:
            raise ValueError(f"--{other.replace('_', '-')} does not go with --data")
    if args.clean:
        raise ValueError("--clean does not go with --data; --out writes replies that can be cleaned")
    if args.part and not args.out:
        raise ValueError("--part needs --out")
    dialogues = list(read_dialogues(args.data))
    contexts = cut(dialogues, args.contexts)
    if not contexts:
        raise ValueError(f"{args.data}: no dialogue has a second turn; there is nothing to reply to")
    other = _other_replies(args, len(contexts), [context.truth for context in contexts])
    from dialogpt_jax.evaluation import harness, of_model  # they start jax

    settings = settings_of(args)
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
        return 0
    bootstrap = {"resamples": args.bootstrap, "seed": args.seed}
    name = args.decode
    systems = {name: of_model.measure_replies(contexts, found, **bootstrap)}
    differences = []
    if other is not None:
        second = os.path.basename(args.compare)
        systems[second] = of_model.measure_replies(contexts, other, **bootstrap)
        differences = [compare(*pair) for pair in zip(*systems.values(), strict=True)]
    else:
        systems[name] += of_model.measure_predictions(bot, contexts, dialogues, **bootstrap)
    shown = {k: getattr(args, k) for k in ("model", "data", "decode", "compare", "bootstrap")}
    run = harness.describe_run(bot, contexts, settings)
    _print(
        systems,
        differences,
        args,
        settings={**shown, **run},
        line=f"{len(contexts)} contexts of {len(dialogues)} dialogues, {run['sampling']}, seed {args.seed}",
    )
    return 0


def settings_of(args: argparse.Namespace) -> "Settings":
    """The settings that the flags name."""
    from dialogpt_jax.evaluation.harness import DECODINGS, Settings

    changes = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p")}
    sampling = dataclasses.replace(DECODINGS[args.decode], **{k: v for k, v in changes.items() if v is not None})
    return Settings(sampling, args.seed, args.max_new_tokens, args.batch_size)


def _other_replies(args: argparse.Namespace, num: int, truths: list[str]) -> list[replies.Reply] | None:
    """The replies of `--compare`, found to be to the same contexts."""
    if args.compare is None:
        return None
    os.stat(args.compare)
    found = replies.read_replies(args.compare)
    missing = next((i for i in range(num) if i not in found), None)
    if missing is not None or len(found) != num:
        raise ValueError(f"{args.compare} has replies to {len(found)} contexts; {args.data} gives {num}")
    wrong = next((i for i in range(num) if found[i].truth != truths[i]), None)
    if wrong is not None:
        raise ValueError(f"{args.compare} has the replies to other contexts than {args.data} gives (context {wrong})")
    return [found[i] for i in range(num)]


def run_files(args: argparse.Namespace) -> int:
    """`--hypotheses` and `--compare` against `--references`."""
    for needing in ("keys", "reference_sets", "meteor_jar"):
        if getattr(args, needing) is not None and not args.references:
            raise ValueError(f"--{needing.replace('_', '-')} needs --references")
    references = args.references and files.read_references(args.references, human=args.human, sets=args.reference_sets)
    keys = args.keys and files.read_lines(args.keys)
    paths = [args.hypotheses, *([args.compare] if args.compare else [])]
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path} ({i + 1})" for i, path in enumerate(paths)]
    systems: dict[str, list[Estimate]] = {}
    num = 0
    for name, path in zip(names, paths, strict=True):
        hypotheses = files.read_hypotheses(path)
        if references:
            texts, wanted = files.align(hypotheses, references, keys=keys)
        else:
            texts, wanted = hypotheses.texts, None
            if systems and len(texts) != num:
                raise files.TextFileError(
                    f"{path} has {len(texts)} lines, {paths[0]} has {num}; compare the same lines"
                )
        num = len(texts)
        systems[name] = measure_files(texts, wanted, args)
    differences = [compare(*pair) for pair in zip(*systems.values(), strict=True)] if args.compare else []
    shown = ("hypotheses", "compare", "references", "human", "reference_sets", "keys", "bootstrap", "seed")
    settings = {"lines": num, "words": "clean" if args.clean else "raw", **{k: getattr(args, k) for k in shown}}
    line = f"{num} lines, {'cleaned' if args.clean else 'raw'}"
    _print(systems, differences, args, settings=settings, line=line)
    return 0


def _print(systems, differences, args: argparse.Namespace, *, settings: dict, line: str) -> None:
    if args.json:
        print(tables.as_json(systems, differences, beside=args.beside, settings=settings))
    elif args.markdown:
        print(tables.as_markdown(systems, differences, beside=args.beside))
    else:
        print(f"{line}\n")
        print(tables.as_text(systems, differences, beside=args.beside))


def measure_files(
    texts: Sequence[str], references: Sequence[Sequence[str]] | None, args: argparse.Namespace
) -> list[Estimate]:
    """The measures of one system's texts, cleaned first if asked."""
    if args.clean:
        texts = [clean(text) for text in texts]
        references = references and [[clean(text) for text in line] for line in references]
    score = None
    if args.meteor_jar is not None and references:
        print("METEOR 1.5: running Java; a minute for some thousand lines", file=sys.stderr)
        score = meteor(texts, references, jar=args.meteor_jar)
    return measures.measure(texts, references, resamples=args.bootstrap, seed=args.seed, meteor=score)


def _human(word: str) -> int | None:
    if word in ("last", "none"):
        return -1 if word == "last" else None
    return _positive(word) - 1


def _positive(word: str) -> int:
    value = _count(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{word} is less than 1")
    return value


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number ≥ 0")
    return int(word)


def _part(word: str) -> tuple[int, int]:
    first, slash, second = word.partition("/")
    if not slash or not 1 <= _positive(first) <= _positive(second):
        raise argparse.ArgumentTypeError(f"{word!r} is not I/N, a part from 1 to N")
    return int(first) - 1, int(second)
