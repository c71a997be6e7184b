"""Prompts to replies: one prefill, one compiled loop.

    tokens_BT, lengths_B ─prefill→ logits_BV, KVCache ─begin, decode→ DecodeState → Generated

Letters: B rows, T prompt tokens, N candidates of a row, M = B·N, V vocabulary (padded).
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from dialogpt_jax import model
from dialogpt_jax.cache import KVCache, ReplyCache, init_cache
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.logits import Sampling, as_arrays, repeat_rows, top_k_bucket
from dialogpt_jax.decoding.loop import StepFn, begin, decode

SMALLEST_BUCKET = 16


@struct.dataclass
class Generated:
    """Replies; with several candidates a row, their axis N stands after B.

    Attributes:
      tokens: int32 (B, max_new_tokens), the reply only, EOS after its end.
      lengths: int32 (B,), tokens of the reply, its EOS included.
      finished: bool (B,), false where it was cut by `max_new_tokens` or by the model's positions.
      logprobs: float32 (B, max_new_tokens), the model's own, before penalties and warpers; 0 after the end.

    Example:
      >>> bot.tokenizer.decode(out.tokens[0, : out.lengths[0]])
      '...'
    """

    tokens: jax.Array
    lengths: jax.Array
    finished: jax.Array
    logprobs: jax.Array


def bucket_of(size: int, most: int | None = None) -> int:
    """The next power of two from 16 on, at most `most`: few shapes, few programs."""
    bucket = max(SMALLEST_BUCKET, 1 << (max(size, 1) - 1).bit_length())
    return bucket if most is None else min(bucket, most)


def prefill(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    cache: KVCache,
    starts_B: jax.Array | None = None,
) -> tuple[jax.Array, KVCache]:
    """Writes prompts into the cache; float32 logits_BV of the token after each row's last one.

    Args:
      tokens_BT: right-padded.
      lengths_B: real tokens of `tokens_BT`, at least 1.
      starts_B: tokens that the cache already holds for each row; 0 by default.
    """
    starts_B = jnp.zeros_like(lengths_B) if starts_B is None else starts_B
    positions_BT = starts_B[:, None] + jnp.arange(tokens_BT.shape[1])[None]
    x_BTD, written = model.hidden(params, config, tokens_BT, positions_BT, cache)
    last_BD = jnp.take_along_axis(x_BTD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    return model.logits(params, config, last_BD), cast(KVCache, written)


def model_step(params: model.Params, config: GPT2Config, prefix: KVCache, lengths_B: jax.Array) -> StepFn:
    """The step function of a GPT-2 whose N candidates continue a shared prefix; its cache is the replies' part."""

    def step(tokens_M, positions_M, reply):
        cache = ReplyCache(prefix, lengths_B, reply)
        x_MTD, cache = model.hidden(params, config, tokens_M[:, None], positions_M[:, None], cache)
        return model.logits(params, config, x_MTD[:, 0]), cache.reply

    return step


def candidate_keys(keys_B: jax.Array, candidates: int) -> jax.Array:
    """The keys of a row's candidates, M = B·N; the first is the same however many there are."""
    fold = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(0, None))
    return fold(keys_B, jnp.arange(candidates)).reshape(-1)


def seen_tokens(tokens_BT: jax.Array, lengths_B: jax.Array, vocab: int) -> jax.Array:
    """bool (B, vocab): which ids a row holds, its pads left out."""
    real_BT = jnp.arange(tokens_BT.shape[1])[None] < lengths_B[:, None]
    rows_B1 = jnp.arange(tokens_BT.shape[0])[:, None]
    ids_BT = jnp.where(real_BT, tokens_BT, vocab)
    return jnp.zeros((tokens_BT.shape[0], vocab), bool).at[rows_B1, ids_BT].set(True, mode="drop")


