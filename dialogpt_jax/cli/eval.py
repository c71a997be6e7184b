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
import os
import sys
from collections.abc import Sequence

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.eval_model import add_model_arguments, count, positive, run_model
from dialogpt_jax.evaluation import measures, reply_files, tables
from dialogpt_jax.evaluation.cleaning import clean
from dialogpt_jax.evaluation.intervals import Estimate, compare
from dialogpt_jax.evaluation.meteor import meteor


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
        type=positive,
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
    add_model_arguments(parser.add_argument_group("from a model"))
    shown = parser.add_argument_group("results")
    shown.add_argument(
        "--bootstrap",
        type=count,
        default=measures.RESAMPLES,
        metavar="N",
        help="resampled sets of lines (default 1000; 0: no such intervals)",
    )
    shown.add_argument("--seed", type=count, default=0, help="of the resampling, and of a model's draws (default 0)")
    shown.add_argument(
        "--beside",
        choices=tuple(tables.PUBLISHED),
        metavar="ROW",
        help=f"a row of DialoGPT's tables as a column: {', '.join(tables.PUBLISHED)}",
    )
    layout = shown.add_mutually_exclusive_group()
    layout.add_argument("--markdown", action="store_true", help="a Markdown table")
    layout.add_argument("--json", action="store_true", help="JSON, in full precision")


def run(args: argparse.Namespace) -> int:
    """Measures, and prints the table."""
    if args.data is None and args.hypotheses is None:
        raise ValueError(
            "nothing to measure: name a file of replies with --hypotheses FILE, or dialogues with --data FILE"
        )
    table = run_files(args) if args.data is None else run_model(args)
    if table is None:
        return 0
    if args.json:
        streams.print_json(
            tables.as_json(table.systems, table.differences, beside=args.beside, settings=table.settings)
        )
    elif args.markdown:
        streams.show(tables.as_markdown(table.systems, table.differences, beside=args.beside))
    else:
        streams.show(f"{table.title}\n")
        streams.show(tables.as_text(table.systems, table.differences, beside=args.beside))
    return 0


def run_files(args: argparse.Namespace) -> tables.Table:
    """`--hypotheses` and `--compare` against `--references`."""
    for other in ("model", "contexts", "out", "part"):
        if getattr(args, other) is not None:
            raise ValueError(f"--{other} needs --data")
    for needing in ("keys", "reference_sets", "meteor_jar"):
        if getattr(args, needing) is not None and not args.references:
            raise ValueError(f"--{needing.replace('_', '-')} needs --references")
    references = args.references and reply_files.read_references(
        args.references, human=args.human, sets=args.reference_sets
    )
    keys = args.keys and reply_files.read_texts(args.keys)
    paths = [args.hypotheses, *([args.compare] if args.compare else [])]
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path} ({i + 1})" for i, path in enumerate(paths)]
    systems: dict[str, list[Estimate]] = {}
    num = 0
    for name, path in zip(names, paths, strict=True):
        hypotheses = reply_files.read_hypotheses(path)
        if references:
            texts, wanted = reply_files.align(hypotheses, references, keys=keys)
        else:
            texts, wanted = hypotheses.texts, None
            if systems and len(texts) != num:
                raise reply_files.TextFileError(
                    f"{path} has {len(texts)} lines, {paths[0]} has {num}; compare the same lines"
                )
        num = len(texts)
        systems[name] = measure_files(texts, wanted, args)
    differences = [compare(*pair) for pair in zip(*systems.values(), strict=True)] if args.compare else []
    shown = ("hypotheses", "compare", "references", "human", "reference_sets", "keys", "bootstrap", "seed")
    settings = {"lines": num, "words": "clean" if args.clean else "raw", **{k: getattr(args, k) for k in shown}}
    return tables.Table(f"{num} lines, {'cleaned' if args.clean else 'raw'}", systems, differences, settings)


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
    return positive(word) - 1
