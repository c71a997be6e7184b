"""`dialogpt reply`: a dialogue in, one reply or several out."""

import dataclasses
import importlib.util
import json
import os
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
from dialogpt_jax.cli.rank_flags import RankFlags, rank_by_default, rank_of, rank_unsaid
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
  dialogpt reply --rank sense --explain "Hi!"   the best of 16, and why
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
    contrastive = contrastive_of(penalty_alpha, sampling, searched, ranked)
    settings = (
        sampling_of(sampling, sampling_for(None, searched, ranked)) if contrastive is None else greedy_of(sampling)
    )
    if data is not None:
        if turns or candidates is not None or as_json or explain or plot is not None or block is not None:
            raise UsageError("--data takes the texts from the file and gives JSON lines; leave the others out")
        asked = Settings(
            settings,
            seed_or_drawn(seed_of(reply.seed)),
            reply.max_new_tokens,
            beams=searched,
            rank=ranked,
            contrastive=contrastive,
        )
        return _reply_to_file(data, out, asked, lambda: load_bot(model, rank, drafts=drafts))
    if ranked is None and (explain or plot is not None):
        raise UsageError(f"{'--explain' if explain else '--plot'} goes with --rank RULE, such as --rank sense")
    if ranked is not None and candidates is not None:
        raise UsageError("--candidates goes without --rank; --hypotheses N says how many, --explain shows them")
    if block is not None and ranked is None and (candidates is not None or as_json):
        raise UsageError("--block gives one reply; with --rank, --json and --explain show what was kept back")
    if contrastive is not None and (candidates is not None or as_json):
        raise UsageError("--penalty-alpha gives one reply, as text; with --data FILE, JSON lines")
    if explain and as_json:
        raise UsageError("--json has all that --explain shows; give one of them")
    if out is not None:
        raise UsageError("--out goes with --data FILE")
    if not turns:
        raise UsageError("no text to reply to; give a turn, or `-` to read turns from standard input")
    said = list(written_lines(sys.stdin)) if turns == (HYPHEN,) else [turn.replace(HYPHEN, "-") for turn in turns]
    # What can be found wrong without a model is, before one is loaded.
    dialogue, seed = as_turns(said), seed_or_drawn(seed_of(reply.seed))
    if plot is not None:
        _check_plot(plot)
    tell_of_compiling()
    bot = load_bot(model, rank, block, drafts, one_reply=True)
    if not as_json and rank_unsaid(rank, searched, draft.draft, contrastive, candidates):
        ranked = rank_by_default(bot)
        settings = sampling_of(sampling, sampling_for(None, None, ranked))
    if ranked is not None:
        how: dict[str, Any] = {"sampling": settings, "seed": seed, "max_new_tokens": reply.max_new_tokens}
        [ranking] = bot.rankings([dialogue], ranked, everything=explain or as_json or plot is not None, **how)
        return _show_ranking(ranking, seed, explain=explain, as_json=as_json, plot=plot)
    number = 1 if candidates is None else candidates  # the first of any number is the reply
    how = {} if searched is None else dataclasses.asdict(searched)
    if contrastive is not None:
        how = dataclasses.asdict(contrastive)
    if block is not None or contrastive is not None:
        how |= {"sampling": settings, "seed": seed, "max_new_tokens": reply.max_new_tokens}
        streams.show(bot.reply(dialogue, **how))
        return 0
    found = bot.candidates(dialogue, n=number, sampling=settings, seed=seed, max_new_tokens=reply.max_new_tokens, **how)
    if as_json:
        streams.print_json(_everything(dialogue, seed, found))
    else:
        streams.show("\n".join(candidate.text for candidate in found))
    return 0


def _show_ranking(found, seed: int, *, explain: bool, as_json: bool, plot: str | None) -> int:
    if plot is not None:
        found.plot(plot)
    if as_json:
        streams.print_json(json.dumps({"seed": seed} | found.to_dict(), ensure_ascii=False))
    elif explain:
        from dialogpt_jax.ranking.table import print_ranking

        with naming(streams.OUTPUT):
            print_ranking(found)
    else:
        streams.show(found.reply)
    return 0


def _check_plot(path: str) -> None:
    """What would keep a picture from being written, found before anything is computed."""
    if not path.lower().endswith(".png"):
        raise UsageError(f"--plot is {path}; name a file that ends in .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib; `pip install matplotlib`, or leave --plot out")


def _reply_to_file(data: str, out: str | None, settings: Settings, load: "Callable[[], Bot]") -> int:
    from dialogpt_jax.cli.progress import show_progress  # which one reply does without
    from dialogpt_jax.data.formats import dialogues_to_reply_to
    from dialogpt_jax.evaluation import harness
    from dialogpt_jax.evaluation.contexts import Context
    from dialogpt_jax.evaluation.replies import DialogueFile

    dialogues, told = dialogues_to_reply_to(data)
    if out is not None and os.path.exists(out) and os.path.samefile(data, out):
        raise UsageError(f"--out is {out}, the file of --data; name another, for the replies")
    if told:
        streams.tell(f"dialogpt reply: {told}")
    contexts = [Context(turns, "", number) for number, turns in enumerate(dialogues)]
    bot = load()
    with show_progress("replies", "tokens") as progress:
        found = harness.answer(
            bot,
            contexts,
            settings,
            out=out,
            layout=DialogueFile,
            progress=lambda new, left: progress(len(new), left, sum(each.tokens for each in new)),
        )
    if out is not None:
        streams.tell(f"{counted(len(found), 'replies')} in {out}")
        return 0
    shown = DialogueFile("", harness.describe_run(bot, contexts, settings), contexts)
    for each in found:
        streams.print_json(shown.line(each).rstrip("\n"))
    return 0


def _everything(turns, seed: int, found) -> str:
    replies = [
        {
            "text": c.text,
            "tokens": c.tokens.tolist(),
            "logprobs": [round(float(p), 6) for p in c.logprobs],
            "logprob": round(c.logprob, 6),
            "finished": c.finished,
            **acceptance([c]),
        }
        for c in found
    ]
    whole = {"turns": turns, "seed": seed, "reply": found[0].text, "candidates": replies}
    return json.dumps(whole, ensure_ascii=False)
