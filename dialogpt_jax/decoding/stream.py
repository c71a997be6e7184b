"""A reply token by token: the same `begin` and `advance` as the compiled loop, driven from Python.

    Request, cache ─start→ DecodeState ─step→ DecodeState ─step→ … ─keep→ cache with the reply in it

`start` takes its cache for good (it is donated), and so does `step` its state: use what they return. The state holds the
cache: `state.cache.prefix` is what the prefill has left.

Letters: B rows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax import cache as caches
from dialogpt_jax.cache import KVCache, ReplyCache
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.generate import begin_replies, model_step
from dialogpt_jax.decoding.loop import DecodeState, advance
from dialogpt_jax.decoding.request import Request
from dialogpt_jax.model import Params


def empty_cache(config: GPT2Config, rows: int, slots: int, dtype: jax.typing.DTypeLike) -> KVCache:
    """`init_cache` made on the host, which compiles nothing."""
    shapes = jax.eval_shape(lambda: caches.init_cache(config, rows, slots, dtype))
    return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype)), shapes)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def start(params: Params, config: GPT2Config, request: Request, cache: KVCache) -> DecodeState:
    """Prefills the new tokens of each row behind those that its cache holds, and draws the first of its reply."""
    return begin_replies(params, config, request, cache)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def step(params: Params, config: GPT2Config, state: DecodeState) -> DecodeState:
    """One more token for each row that is not done."""
    return advance(model_step(params, config), state)


def keep(config: GPT2Config, state: DecodeState) -> KVCache:
    """The prefix with the replies (one a row) behind it, taken from a state; the last token of each is not there yet."""
    return _keep(config, state.cache.prefix, state.cache.lengths_B, state.cache.reply)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="prefix")
def _keep(config: GPT2Config, prefix: KVCache, lengths_B: jax.Array, reply: KVCache) -> KVCache:
    return caches.keep_reply(ReplyCache(prefix, lengths_B, reply), config, jnp.zeros_like(lengths_B))