@functools.partial(jax.jit, static_argnames=("config", "candidates", "slots", "bucket"))
def _generate(params, config, tokens_BT, lengths_B, limits_B, keys_B, sampling, *, candidates, slots, bucket):
    rows = tokens_BT.shape[0]
    dtype = params["wte"]["embedding"].dtype
    cache = init_cache(config, rows, tokens_BT.shape[1], dtype)
    logits_BV, prefix = prefill(params, config, tokens_BT, lengths_B, cache)

    def each(x_B):
        return jnp.repeat(x_B, candidates, axis=0)

    seen_MV = None
    if sampling.repetition_penalty is not None and sampling.penalize_context:
        seen_MV = each(seen_tokens(tokens_BT, lengths_B, config.padded_vocab_size))
    how = {"sampling": repeat_rows(sampling, candidates), "bucket": bucket, "eos": config.eos_token_id}
    keys_M = candidate_keys(keys_B, candidates)
    reply = init_cache(config, rows * candidates, slots, dtype)
    state = begin(each(logits_BV), each(limits_B), keys_M, reply, slots=slots, seen_MV=seen_MV, **how)
    state = decode(model_step(params, config, prefix, lengths_B), state, each(lengths_B), keys_M, **how)
    return Generated(state.tokens_MR, state.counts_M, state.finished_M, state.logprobs_MR)


