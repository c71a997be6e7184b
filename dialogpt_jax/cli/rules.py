"""`dialogpt rules`: dialogues in; the rules that choose a reply, side by side on the same draws, out."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dialogpt_jax.cli import streams
from dialogpt_jax.cli.common import ModelFlags, SamplingChanges, load_bot, sampling_of
from dialogpt_jax.cli.flags import ASK, FROM_0, FROM_1, RANK, RESULTS, WHOLE, UsageError, make_app
from dialogpt_jax.cli.progress import show_progress
from dialogpt_jax.cli.rank_flags import ModelsThatRank
from dialogpt_jax.data.formats import held_out
from dialogpt_jax.errors import counted
from dialogpt_jax.evaluation import measures, settings
from dialogpt_jax.evaluation.contexts import cut
from dialogpt_jax.ranking.rank_options import Rank

EXAMPLES = """\
A model proposes several replies to each context, once. Each rule of --rank then chooses among the same ones, and what it \
chose is measured against the turn that really came: beside `none`, which takes the first, with 95 % intervals of both \
values and differences (the same contexts are drawn again, or left out, for both). `anti-LM` draws its own.

  ten commonest   of the replies: equal to one of the ten given most often
  hits@1          how often a rule likes the true turn better than nine of
                  other dialogues; `none` by log P(reply | context)

Draws and scores are kept in --out. Stopped, the same command goes on; done, it only measures.

Examples:
  dialogpt rules --data valid.jsonl.gz --contexts 1000 --out rules
  dialogpt rules --data valid.jsonl.gz --decode chat --out rules-chat
  dialogpt rules --data talk.jsonl --model MINE --reverse MY_REVERSE --out mine
"""
app = make_app("rules", "dialogpt rules --data FILE --out FOLDER [OPTIONS]", help_epilogue=EXAMPLES)


@Parameter(name="*", group=ASK)
@dataclasses.dataclass(frozen=True)
class AskFlags:
    """What is replied to, and how replies are proposed and kept."""

    data: Annotated[
        str, Parameter(metavar="FILE", help="dialogues, in any form that `dialogpt data check --help` shows")
    ]
    out: Annotated[
        str, Parameter(metavar="FOLDER", help="what was drawn and scored, as JSON lines; goes on where it stopped")
    ]
    contexts: Annotated[
        int | None, FROM_1, Parameter(metavar="N", help="the first N, as `dialogpt eval` cuts them; all by default")
    ] = None
    decode: Annotated[
        Literal[*settings.DECODINGS],  # type: ignore[valid-type]
        Parameter(metavar="HOW", help="how replies are proposed, as in `dialogpt eval`"),
    ] = settings.RANKED_DECODING
    hypotheses: Annotated[int, FROM_1, Parameter(metavar="N", help="so many to each context")] = Rank.hypotheses
    max_new_tokens: Annotated[int, WHOLE, Parameter(metavar="N", help="the longest reply, in tokens")] = (
        settings.Settings.max_new_tokens
    )


@Parameter(name="*", group=RESULTS)
@dataclasses.dataclass(frozen=True)
class ResultFlags:
    """How the numbers are made and shown."""

    bootstrap: Annotated[
        int, FROM_0, Parameter(metavar="N", help="resampled sets of contexts; 0: no such intervals")
    ] = measures.RESAMPLES
    seed: Annotated[int, FROM_0, Parameter(metavar="N", help="of the resampling, and of the draws")] = (
        settings.Settings.seed
    )
    markdown: Annotated[bool, Parameter(help="two Markdown tables, values and differences")] = False
    json: Annotated[bool, Parameter(help="JSON, all measures in full precision")] = False


@Parameter(name="*", group=RANK)
@dataclasses.dataclass(frozen=True)
class RankModels(ModelsThatRank):
    """The models by which rules choose."""


@app.default
def run(
    *,
    ask: AskFlags,
    model: ModelFlags = ModelFlags(),  # noqa: B008
    sampling: SamplingChanges = SamplingChanges(),  # noqa: B008
    rank: RankModels = RankModels(),
    shown: ResultFlags = ResultFlags(),
) -> int:
    if shown.markdown and shown.json:
        raise UsageError("give one of --markdown and --json")
    asked = settings.Settings(sampling_of(sampling, settings.DECODINGS[ask.decode]), shown.seed, ask.max_new_tokens)
    if asked.sampling.temperature is None:
        raise UsageError("at temperature 0 all hypotheses are one; give --decode topk, nucleus or chat")
    dialogues, dropped = held_out(ask.data)
    if dropped:
        streams.tell(dropped)
    contexts = cut(dialogues, ask.contexts)
    if not contexts:
        raise ValueError(f"{ask.data}: no dialogue has a second turn; there is nothing to reply to")
    folder = Path(ask.out)
    folder.mkdir(parents=True, exist_ok=True)
    bot = load_bot(model, rank)

    from dialogpt_jax.decoding.anti_model import anti_lm
    from dialogpt_jax.evaluation import harness, hits, proposals, rule_tables, rules

    with show_progress("contexts", "hypotheses") as progress:
        proposed = proposals.draw_proposals(
            bot,
            contexts,
            asked,
            ask.hypotheses,
            out=folder / "proposals.jsonl",
            progress=lambda new, left: progress(len(new), left, sum(len(own.texts) for own in new)),
        )
    anti = anti_lm(bot.params, bot.config, weight=rules.ANTI_WEIGHT, tokens=rules.ANTI_TOKENS)
    processors: list[Any] = [*asked.sampling.processors, anti]
    against = dataclasses.replace(asked, sampling=dataclasses.replace(asked.sampling, processors=processors))
    with show_progress("replies of anti-LM", "tokens") as progress:
        drawn = harness.answer(
            bot,
            contexts,
            against,
            out=folder / "anti-lm.jsonl",
            progress=lambda new, left: progress(len(new), left, sum(reply.tokens for reply in new)),
        )
    truths = None
    try:
        hits.draw_sets(contexts)
    except ValueError as error:
        streams.tell(f"left out: {error}")
    else:
        with show_progress("contexts", "true turns") as progress:
            truths = proposals.score_truths(
                bot,
                contexts,
                out=folder / "truths.jsonl",
                progress=lambda new, left: progress(len(new), left, sum(len(own.texts) for own in new)),
            )
    measuring: dict[str, Any] = {"resamples": shown.bootstrap, "seed": shown.seed}
    found = rules.measure_rules(bot, contexts, proposed, anti=drawn, truths=truths, **measuring)
    run = harness.describe_run(bot, contexts, asked) | {"hypotheses": ask.hypotheses}
    if shown.json:
        named = {"data": ask.data, "decode": ask.decode, "bootstrap": shown.bootstrap}
        streams.print_json(rule_tables.rules_as_json(found, named | run))
    elif shown.markdown:
        streams.show(rule_tables.rules_as_markdown(found))
    else:
        asked_of = f"{counted(len(contexts), 'contexts')} of {counted(len(dialogues), 'dialogues')}"
        streams.show(f"{asked_of}, {ask.hypotheses} hypotheses, {run['sampling']}, seed {shown.seed}\n")
        streams.show(rule_tables.rules_as_text(found))
    return 0
