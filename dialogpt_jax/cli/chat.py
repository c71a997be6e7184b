"""`dialogpt chat`: flags in, a conversation at the terminal out."""

from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import Parameter

from dialogpt_jax.cli.common import (
    BeamFlags,
    Block,
    ModelFlags,
    ReplyFlags,
    SamplingFlags,
    beams_of,
    load_bot,
    sampling_of,
    seed_of,
)
from dialogpt_jax.cli.compiling import compile_ahead, tell_of_compiling
from dialogpt_jax.cli.draft_flags import DraftFlags, drafts_of
from dialogpt_jax.cli.flags import UsageError, make_app
from dialogpt_jax.cli.rank_flags import RankFlags, rank_by_default, rank_of, rank_unsaid
from dialogpt_jax.replies.settings import sampling_for, seed_or_drawn

EXAMPLES = """\
Examples:
  dialogpt chat                                 /help lists what can be typed
  dialogpt chat --model microsoft/DialoGPT-medium --dtype bfloat16
  dialogpt chat --draft lookup                  sooner where talk repeats
  dialogpt chat --load chat.json                go on with what /save wrote
  dialogpt chat --beams 4                       the best of a beam search, whole
  dialogpt chat --rank mmi                      by another rule; /why says why
  dialogpt chat --rank off                      one is drawn, and comes as it is
  printf 'Hi!\\nHow are you?\\n' | dialogpt chat  a reply a line
"""
app = make_app("chat", "dialogpt chat [OPTIONS]", help_epilogue=EXAMPLES)


@app.default
def run(
    *,
    load: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="go on with a chat that /save wrote, with its settings but for those that are said here",
        ),
    ] = None,
    block: Block = None,
    model: ModelFlags = ModelFlags(),  # noqa: B008  (frozen)
    reply: ReplyFlags = ReplyFlags(),  # noqa: B008
    sampling: SamplingFlags = SamplingFlags(),  # noqa: B008
    beams: BeamFlags = BeamFlags(),  # noqa: B008
    rank: RankFlags = RankFlags(),  # noqa: B008
    draft: DraftFlags = DraftFlags(),  # noqa: B008
    penalty_alpha: Annotated[str | None, Parameter(show=False)] = None,
) -> int:
    if penalty_alpha is not None:
        raise UsageError("--penalty-alpha is for `dialogpt reply` and `dialogpt eval`; a chat takes --beams or --rank")
    from dialogpt_jax.chat.saved_chat import read_chat
    from dialogpt_jax.chat.session import Chat
    from dialogpt_jax.chat.terminal import Terminal

    searched, seed = beams_of(beams), seed_of(reply.seed)
    ranked = rank_of(rank, searched)
    drafts = drafts_of(draft, {"--beams": searched, "--rank": ranked})
    settings = sampling_of(sampling, sampling_for(None, searched, ranked))
    word = tell_of_compiling()
    bot = load_bot(model, rank, block, drafts)
    if load is not None:
        chat = Chat.load(_changed(read_chat(load), reply, sampling, searched, ranked, rank.by, draft.draft), bot)
    else:
        if rank_unsaid(rank, searched, draft.draft):
            ranked = rank_by_default(bot)
            settings = sampling_of(sampling, sampling_for(None, None, ranked))
        how: dict[str, Any] = {"seed": seed, "sampling": settings, "max_new_tokens": reply.max_new_tokens}
        chat = Chat(bot, beams=searched, rank=ranked, **how)
    terminal = Terminal(bot, chat, name=model.model or "the bundled model", loaded=load)
    if terminal.person:  # who takes a while to type
        terminal.ready = compile_ahead(lambda: reply_ahead(bot, chat), word)
    return terminal.run()


def reply_ahead(bot: Any, chat: Any) -> Iterator[str]:
    """What another chat like this one would say next, in pieces."""
    from dialogpt_jax.chat.session import Chat

    how: dict[str, Any] = {"seed": chat.seed, "sampling": chat.sampling, "max_new_tokens": chat.max_new_tokens}
    other = Chat(bot, turns=chat.turns, beams=chat.beams, rank=chat.rank, **how)
    yield from other.stream("Hi!")


def _changed(saved: Any, reply: ReplyFlags, sampling: Any, searched: Any, ranked: Any, rule: Any, draft: Any) -> Any:
    """A saved chat with what the flags say, which goes before what the file says; what nobody has said follows that."""
    beams, rank = saved.beams, saved.rank
    if searched is not None or ranked is not None or draft is not None:
        beams, rank = searched, ranked  # one way to a reply at a time
    elif rule is not None:  # off
        rank = None
    settings = saved.sampling
    if settings == sampling_for(None, saved.beams, saved.rank):
        settings = sampling_for(None, beams, rank)
    saved = saved._replace(beams=beams, rank=rank, sampling=sampling_of(sampling, settings))
    if reply.seed != ReplyFlags.seed:
        saved = saved._replace(seed=seed_or_drawn(seed_of(reply.seed)))
    if reply.max_new_tokens != ReplyFlags.max_new_tokens:
        saved = saved._replace(max_new_tokens=reply.max_new_tokens)
    return saved