@functools.partial(jax.jit, static_argnames=("config", "rows_on", "candidates", "slots", "bucket"))
def _generate_sharded(params, config, tokens_BT, lengths_B, limits_B, keys_B, sampling, *, rows_on, **static):
    """`_generate` on each device of a mesh, for its own rows: it ends when they have.

    The partitioner does not see that rows share nothing, and would gather all rows' keys and values at every cache write.
    """
    every, rows = PartitionSpec(), rows_on.spec
    specs = (every, rows, rows, rows, rows, jax.tree.map(lambda x: rows if x.ndim else every, sampling))

    def one_device(params, tokens_BT, lengths_B, limits_B, keys_B, sampling):
        return _generate(params, config, tokens_BT, lengths_B, limits_B, keys_B, sampling, **static)

    run = jax.shard_map(one_device, mesh=rows_on.mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return run(params, tokens_BT, lengths_B, limits_B, keys_B, sampling)


def generate_candidates(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: jax.typing.ArrayLike,
    lengths_B: jax.typing.ArrayLike,
    *,
    candidates: int,
    sampling: Sampling,
    max_new_tokens: int,
    keys: jax.Array,
) -> Generated:
    """Several replies to each prompt, which is prefilled once and shared; fields are (B, N, …).

    As `generate`; the first candidate is the reply that `generate` gives.

    Raises:
      ValueError: as `generate`, or `candidates` under 1.

    Example:
      >>> tokens_BT = np.array([bot.encode(["Hi!"])])
      >>> how = {"candidates": 4, "sampling": dg.PAPER, "max_new_tokens": 8, "keys": jax.random.split(jax.random.key(0), 1)}
      >>> out = dg.generate_candidates(bot.params, bot.config, tokens_BT, np.array([tokens_BT.shape[1]]), **how)
      >>> out.tokens.shape
      (1, 4, 8)
    """
    out = _replies(params, config, tokens_BT, lengths_B, candidates, sampling, max_new_tokens, keys)
    return jax.device_put(out)


def _replies(params, config, tokens_BT, lengths_B, candidates, sampling, max_new_tokens, keys) -> Generated:
    """As NumPy arrays (B, N, …): cut on the host, another `max_new_tokens` of the same bucket compiles nothing."""
    _check_whole("candidates", candidates)
    _check_whole("max_new_tokens", max_new_tokens)
    tokens_BT, lengths_B = _checked(config, tokens_BT, lengths_B, keys)
    rows, length = tokens_BT.shape
    _check_sampling(sampling, rows)
    padded = np.pad(tokens_BT, ((0, 0), (0, bucket_of(length, config.n_positions) - length)))
    limits_B = np.minimum(max_new_tokens, config.n_positions - lengths_B).astype(np.int32)
    arguments = (params, config, padded, lengths_B, limits_B, keys, as_arrays(sampling))
    static = {
        "candidates": candidates,
        "slots": bucket_of(max_new_tokens, config.n_positions),
        "bucket": top_k_bucket(sampling, config.vocab_size),
    }
    if isinstance(keys.sharding, NamedSharding):
        out = _generate_sharded(*arguments, rows_on=keys.sharding, **static)
    else:
        out = _generate(*arguments, **static)

    def shaped(x_MR, pad) -> Any:
        x_BNR = np.asarray(x_MR).reshape(rows, candidates, -1)[..., :max_new_tokens]
        return np.pad(x_BNR, ((0, 0), (0, 0), (0, max_new_tokens - x_BNR.shape[2])), constant_values=pad)

    return Generated(
        tokens=shaped(out.tokens, config.eos_token_id),
        lengths=cast(jax.Array, np.asarray(out.lengths).reshape(rows, candidates)),
        finished=cast(jax.Array, np.asarray(out.finished).reshape(rows, candidates)),
        logprobs=shaped(out.logprobs, 0.0),
    )


def generate(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: jax.typing.ArrayLike,
    lengths_B: jax.typing.ArrayLike,
    *,
    sampling: Sampling,
    max_new_tokens: int,
    keys: jax.Array,
) -> Generated:
    """A reply to each prompt, in one compiled call.

    Compiled once for each number of rows, bucket of T (a power of two from 16 on) and bucket of `max_new_tokens`; numbers
    in `sampling` are traced.

    Args:
      params, config: the model; it computes in the parameters' dtype.
      tokens_BT: int32 prompts, right-padded; what stands in the pads changes nothing.
      lengths_B: int32, real tokens of each row, 1 to `n_positions`.
      sampling: how a token is chosen.
      max_new_tokens: the most tokens of a reply, its EOS included. A row also stops at the model's last position.
      keys: (B,) `jax.random.key`s, one a row. With a `NamedSharding` over their rows, each device of its mesh replies to
        its rows; the parameters may lie on that mesh however they like, and are gathered once a call.

    Raises:
      ValueError: shapes, lengths, ids or keys do not fit; the message has the numbers.

    Example:
      >>> context = bot.encode(["Hi!"])
      >>> tokens_BT, lengths_B = np.array([context, context]), np.array([len(context), len(context)])
      >>> keys_B = jax.random.split(jax.random.key(0), 2)
      >>> how = {"sampling": dg.PAPER, "max_new_tokens": 8}
      >>> out = dg.generate(bot.params, bot.config, tokens_BT, lengths_B, keys=keys_B, **how)
      >>> out.tokens.shape
      (2, 8)
    """
    out = _replies(params, config, tokens_BT, lengths_B, 1, sampling, max_new_tokens, keys)
    return jax.device_put(jax.tree.map(lambda x: x[:, 0], out))


def _check_whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")


def _check_sampling(sampling: Sampling, rows: int) -> None:
    for field in dataclasses.fields(sampling):
        shape = np.shape(getattr(sampling, field.name))
        if shape not in ((), (rows,)):
            raise ValueError(f"{field.name} has the shape {shape}; expected one number, or one for each of {rows} rows")


def _checked(config, tokens_BT, lengths_B, keys) -> tuple[np.ndarray, np.ndarray]:
    """The prompts on the host, as int32, found sound."""
    tokens_BT, lengths_B = np.asarray(tokens_BT), np.asarray(lengths_B)
    if tokens_BT.ndim != 2 or 0 in tokens_BT.shape:
        raise ValueError(f"tokens have the shape {tokens_BT.shape}; expected (rows, tokens), neither of them 0")
    for name, array in (("tokens", tokens_BT), ("lengths", lengths_B)):
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} are {array.dtype}; expected integers")
    rows, length = tokens_BT.shape
    if not isinstance(keys, jax.Array) or not jax.dtypes.issubdtype(keys.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"keys are {getattr(keys, 'dtype', type(keys).__name__)}; expected an array of `jax.random.key`s"
        )
    if lengths_B.shape != (rows,) or keys.shape != (rows,):
        raise ValueError(f"{rows} rows of tokens, lengths of shape {lengths_B.shape} and keys of shape {keys.shape}")
    if lengths_B.min() < 1 or lengths_B.max() > length:
        raise ValueError(f"lengths run from {lengths_B.min()} to {lengths_B.max()}; each must be 1 to {length}")
    if lengths_B.max() > config.n_positions:
        raise ValueError(f"a prompt has {lengths_B.max()} tokens; n_positions is {config.n_positions}")
    real_BT = np.arange(length)[None] < lengths_B[:, None]
    wrong = tokens_BT[real_BT & ((tokens_BT < 0) | (tokens_BT >= config.vocab_size))]
    if wrong.size:
        raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {config.vocab_size}")
    # A pad may hold anything, but the embedding gives NaN out of range, and 0 · NaN poisons a masked sum.
    return np.where(real_BT, tokens_BT, 0)[:, : config.n_positions].astype(np.int32), lengths_B.astype(np.int32)
