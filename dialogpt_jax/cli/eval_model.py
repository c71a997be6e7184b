"""The half of `dialogpt eval` that asks a model: its flags in, replies and a table's numbers out."""

import dataclasses
import os
import sys
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.common import ModelFlags, beams_of, contrastive_of, greedy_of, load_bot, sampling_of
from dialogpt_jax.cli.draft_flags import DraftFlags, acceptance, drafts_of
from dialogpt_jax.cli.flags import ASK, FROM_1, WHOLE, UsageError
from dialogpt_jax.cli.progress import show_progress
from dialogpt_jax.cli.rank_flags import rank_of
from dialogpt_jax.data.formats import held_out
from dialogpt_jax.decoding.beam_options import describe_beams
from dialogpt_jax.decoding.contrastive_options import describe_contrastive
from dialogpt_jax.errors import counted
from dialogpt_jax.evaluation import settings, tables
from dialogpt_jax.evaluation.contexts import Context, cut
from dialogpt_jax.evaluation.intervals import compare
from dialogpt_jax.evaluation.replies import Reply, read_replies
from dialogpt_jax.ranking.rank_options import describe_rank


def _part(_: Any, tokens: Any) -> tuple[int, int]:
    word = tokens[0].value
    first, slash, second = word.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise ValueError(f"{word!r} is not I/N, a part from 1 to N")
    return int(first) - 1, int(second)


@Parameter(name="*", group=ASK)
@dataclasses.dataclass(frozen=True)
class AskFlags:
    """What a model is asked, and how its replies are drawn and kept."""

    data: Annotated[
        str | None,
        Parameter(metavar="FILE", help="dialogues, in any form that training reads: see `dialogpt data check --help`"),
    ] = None
    contexts: Annotated[
        int | None,
        FROM_1,
        Parameter(
            metavar="N",
            help="the first N, or all there are: each dialogue cut before a drawn turn, then each before another … By "
            "default every turn after the first of its dialogue is replied to once",
        ),
    ] = None
    decode: Annotated[
        Literal[*settings.DECODINGS] | None,  # type: ignore[valid-type]
        Parameter(
            metavar="HOW",
            help="the best token; top-k sampling (k 10, the paper's); nucleus sampling (p 0.9); what `dialogpt reply` does "
            f"({settings.DEFAULT_DECODING}; with --rank {settings.RANKED_DECODING})",
        ),
    ] = None
    max_new_tokens: Annotated[int, WHOLE, Parameter(metavar="N", help="the longest reply, in tokens")] = (
        settings.Settings.max_new_tokens
    )
    batch_size: Annotated[int, FROM_1, Parameter(metavar="N", help="replies made together on each device")] = (
        settings.ROWS
    )
    out: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="JSON lines: every reply with its context's number, seed, log-probability and whether it ended; goes on "
            "where it stopped",
        ),
    ] = None
    part: Annotated[
        tuple[int, int] | None,
        Parameter(
            metavar="I/N",
            converter=_part,
            n_tokens=1,
            accepts_keys=False,
            help="only the I-th of N parts (from 1), without measures: one process of several, each with its --out. Put "
            "one behind the other (cat), their files are the --out that the command without --part takes up",
        ),
    ] = None


