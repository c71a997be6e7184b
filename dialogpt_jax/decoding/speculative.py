"""Speculative decoding: cheap drafts of the next tokens flow in; the tokens that plain decoding draws flow out, several a
forward.

    DecodeState ─drafter→ drafts_MD ─one step of T = D + 1 tokens→ logits_MTV ─record, while it was as drafted→ DecodeState

    reply so far [x y], drafts [a b c]:   the step feeds [y a b c]
                                          after y plain decoding draws a: as drafted; after a it draws q: not as drafted
                                          reply [x y a q], two tokens for one forward; b and c are forgotten

**Exact by construction.** Each token is drawn by `loop.record`, as in plain decoding: with the row's own key and the number
of the token, processors having seen the drafts before it. A draft is accepted where it *is* that token, so nothing that is
said depends on the drafter, nor on how many tokens it drafts; the rows go on at their own pace. What the step wrote of
rejected drafts stands in the cache behind the row's length, where nothing sees it, and is overwritten.

**Drafters.** The dialogue itself (`look_up`: what followed the last few tokens the last time they were said), or a small
model (`draft_by_model`) that goes on as plain decoding would, with the same keys, which raises the agreement.

Letters: M rows, D drafts, T tokens of a step, R reply slots, S columns of context and reply, V vocabulary (padded).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dialogpt_jax.arguments import as_whole_number
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.loop import DecodeState, StepFn, advance, record
from dialogpt_jax.decoding.processors import NO_TOKEN, said
from dialogpt_jax.errors import counted

DraftFn = Callable[[DecodeState], tuple[jax.Array, Any]]  # state → drafts_MD, int32 ids, and the drafter's cache

DEFAULT_DRAFTS = 3  # in int8 on CPU four rows of a product cost what one does
MOST_DRAFTS = 15  # the smallest bucket of a reply, less one
LONGEST_MATCH, SHORTEST_MATCH = 3, 2  # tokens that must have been said before


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draft:
    """How tokens are drafted for a model that speculates: from the dialogue itself, or by a smaller model.

    Attributes:
      params: the small model's parameters; `None` looks drafts up in the dialogue.
      config: static; its sizes.
      tokens: static; D, how many are drafted for each forward, 1 to 15.

    Example:
      >>> looked_up = dg.Draft(tokens=4)
      >>> by_a_model = dg.Draft(bot.params, bot.config)
    """

    params: Any = None
    config: GPT2Config | None = dataclasses.field(metadata={"static": True}, default=None)
    tokens: int = dataclasses.field(metadata={"static": True}, default=DEFAULT_DRAFTS)

    def __post_init__(self) -> None:
        as_whole_number("draft tokens", self.tokens, least=1, most=MOST_DRAFTS)
        if (self.params is None) != (self.config is None):
            raise ValueError("a Draft by a model has params and config; give both, or neither to look drafts up")
        if not isinstance(self.config, GPT2Config | None):
            raise TypeError(f"config of a Draft is {type(self.config).__name__}; give a GPT2Config")


def check_draft(draft: Draft, config: GPT2Config) -> None:
    """Whether what a draft model drafts is something to a model.

    Raises:
      TypeError: it is no `Draft`.
      ValueError: the draft model has another vocabulary, or fewer positions.
    """
    if not isinstance(draft, Draft):
        raise TypeError(f"draft is {type(draft).__name__}; give a Draft, such as Draft(tokens=3)")
    own = draft.config
    if own is None:
        return
    if (own.vocab_size, own.eos_token_id) != (config.vocab_size, config.eos_token_id):
        raise ValueError(
            f"the draft model has a vocabulary of {own.vocab_size} with EOS {own.eos_token_id}, the model one of "
            f"{config.vocab_size} with EOS {config.eos_token_id}; give a draft model of the same vocabulary"
        )
    if own.n_positions < config.n_positions:
        raise ValueError(
            f"the draft model has {own.n_positions} positions, the model {config.n_positions}; give one with as many"
        )


def describe_draft(draft: Draft) -> str:
    """For a person."""
    what = "looked up" if draft.config is None else f"drafted by {draft.config.num_parameters:,} parameters"
    return f"{counted(draft.tokens, 'tokens')} {what} for each forward"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drafting:
    """What a state has besides, where tokens are drafted.

    Attributes:
      cache: the draft model's; `None` where drafts are looked up.
      forwards_M: int32, how often the model read a row's drafts; the prefill is not counted.
      accepted_M: int32, drafts that became tokens of the reply.
    """

    cache: Any
    forwards_M: jax.Array
    accepted_M: jax.Array


def begin_drafting(state: DecodeState, cache: Any = None) -> DecodeState:
    """A state whose tokens will be drafted; `cache` is the draft model's, with the context in it."""
    none_M = jnp.zeros_like(state.counts_M)
    return dataclasses.replace(state, drafting=Drafting(cache, none_M, none_M))


