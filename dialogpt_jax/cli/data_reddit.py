"""`dialogpt data reddit`: dumps of Reddit in; the paper's corpus of them, and what was skipped and why, out."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.flags import FROM_1, WHAT, UsageError, default_of, flags_of, make_app, said
from dialogpt_jax.cli.progress import show_progress
from dialogpt_jax.data.reddit import TERMS
from dialogpt_jax.data.reddit.extract import MEMORY, extract
from dialogpt_jax.data.reddit.lists import read_leave_out, read_subreddits, read_words
from dialogpt_jax.data.reddit.rules import QUIRKS, RULES, Rules
from dialogpt_jax.data.reddit.statistics import as_text, save_plot
from dialogpt_jax.data.reddit.threads import LeaveOut
from dialogpt_jax.errors import counted, naming

MORE = f"""\
A dump has a comment or a submission a line, as JSON: .zst (pip install 'dialogpt-jax[reddit]'), .gz, .bz2, .xz or plain. \
Threads may cross dumps. DIR gets dialogues-….jsonl (or .tsv), which `data check`, `data prepare` and `train` read, \
statistics.txt, .json and .png, and problems.jsonl, which names each line that could not be read. What is unfinished is in \
DIR/unfinished, somewhat smaller than the dumps' text; the same command goes on with it, and it goes away at the end.

Terms:
{TERMS}
Rules, in their order:
{chr(10).join(f"  {name:16} {why}" for name, why in RULES.items())}

Quirks of the reference script, `as it is | as it is fixed here`:
{chr(10).join(f"  {name:16} {what}" for name, what in QUIRKS.items())}

Examples:
  dialogpt data reddit RS_2012-*.zst RC_2012-*.zst DIR
  dialogpt data reddit RC_2012-*.zst DIR --offensive words.txt \\
      --subreddits bad.txt --leave-out deleted.txt
  dialogpt data reddit RC_2012-*.zst DIR --faithful all --form tsv
                                         as microsoft/DialoGPT's reddit.py
  dialogpt train --data DIR/dialogues-00000-of-00001.jsonl …
"""
app = make_app(
    "reddit",
    "dialogpt data reddit [OPTIONS] DUMP... DIR",
    help="Rebuild the paper's corpus from dumps of Reddit, in bounded memory; resumed by the same command.",
    help_epilogue=MORE,
)
FORM: Literal["jsonl", "tsv"] = default_of(extract, "form")
LISTS = ("offensive", "subreddits", "common_words", "faithful", "without")
if TYPE_CHECKING:

    class RuleFlags(Any): ...
else:
    RuleFlags = flags_of(Rules, WHAT, without=LISTS)


@app.default
def run(
    *dumps_and_folder: Annotated[
        str, Parameter(name="DUMP DIR", help="files of comments and submissions; the folder to write comes last")
    ],
    rules: RuleFlags = RuleFlags(),  # noqa: B008  (frozen)
    offensive: Annotated[
        str | None, Parameter(metavar="FILE", help="words and phrases, one a line; none ships")
    ] = None,
    subreddits: Annotated[
        str | None, Parameter(metavar="FILE", help="subreddits that are left out, one a line")
    ] = None,
    common_words: Annotated[
        str | None, Parameter(metavar="FILE", help="the commonest words, one a line (fifty of English)")
    ] = None,
    leave_out: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="what its authors want deleted, one a line: t1_… a comment, t3_… a whole thread, u/… an author",
        ),
    ] = None,
    faithful: Annotated[
        str, Parameter(metavar="QUIRK,…", help="these quirks as the reference script has them (`all`: every one)")
    ] = "",
    without: Annotated[str, Parameter(metavar="RULE,…", help="do not ask these rules")] = "",
    form: Annotated[
        Literal["jsonl", "tsv"],
        Parameter(metavar="FORM", help="jsonl, with ids, subreddit and month of each dialogue; or Microsoft's tsv"),
    ] = FORM,
    workers: Annotated[
        int | None, FROM_1, Parameter(metavar="N", help="processes (as many as there are cores)")
    ] = None,
    memory: Annotated[int, FROM_1, Parameter(metavar="MB", help="of records that each process may hold")] = MEMORY
    // 2**20,
    force: Annotated[bool, Parameter(help="replace a corpus of other dumps or rules that is at DIR")] = False,
) -> int:
    if len(dumps_and_folder) < 2:
        raise UsageError("name the dumps, and behind them the folder DIR to write")
    *dumps, folder = dumps_and_folder
    lists = {"offensive": offensive, "subreddits": subreddits, "common_words": common_words}
    readers: dict[str, Any] = {"offensive": read_words, "subreddits": read_subreddits, "common_words": read_words}
    chosen = Rules(
        **said(rules),
        **{name: readers[name](path) for name, path in lists.items() if path is not None},
        faithful=frozenset(QUIRKS) if faithful == "all" else _names(faithful),
        without=_names(without),
    )
    try:
        statistics = extract(
            dumps,
            folder,
            chosen,
            leave_out=LeaveOut() if leave_out is None else read_leave_out(leave_out),
            form=form,
            workers=workers,
            memory=memory * 2**20,
            replace=force,
            show=show_progress,
        )
    except (KeyboardInterrupt, SystemExit):
        streams.tell(f"{folder}: stopped; the same command goes on from there")
        raise
    picture = Path(folder) / "statistics.png"
    if importlib.util.find_spec("matplotlib") and not picture.exists():
        with naming(picture):
            save_plot(statistics, picture)
    streams.show("\n".join(as_text(statistics)))
    for kind, (count, first) in statistics.problems.items():
        file, line, reason = first[0]
        streams.tell(f"{counted(count, 'lines')} not read, {kind}: the first is {file}, line {line}: {reason}")
    counts = statistics.counts
    if not counts["comments"]:
        raise ValueError(
            f"{folder}: no comment stands in {counted(counts['lines'], 'lines')} "
            f"({counted(counts['submissions'], 'submissions')}, {counts['problems']:,} that are neither); "
            "name the dumps of comments, RC_…, too"
        )
    if not counts["dialogues"]:
        raise ValueError(
            f"{folder}: no dialogue is left of {counted(counts['lines'], 'lines')}; the table says which rule skipped them"
        )
    broken = [
        f"{file}, line {line}"
        for kind, (_, first) in statistics.problems.items()
        for file, line, _ in first
        if kind.startswith("broken ")
    ]
    if broken:  # the corpus is there, but it is not of all that it seems to be of
        raise ValueError(
            f"{folder}: made of what stands before the break of {', '.join(broken)}; get these dumps whole"
        )
    streams.show(f"wrote {folder}: {counted(counts['dialogues'], 'dialogues')}")
    return 0


def _names(words: str) -> frozenset[str]:
    return frozenset(word.strip() for word in words.split(",") if word.strip())
