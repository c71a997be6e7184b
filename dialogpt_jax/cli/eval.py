"""`dialogpt eval`: replies of files or of a model in; the paper's measures out, as a table or JSON."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.common import BeamFlags, ModelFlags, PenaltyAlpha, SamplingChanges
from dialogpt_jax.cli.draft_flags import DraftFlags
from dialogpt_jax.cli.eval_model import AskFlags, run_model
from dialogpt_jax.cli.flags import FILES, FROM_0, FROM_1, RESULTS, UsageError, make_app
from dialogpt_jax.cli.rank_flags import EvalRankFlags
from dialogpt_jax.errors import counted
from dialogpt_jax.evaluation import measures, reply_files, tables
from dialogpt_jax.evaluation.cleaning import clean
from dialogpt_jax.evaluation.intervals import Estimate, compare
from dialogpt_jax.evaluation.meteor import meteor
from dialogpt_jax.evaluation.settings import Settings

EXAMPLES = """\
A reference file with tabs holds all references of a line: `key ⇥ 12|reference ⇥ reference …`, the layout of the 6k test \
and of DSTC-7. Each measure comes with its 95 % interval: BLEU, NIST and the means by resampling lines, Ent and Dist by \
leaving out each line.

A model answers contexts cut from dialogues, and its replies are measured against the turns that really came. With --out \
they are written as they come; stopped, the same command goes on from there.

Examples:
  dialogpt eval --hypotheses replies.txt --references ref0.txt ref1.txt ref2.txt
  dialogpt eval --hypotheses a.txt --references refs.txt --compare b.txt
  dialogpt eval --data valid.jsonl.gz --contexts 6000 --out greedy.jsonl
  dialogpt eval --data valid.jsonl.gz --contexts 6000 --decode topk \\
      --out topk.jsonl --compare greedy.jsonl
  dialogpt eval --data valid.jsonl.gz --contexts 1000 --rank mmi --out mmi.jsonl
