"""A reply a few tokens at a time: the same `begin` and `advance` as the compiled loop, driven from Python.

    Request, cache ─start→ DecodeState ─steps→ DecodeState ─steps→ … ─keep→ cache with the reply in it
                      └─ said ─read→ tokens    └─ said

`start` takes its cache for good (it is donated), and so does `steps` its state: use what they return. The state holds the
cache: `state.cache.prefix` is what the prefill has left. `said` stays, so that it can be read while the next call runs.

Letters: B rows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax import cache as caches
from dialogpt_jax.cache import KVCache, ReplyCache, cache_dtype
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.generate import begin_replies, model_advance, model_step
from dialogpt_jax.decoding.loop import DecodeState, decode_some
from dialogpt_jax.decoding.request import Request
from dialogpt_jax.decoding.soundness import FORBIDDEN, check_finite, check_possible
from dialogpt_jax.decoding.speculative import Draft
from dialogpt_jax.model import Params

MOST_A_CALL, SECONDS_A_CALL = 8, 0.06  # a reply comes in calls of some tokens, as long as they come this fast


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WithDrafts:
    """A cache, and a draft model's of the same rows and slots, which holds the same tokens."""

    cache: KVCache
    drafts: KVCache

    @property
    def num_slots(self) -> int:
        return self.cache.num_slots


def empty_cache(
    config: GPT2Config, rows: int, slots: int, dtype: jax.typing.DTypeLike, draft: Draft | None = None
) -> KVCache | WithDrafts:
    """`init_cache` made on the host, which compiles nothing; of a draft model, too, where there is one."""
    shapes = jax.eval_shape(lambda: caches.init_cache(config, rows, slots, dtype))
    cache: KVCache = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype)), shapes)
    if draft is None or draft.config is None:
        return cache
    drafts = empty_cache(draft.config, rows, slots, cache_dtype(draft.params))
    assert isinstance(drafts, KVCache)
    return WithDrafts(cache, drafts)


@functools.partial(jax.jit, static_argnames="slots")
def with_slots(cache: Any, *, slots: int) -> Any:
    """The cache, or each of a tree of them, with more slots, the new ones empty."""
    return jax.tree.map(lambda x_GSK: jnp.pad(x_GSK, ((0, 0), (0, slots - x_GSK.shape[1]), (0, 0))), cache)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def start(
    params: Params, config: GPT2Config, request: Request, cache: KVCache | WithDrafts, draft: Draft | None = None
) -> tuple[DecodeState, jax.Array]:
    """Prefills the new tokens of each row behind those that its cache holds, and draws the first of its reply."""
    pair = (cache.cache, cache.drafts) if isinstance(cache, WithDrafts) else (cache, None)
    state = begin_replies(params, config, request, pair[0], draft, pair[1])
    return dataclasses.replace(state, processors=()), _said(state)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def steps(
    params: Params,
    config: GPT2Config,
    state: DecodeState,
    most: jax.typing.ArrayLike,
    processors: tuple[Any, ...] = (),
    draft: Draft | None = None,
) -> tuple[DecodeState, jax.Array]:
    """Up to `most` more tokens, or rounds of drafts, for each row that is not done.

    The request's `processors` are the caller's, who keeps their arrays: so they are no part of a state that is given away.
    """
    state = dataclasses.replace(state, processors=processors)
    state = decode_some(model_step(params, config), state, most, by=model_advance(draft))
    return dataclasses.replace(state, processors=()), _said(state)


def _said(state: DecodeState) -> jax.Array:
    """What a reader wants to know of a state, in one array of its own: the state itself is given away to the next call.

    tokens, then how many of them there are, whether the row is done, whether it ended by itself, whether their
    log-probabilities are finite, and whether each was possible.
    """
    finite_M = jnp.isfinite(state.logprobs_MR).all(axis=1)
    possible_M = (state.logprobs_MR != FORBIDDEN).all(axis=1)
    columns = (state.counts_M, state.done_M, state.finished_M, finite_M, possible_M)
    return jnp.concatenate([state.tokens_MR, *(column_M[:, None].astype(jnp.int32) for column_M in columns)], axis=1)


def read(said: jax.Array) -> tuple[list[list[int]], list[bool], bool]:
    """The replies so far, whether each has ended by itself, and whether all are done; waits for the call that made `said`.

    Raises:
      NonFiniteLogits: a token was drawn from logits that are no numbers.
      ValueError: none was possible.
    """
    on_host = np.asarray(said)
    counts_B, done_B, finished_B, finite_B, possible_B = on_host[:, -5:].T
    check_possible(bool(possible_B.all()))
    check_finite(bool(finite_B.all()))
    replies = [row[:count].tolist() for row, count in zip(on_host, counts_B, strict=True)]
    return replies, finished_B.astype(bool).tolist(), bool(done_B.all())


def prefix_of(state: DecodeState) -> KVCache | WithDrafts:
    """What the prefill has left."""
    drafts = None if state.drafting is None else state.drafting.cache
    return state.cache.prefix if drafts is None else WithDrafts(state.cache.prefix, drafts.prefix)


def keep(
    config: GPT2Config,
    state: DecodeState,
    chosen_B: jax.typing.ArrayLike | None = None,
    draft: Draft | None = None,
) -> KVCache | WithDrafts:
    """The prefix with a reply a row behind it, taken from a state; the last token of each is not there yet.

    Args:
      chosen_B: which of a row's replies; the first by default.
      draft: of the state; in its model's cache the last two tokens of a reply may not be there yet.
    """
    lengths_B = state.cache.lengths_B
    chosen_B = np.zeros(lengths_B.shape, np.int32) if chosen_B is None else np.asarray(chosen_B, np.int32)
    cache = _keep(config, state.cache.prefix, lengths_B, state.cache.reply, chosen_B)
    if draft is None or draft.config is None:
        return cache
    drafts = state.drafting.cache
    return WithDrafts(cache, _keep(draft.config, drafts.prefix, drafts.lengths_B, drafts.reply, chosen_B))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="prefix")
def _keep(config: GPT2Config, prefix: KVCache, lengths_B: jax.Array, reply: KVCache, chosen_B: jax.Array) -> KVCache:
    return caches.keep_reply(ReplyCache(prefix, lengths_B, reply), config, chosen_B)


def tokens_a_call(last: int, seconds: float) -> int:
    """How many tokens the next call makes: the more, the less a reader waits for them; at most twice as many as last."""
    return max(1, min(MOST_A_CALL, 2 * last, int(last * SECONDS_A_CALL / max(seconds, 1e-3))))


def shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have in common from their start."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)