def speculate(step_fn: StepFn, state: DecodeState, draft_fn: DraftFn) -> DecodeState:
    """One round: at least one token for each row that is not done, at most one more than there are drafts.

    Args:
      step_fn: the model's, for D + 1 tokens.
      state: of `begin_drafting`.
      draft_fn: the drafter.
    """
    drafting, going_M = state.drafting, ~state.done_M
    with jax.named_scope("draft"):
        drafts_MD, draft_cache = draft_fn(state)
    drafts = drafts_MD.shape[1]
    tokens_MT = jnp.concatenate([state.last_M[:, None], drafts_MD], axis=1)
    first_M = state.settings.lengths_M + jnp.maximum(state.counts_M - 1, 0)
    logits_MTV, cache = step_fn(tokens_MT, first_M[:, None] + jnp.arange(drafts + 1)[None], state.cache)

    Carry = tuple[jax.Array, DecodeState, jax.Array, jax.Array]

    def take(carry: Carry) -> Carry:
        t, state, going_M, accepted_M = carry
        logits_MV = jax.lax.dynamic_index_in_dim(logits_MTV, t, axis=1, keepdims=False)
        state = record(state, logits_MV, going_M)
        draft_M = jax.lax.dynamic_index_in_dim(drafts_MD, jnp.minimum(t, drafts - 1), axis=1, keepdims=False)
        as_drafted_M = going_M & (state.last_M == draft_M) & (t < drafts)
        return t + 1, state, as_drafted_M & ~state.done_M, accepted_M + as_drafted_M

    # The caches stay outside: what a loop carries, it may copy.
    without = dataclasses.replace(state, cache=None, drafting=None)
    _, state, _, accepted_M = jax.lax.while_loop(
        lambda carry: jnp.any(carry[2]), take, (jnp.int32(0), without, going_M, drafting.accepted_M)
    )
    drafting = Drafting(draft_cache, drafting.forwards_M + going_M, accepted_M)
    return dataclasses.replace(state, cache=cache, drafting=drafting)


def drafter(draft: Draft, draft_step_fn: StepFn | None) -> Callable[[StepFn, DecodeState], DecodeState]:
    """What a decoding loop goes on by: a round with these drafts."""
    if draft_step_fn is None:
        draft_fn: DraftFn = functools.partial(look_up, drafts=draft.tokens)
    else:
        draft_fn = functools.partial(draft_by_model, draft_step_fn, drafts=draft.tokens)
    return functools.partial(speculate, draft_fn=draft_fn)


def look_up(state: DecodeState, *, drafts: int) -> tuple[jax.Array, None]:
    """What followed the last three tokens of dialogue and reply, or else the last two, the last time that they were said.

        said [a b c d a b], 3 drafts:   "a b" was followed by [c d a]
        said [a b a b], 3 drafts:       by [a b], and what repeats goes on: [a b a]
        nowhere before:                 the last token again

    The state's history has the "context".
    """
    said_MS, ends_M = said(state.reply, "context")
    columns = said_MS.shape[1]
    place_S = jnp.arange(columns)[None]
    earlier_MS, same_MS = said_MS, said_MS != NO_TOKEN
    matched_MS = jnp.zeros_like(said_MS)
    for back in range(1, LONGEST_MATCH + 1):
        last_M1 = jnp.take_along_axis(said_MS, jnp.maximum(ends_M - back, 0)[:, None], axis=1)
        same_MS = same_MS & (earlier_MS == last_M1) & (earlier_MS != NO_TOKEN)
        matched_MS = matched_MS + same_MS
        earlier_MS = jnp.pad(earlier_MS[:, :-1], ((0, 0), (1, 0)), constant_values=NO_TOKEN)
    found_MS = (matched_MS >= SHORTEST_MATCH) & (place_S < ends_M[:, None] - 1)
    # The longest match, and of those the latest.
    score_MS = jnp.where(found_MS, matched_MS * columns + place_S, -1)
    best_M1 = jnp.argmax(score_MS, axis=1)[:, None]
    period_M1 = jnp.maximum(ends_M[:, None] - 1 - best_M1, 1)
    drafts_MD = jnp.take_along_axis(said_MS, best_M1 + 1 + jnp.arange(drafts)[None] % period_M1, axis=1)
    return jnp.where(found_MS.any(axis=1, keepdims=True), drafts_MD, state.last_M[:, None]), None


def draft_by_model(draft_step_fn: StepFn, state: DecodeState, *, drafts: int) -> tuple[jax.Array, Any]:
    """What a smaller model would say next, drawn as plain decoding draws, with the same keys and processors.

    Its cache lacks the last token, and the one before where all drafts were accepted; so its first step feeds both.

        context [a b c], reply so far [x y z]:   y and z at positions 4 and 5; then the first draft, at 6
        reply so far [x]:                        x at position 3, and a token at 4 that is not looked at
    """
    first_M = jnp.maximum(state.counts_M - 2, 0)
    two_M2 = first_M[:, None] + jnp.arange(2)[None]
    tokens_M2 = jnp.take_along_axis(state.tokens_MR, two_M2, axis=1)
    positions_M2 = state.settings.lengths_M[:, None] + two_M2
    logits_M2V, cache = draft_step_fn(tokens_M2, positions_M2, state.drafting.cache)
    last_M11 = jnp.maximum(state.counts_M - 1 - first_M, 0)[:, None, None]
    logits_MV = jnp.take_along_axis(logits_M2V, last_M11, axis=1)[:, 0]
    own = record(dataclasses.replace(state, cache=cache, drafting=None), logits_MV, ~state.done_M)
    own = jax.lax.fori_loop(1, drafts, lambda _, own: advance(draft_step_fn, own), own)
    columns_MD = jnp.minimum(state.counts_M[:, None] + jnp.arange(drafts)[None], own.tokens_MR.shape[1] - 1)
    return jnp.take_along_axis(own.tokens_MR, columns_MD, axis=1), own.cache