"""
app = make_app("eval", "dialogpt eval [OPTIONS]", help_epilogue=EXAMPLES)


def _human(_, tokens) -> int | None:
    word = tokens[0].value
    if word in ("last", "none"):
        return -1 if word == "last" else None
    if not word.isdecimal() or int(word) < 1:
        raise ValueError(f"{word!r} is no place from 1, `last` or `none`")
    return int(word) - 1


@Parameter(name="*", group=FILES)
@dataclasses.dataclass(frozen=True)
class FileFlags:
    """`--hypotheses` and `--compare` against `--references`."""

    hypotheses: Annotated[
        str | None,
        Parameter(metavar="FILE", help="replies, one a line; or `key ⇥ … ⇥ reply`, joined to the references by key"),
    ] = None
    references: Annotated[
        list[str] | None,
        Parameter(
            metavar="FILE",
            consume_multiple=1,
            help="one reference a line in each file (an empty line: none here), or one file with tabs (below). Without "
            "it: only what needs no reference",
        ),
    ] = None
    compare: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="a second system's replies, on the same lines; with --data, a file that --out wrote for the same contexts",
        ),
    ] = None
    human: Annotated[
        int | None,
        Parameter(
            metavar="PLACE",
            converter=_human,
            show_default=False,
            help="which reference of a file with tabs is the human reply, taken out for every system: `last` (default; "
            "the 6k test), its place from 1 (2 in DSTC-7), or `none`",
        ),
    ] = -1
    reference_sets: Annotated[
        int | None,
        FROM_1,
        Parameter(
            metavar="N",
            help="exactly N references a line, repeated from the first where there are fewer, as DSTC-7 does with N = 6 "
            "(NIST changes with repeated references); by default all, as many as each line has",
        ),
    ] = None
    keys: Annotated[
        str | None, Parameter(metavar="FILE", help="score only these keys of a reference file with tabs")
    ] = None
    raw: Annotated[
        bool,
        Parameter(
            help="the texts as they are (default): Ent, Dist and length count the words between spaces, case kept; this "
            "gives the published human row of the 6k test. BLEU and NIST split and lower-case by their own rules anyway"
        ),
    ] = False
    clean: Annotated[
        bool,
        Parameter(
            help="first clean replies and references as DSTC-7 does: lower case, `http…` to `__url__`, only letters, "
            "digits and ():,.!?\"' kept, signs apart, `don't` to `do n't`"
        ),
    ] = False
    meteor_jar: Annotated[str | None, Parameter(metavar="PATH", help="meteor-1.5.jar, for METEOR 1.5; needs Java")] = (
        None
    )


@Parameter(name="*", group=RESULTS)
@dataclasses.dataclass(frozen=True)
class ResultFlags:
    """How the numbers are made and shown."""

    bootstrap: Annotated[int, FROM_0, Parameter(metavar="N", help="resampled sets of lines; 0: no such intervals")] = (
        measures.RESAMPLES
    )
    seed: Annotated[int, FROM_0, Parameter(metavar="N", help="of the resampling, and of a model's draws")] = (
        Settings.seed
    )
    beside: Annotated[
        Literal[*tables.PUBLISHED] | None,  # type: ignore[valid-type]
        Parameter(metavar="ROW", help="a row of DialoGPT's tables as a column"),
    ] = None
    markdown: Annotated[bool, Parameter(help="a Markdown table")] = False
    json: Annotated[bool, Parameter(help="JSON, in full precision")] = False


@app.default
def run(
    *,
    files: FileFlags = FileFlags(),
    ask: AskFlags = AskFlags(),  # noqa: B008
    model: ModelFlags = ModelFlags(),  # noqa: B008
    sampling: SamplingChanges = SamplingChanges(),  # noqa: B008
    beams: BeamFlags = BeamFlags(),  # noqa: B008
    penalty_alpha: PenaltyAlpha = None,
    rank: EvalRankFlags = EvalRankFlags(),  # noqa: B008
    draft: DraftFlags = DraftFlags(),  # noqa: B008
    shown: ResultFlags = ResultFlags(),
) -> int:
    if (files.raw and files.clean) or (shown.markdown and shown.json):
        raise UsageError(f"give one of {'--raw and --clean' if files.raw else '--markdown and --json'}")
    if ask.data is None and files.hypotheses is None:
        raise ValueError(
            "nothing to measure: name a file of replies with --hypotheses FILE, or dialogues with --data FILE"
        )
    table: tables.Table | None
    if ask.data is None:
        wrong: dict[str, Any] = {
            "model": model.model,
            "contexts": ask.contexts,
            "out": ask.out,
            "part": ask.part,
            "rank": rank.by,
        }
        wrong |= {"penalty_alpha": penalty_alpha, "draft": draft.draft}
        _refuse(wrong, "needs --data")
        table = measure_files(files, shown)
    else:
        of_files = ("hypotheses", "references", "keys", "reference_sets", "meteor_jar")
        if rank.by is not None and files.hypotheses is not None:
            raise UsageError("--hypotheses names a file of replies; --rank-hypotheses N says how many are ranked")
        _refuse({name: getattr(files, name) for name in of_files}, "does not go with --data")
        if files.clean:
            raise ValueError("--clean does not go with --data; --out writes replies that can be cleaned")
        how: dict[str, Any] = {"penalty_alpha": penalty_alpha, "compared": files.compare}
        how |= {"resamples": shown.bootstrap, "seed": shown.seed}
        table = run_model(ask, model, sampling, beams, rank, draft, **how)
    if table is None:
        return 0
    if shown.json:
        streams.print_json(
            tables.as_json(table.systems, table.differences, beside=shown.beside, settings=table.settings)
        )
    elif shown.markdown:
        streams.show(tables.as_markdown(table.systems, table.differences, beside=shown.beside))
    else:
        streams.show(f"{table.title}\n")
        streams.show(tables.as_text(table.systems, table.differences, beside=shown.beside))
    return 0


def _refuse(flags: dict[str, Any], why: str) -> None:
    for name, value in flags.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} {why}")


def measure_files(files: FileFlags, shown: ResultFlags) -> tables.Table:
    """`--hypotheses` and `--compare` against `--references`."""
    if not files.references:
        _refuse({name: getattr(files, name) for name in ("keys", "reference_sets", "meteor_jar")}, "needs --references")
    references = files.references and reply_files.read_references(
        files.references, human=files.human, sets=files.reference_sets
    )
    keys = reply_files.read_texts(files.keys) if files.keys else None
    paths = [str(files.hypotheses), *([files.compare] if files.compare else [])]
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
                    f"{path} has {counted(len(texts), 'lines')}, {paths[0]} has {num}; compare the same lines"
                )
        num = len(texts)
        systems[name] = measure_texts(texts, wanted, files, shown)
    differences = [compare(*pair) for pair in zip(*systems.values(), strict=True)] if files.compare else []
    named = {name: getattr(files, name) for name in ("hypotheses", "compare", "references", "human", "reference_sets")}
    numbers = {"keys": files.keys, "bootstrap": shown.bootstrap, "seed": shown.seed}
    settings = {"lines": num, "words": "clean" if files.clean else "raw", **named, **numbers}
    return tables.Table(
        f"{counted(num, 'lines')}, {'cleaned' if files.clean else 'raw'}", systems, differences, settings
    )


def measure_texts(
    texts: Sequence[str], references: Sequence[Sequence[str]] | None, files: FileFlags, shown: ResultFlags
) -> list[Estimate]:
    """The measures of one system's texts, cleaned first if asked."""
    if files.clean:
        texts = [clean(text) for text in texts]
        references = references and [[clean(text) for text in line] for line in references]
    score = None
    if files.meteor_jar is not None and references:
        streams.tell("METEOR 1.5: running Java; a minute for some thousand lines")
        score = meteor(texts, references, jar=files.meteor_jar)
    return measures.measure(texts, references, resamples=shown.bootstrap, seed=shown.seed, meteor=score)
