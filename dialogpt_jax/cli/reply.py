"""`dialogpt reply`: a dialogue in, one reply or several out."""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.common import (
    BeamFlags,
    Block,
    ModelFlags,
    PenaltyAlpha,
    ReplyFlags,
    SamplingFlags,
    beams_of,
    contrastive_of,
    greedy_of,
    load_bot,
    sampling_of,
    seed_of,
)
from dialogpt_jax.cli.compiling import tell_of_compiling
from dialogpt_jax.cli.draft_flags import DraftFlags, acceptance, drafts_of
from dialogpt_jax.cli.flags import HYPHEN, WHOLE, UsageError, make_app
from dialogpt_jax.cli.rank_flags import RankFlags, rank_of
from dialogpt_jax.errors import counted, naming
from dialogpt_jax.evaluation.settings import Settings
from dialogpt_jax.replies.settings import sampling_for, seed_or_drawn
from dialogpt_jax.text.dialogue import as_turns
from dialogpt_jax.text.lines import written_lines

if TYPE_CHECKING:
    from dialogpt_jax.chat.bot import Bot

EXAMPLES = """\
Examples:
  dialogpt reply "Does money buy happiness?"
  dialogpt reply "Hi!" "Hello." "Any plans?"    three turns; replies to the last
  echo "Hi!" | dialogpt reply -                 turns from a pipe, one a line
  dialogpt reply --json --candidates 4 "Hi!"    everything, for a program
  dialogpt reply --beams 4 "Hi!"                the best of a beam search
  dialogpt reply --penalty-alpha 0.6 "Hi!"      contrastive search
  dialogpt reply --rank mmi --explain "Hi!"     the best of 16, and why
  dialogpt reply --draft lookup --json "Hi!"    sooner; and how much
  dialogpt reply --data talk.jsonl > out.jsonl  a reply to each line
  dialogpt reply -- "-_-"                       a turn that begins with a hyphen
"""
app = make_app("reply", "dialogpt reply [OPTIONS] TEXT... | --data FILE", help_epilogue=EXAMPLES)


@app.default
def run(
    *turns: Annotated[str, Parameter(name="TEXT", help="a turn of the dialogue; `-` reads them, one a line")],
    candidates: Annotated[int | None, WHOLE, Parameter(metavar="N", help="so many replies (the one)")] = None,
    data: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="reply to the last turn of each line of a file, in a form that `dialogpt data check --help` shows; a "
            "prompt alone will do. A line for each, in their order: so a line that is no dialogue stops it, before "
            "anything is written",
        ),
    ] = None,
    out: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="with --data: the lines into a file, as they come; goes on where it stopped; one process at a time",
        ),
    ] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", help="one JSON object: turns, seed, and each reply's figures")
    ] = False,
    explain: Annotated[
        bool, Parameter(help="with --rank: a table of all that were proposed, why the first won and the others did not")
    ] = False,
    plot: Annotated[
        str | None,
        Parameter(metavar="FILE.png", help="with --rank: a picture, forward against backward; needs matplotlib"),
    ] = None,
    block: Block = None,
    model: ModelFlags = ModelFlags(),  # noqa: B008  (frozen)
    reply: ReplyFlags = ReplyFlags(),  # noqa: B008
    sampling: SamplingFlags = SamplingFlags(),  # noqa: B008
    beams: BeamFlags = BeamFlags(),  # noqa: B008
    penalty_alpha: PenaltyAlpha = None,
    rank: RankFlags = RankFlags(),  # noqa: B008
    draft: DraftFlags = DraftFlags(),  # noqa: B008
) -> int:
    named = (data, out, plot, block, model.model, model.revision, reply.seed, rank.reverse, rank.ranker, draft.draft)
    if HYPHEN in named:
        raise UsageError("`-` stands for turns from standard input, and for nothing else")
    searched = beams_of(beams)
    ranked = rank_of(rank, searched)
    drafts = drafts_of(draft, {"--beams": searched, "--rank": ranked, "--penalty-alpha": penalty_alpha})