def run_model(
    ask: AskFlags,
    model: ModelFlags,
    sampling: Any,
    beams: Any,
    rank: Any,
    draft: DraftFlags,
    *,
    penalty_alpha: float | None,
    compared: str | None,
    resamples: int,
    seed: int,
) -> tables.Table | None:
    """The replies of a model to contexts of `--data`, and their measures; none of one `--part`."""
    from dialogpt_jax.evaluation import harness, model_measures

    if ask.part and not ask.out:
        raise ValueError("--part needs --out")
    searched = beams_of(beams)
    ranked = rank_of(rank, searched)
    drafts = drafts_of(draft, {"--beams": searched, "--rank": ranked, "--penalty-alpha": penalty_alpha})
    contrastive = contrastive_of(penalty_alpha, sampling, searched, ranked)
    decode = ask.decode or (settings.DEFAULT_DECODING if ranked is None else settings.RANKED_DECODING)
    if contrastive is not None and ask.decode not in (None, "greedy"):
        raise UsageError(f"--penalty-alpha draws nothing; leave --decode {ask.decode} out")
    drawn = sampling_of(sampling, settings.DECODINGS[decode]) if contrastive is None else greedy_of(sampling)
    asked = settings.Settings(drawn, seed, ask.max_new_tokens, ask.batch_size, searched, ranked, contrastive)
    dialogues, dropped = held_out(str(ask.data))
    if dropped:
        streams.tell(dropped)
    contexts = cut(dialogues, ask.contexts)
    if not contexts:
        raise ValueError(f"{ask.data}: no dialogue has a second turn; there is nothing to reply to")
    if ask.contexts is not None and len(contexts) < ask.contexts:
        held = counted(len(contexts), "contexts")
        streams.tell(f"{ask.data}: {held}, not the {ask.contexts:,} asked for; all of them are taken")
    other = None if compared is None else _replies_of(compared, contexts)
    bot = load_bot(model, rank, drafts=drafts)
    with show_progress("replies", "tokens") as progress:
        found = harness.answer(
            bot,
            contexts,
            asked,
            out=ask.out,
            part=ask.part or (0, 1),
            progress=lambda new, left: progress(len(new), left, sum(reply.tokens for reply in new)),
        )
    if ask.part:
        streams.tell(f"{len(found):,} of {counted(len(contexts), 'replies')} in {ask.out}")
        return None
    if sys.stderr is not None and sys.stderr.isatty():  # who sees the bar end
        streams.tell(
            "measuring the replies …" if other is not None else "measuring the replies, and the model on the data …"
        )
    bootstrap = {"resamples": resamples, "seed": seed}
    name = "contrastive" if contrastive is not None else decode if ranked is None else ranked.rule
    if other is None:
        systems = {name: model_measures.measure_model(bot, contexts, found, dialogues, **bootstrap)}
        differences = []
    else:
        names = (name, os.path.basename(str(compared)))
        systems = {
            name: model_measures.measure_replies(contexts, answers, **bootstrap)
            for name, answers in ((names[0], found), (names[1], other))
        }
        differences = [compare(*pair) for pair in zip(*systems.values(), strict=True)]
    run = harness.describe_run(bot, contexts, asked)
    named = {"data": ask.data, "decode": decode, "compare": compared, "bootstrap": resamples}
    asked_of = f"{counted(len(contexts), 'contexts')} of {counted(len(dialogues), 'dialogues')}"
    how = "" if searched is None else f", {describe_beams(searched)}"
    if contrastive is not None:
        how = f", {describe_contrastive(contrastive)}"
    if ranked is not None:
        how = f", {describe_rank(ranked)}"
    accepted = acceptance(found)
    if accepted:
        how = f", {accepted['tokens_a_forward']:.2f} tokens a forward"
    title = f"{asked_of}, {run['sampling']}{how}, seed {seed}"
    return tables.Table(title, systems, differences, {**named, **run, **accepted})


def _replies_of(path: str, contexts: list[Context]) -> list[Reply]:
    """The replies of a file, found to be to these contexts."""
    os.stat(path)  # here, a file that is missing is an error
    found = read_replies(path)
    if sorted(found) != list(range(len(contexts))):
        raise ValueError(
            f"{path} has replies to {counted(len(found), 'contexts')}; --data and --contexts give {len(contexts)}"
        )
    wrong = next((i for i, context in enumerate(contexts) if found[i].truth != context.truth), None)
    if wrong is not None:
        raise ValueError(f"{path} has replies to other contexts than --data and --contexts give (the first is {wrong})")
    return [found[i] for i in range(len(contexts))]
