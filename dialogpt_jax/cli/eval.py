"""The paper's measures, from files or from a model: NIST, BLEU, METEOR 1.5, Ent-n, Dist-n, length, repetition.

    dialogpt eval --hypotheses replies.txt --references ref0.txt ref1.txt ref2.txt
    dialogpt eval --hypotheses replies.txt --references test.refs.txt --compare other.txt

A reference file with tabs holds all references of a line: `key ⇥ 12|reference ⇥ reference …`, the layout of the 6k test
and of DSTC-7. Each measure comes with its 95 % interval: BLEU, NIST and the means by resampling lines, Ent and Dist by
leaving out each line.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from dialogpt_jax.evaluation import files, measures, tables
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
    from_files.add_argument("--compare", metavar="FILE", help="a second system's replies, on the same lines")
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
    shown = parser.add_argument_group("results")
    shown.add_argument(
        "--bootstrap",
        type=_count,
        default=measures.RESAMPLES,
        metavar="N",
        help="resampled sets of lines (default 1000; 0: no such intervals)",
    )
    shown.add_argument("--seed", type=_count, default=0, help="of the resampling (default 0)")
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
    if args.hypotheses is None:
        raise ValueError("nothing to measure: name a file of replies with --hypotheses FILE")
    return run_files(args)


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
    if args.json:
        shown = ("hypotheses", "compare", "references", "human", "reference_sets", "keys", "bootstrap", "seed")
        settings = {"lines": num, "words": "clean" if args.clean else "raw", **{k: getattr(args, k) for k in shown}}
        print(tables.as_json(systems, differences, beside=args.beside, settings=settings))
    elif args.markdown:
        print(tables.as_markdown(systems, differences, beside=args.beside))
    else:
        print(f"{num} lines, {'cleaned' if args.clean else 'raw'}\n")
        print(tables.as_text(systems, differences, beside=args.beside))
    return 0


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
