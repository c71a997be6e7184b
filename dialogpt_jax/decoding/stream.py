"""A reply token by token: the same `begin` and `advance` as the compiled loop, driven from Python.

    prompt ─start→ prefix, state ─step→ state ─step→ … ─keep→ prefix with the reply in it

`start` takes its cache for good (it is donated), and so does `step` its state: use what they return.

Letters: B rows, T prompt tokens.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax import cache as caches
from dialogpt_jax.cache import KVCache, ReplyCache
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.generate import candidate_keys, model_step, prefill
from dialogpt_jax.decoding.logits import Sampling
from dialogpt_jax.decoding.loop import DecodeState, advance, begin
from dialogpt_jax.model import Params


def empty_cache(config: GPT2Config, rows: int, slots: int, dtype: jax.typing.DTypeLike) -> KVCache:
    """`init_cache` made on the host, which compiles nothing."""
    shapes = jax.eval_shape(lambda: caches.init_cache(config, rows, slots, dtype))
    return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype)), shapes)


@functools.partial(jax.jit, static_argnames=("config", "slots", "bucket"), donate_argnames="cache")
def start(
    params: Params,
    config: GPT2Config,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    starts_B: jax.Array,
    cache: KVCache,
    limits_B: jax.Array,
    keys_B: jax.Array,
    sampling: Sampling,
    seen_BV: jax.Array | None,
    *,
    slots: int,
    bucket: int | None,
) -> tuple[KVCache, DecodeState]:
    """Prefills the new tokens of each row behind the `starts_B` that its cache holds, and draws the first of its reply."""
    logits_BV, prefix = prefill(params, config, tokens_BT, lengths_B, cache, starts_B)
    reply = caches.init_cache(config, tokens_BT.shape[0], slots, prefix.layers[0][0].dtype)
    state = begin(
        logits_BV,
        limits_B,
        candidate_keys(keys_B, 1),
        reply,
        slots=slots,
        sampling=sampling,
        bucket=bucket,
        eos=config.eos_token_id,
        seen_MV=seen_BV,
    )
    return prefix, state


@functools.partial(jax.jit, static_argnames=("config", "bucket"), donate_argnames="state")
def step(
    params: Params,
    config: GPT2Config,
    prefix: KVCache,
    lengths_B: jax.Array,
    state: DecodeState,
    keys_B: jax.Array,
    sampling: Sampling,
    *,
    bucket: int | None,
) -> DecodeState:
    """One more token for each row. `lengths_B` counts the tokens of the prefix."""
    step_fn = model_step(params, config, prefix, lengths_B)
    keys_M = candidate_keys(keys_B, 1)
    return advance(step_fn, state, lengths_B, keys_M, sampling=sampling, bucket=bucket, eos=config.eos_token_id)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="prefix")
def keep(config: GPT2Config, prefix: KVCache, lengths_B: jax.Array, reply: KVCache) -> KVCache:
    """The prefix with the replies behind it; the last token of each is not there yet."""
    chosen_B = jnp.zeros_like(lengths_B)
    return caches.keep_reply(ReplyCache(prefix, lengths_B, reply), config, chosen_B)
