"""The key-value cache, as a value: arrays go in, arrays come out, and `write` is the only function that writes.

What flows in: a number of rows and slots. What flows out: one (k, v) pair of arrays per block, which `model.hidden`
takes and gives back.

**Slots are positions.** The token at position p is written to slot p; a query at position p sees the slots up to p.
What a pad wrote beyond a row's length is overwritten before any query can see it, so no mask travels with the cache,
and taking tokens back is only a smaller length.

    length 3, prefilled with 2 pads:   slot      0  1  2  3    4
                                       holds     a  b  c  pad  pad
    the next token, d, at position 3:            a  b  c  d    pad      and sees slots 0..3

Letters: B rows, N candidates of a row, H heads, S slots, R slots of a reply, T new tokens, K head dim, G = B·H·N merged.

Rows and heads are merged into one axis, (G, S, K), because that is the shape the attention's two products read: a cache
carried as (B, H, S, K) and reshaped inside is copied whole at every step of a compiled loop.

With int8 weights keys and values are 8-bit too, each with a scale for every slot and head: a quarter of the bytes, which is
what attention costs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.int8 import Int8Rows, is_int8
from dialogpt_jax.matmul import as_int8

Slots = jax.Array | Int8Rows
LayerCache = tuple[Slots, Slots]  # k_GSK, v_GSK of one block


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of rows whose slots are positions.

    Attributes:
      layers: one (k_GSK, v_GSK) pair per block, G = B·H.
    """

    layers: tuple[LayerCache, ...]

    @property
    def num_slots(self) -> int:
        return self.layers[0][0].shape[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReplyCache:
    """A cache in two parts, so that N candidates share the prefix they continue: it is never repeated and never moved.

    Attributes:
      prefix: the rows' own cache, B rows, slots = positions. Read here, never written.
      lengths_B: int32, how many tokens of the prefix are real.
      reply: what the candidates wrote: G = B·H·N, slot = position − length.
    """

    prefix: KVCache
    lengths_B: jax.Array
    reply: KVCache


def cache_dtype(params: Mapping[str, Any]) -> jnp.dtype:
    """The dtype of a model's keys and values: that of its computation, or int8 where its weights are."""
    return jnp.dtype(jnp.int8 if is_int8(params) else params["wte"]["embedding"].dtype)


def init_cache(config: GPT2Config, rows: int, slots: int, dtype: jax.typing.DTypeLike) -> KVCache:
    """An empty cache of `rows` rows and `slots` slots: zeros, 2·L arrays of rows · H · slots · K, in int8 with scales."""
    shape = (rows * config.n_head, slots, config.head_dim)

    def empty() -> Slots:
        values = jnp.zeros(shape, dtype)
        return Int8Rows(values, jnp.zeros((*shape[:-1], 1), jnp.float32)) if values.dtype == jnp.int8 else values

    return KVCache(tuple((empty(), empty()) for _ in range(config.n_layer)))


def init_reply(config: GPT2Config, prefix: KVCache, lengths_B: jax.Array, candidates: int, slots: int) -> ReplyCache:
    """`candidates` empty replies of `slots` slots for each row of a prefix."""
    rows = lengths_B.shape[0] * candidates
    return ReplyCache(prefix, lengths_B, init_cache(config, rows, slots, dtype_of(prefix)))


def dtype_of(cache: KVCache) -> Any:
    """The dtype of its keys and values."""
    return jax.tree.leaves(cache)[0].dtype


def of_block(cache: KVCache | ReplyCache | None, layer: int) -> KVCache | ReplyCache | None:
    """The part of a cache that is one block's: the same kind, with one pair."""
    if cache is None:
        return None
    if isinstance(cache, KVCache):
        return KVCache((cache.layers[layer],))
    prefix, reply = (KVCache((part.layers[layer],)) for part in (cache.prefix, cache.reply))
    return ReplyCache(prefix, cache.lengths_B, reply)


def of_blocks(cache: KVCache | ReplyCache | None, parts: Sequence[Any]) -> KVCache | ReplyCache | None:
    """The inverse: a whole cache of what the blocks gave back; of a reply's, the prefix is as it was."""
    if cache is None:
        return None
    if isinstance(cache, KVCache):
        return KVCache(tuple(part.layers[0] for part in parts))
    return ReplyCache(cache.prefix, cache.lengths_B, KVCache(tuple(part.reply.layers[0] for part in parts)))


def write(layer: LayerCache, k_GTK: Slots, v_GTK: Slots, slots_GT: jax.Array) -> LayerCache:
    """Puts new keys and values into their slots; a slot outside the cache is dropped, nothing is clamped.

    The slots of a row are consecutive: `slots_GT[:, 0] + arange(T)`. One number instead: every row's first slot, all of
    which are inside; XLA then moves a block, and where it is the whole cache, nothing. Into a cache of 8 bits numbers go
    rounded.
    """

    def put(old_GSK: jax.Array, new_GTK: jax.Array) -> jax.Array:
        if slots_GT.ndim == 0:
            return jax.lax.dynamic_update_slice_in_dim(old_GSK, new_GTK.astype(old_GSK.dtype), slots_GT, axis=1)
        # XLA for CPU casts all of a bfloat16 array to float32 and back around a scatter: for the 24 caches of 8 rows and
        # 64 slots of GPT-2 small 15 ms a step; a select of one slot 2 ms. In float32 a scatter is in place, 0.1 ms.
        one = old_GSK.dtype == jnp.bfloat16 and new_GTK.shape[1] == 1
        on_cpu = _select if one else _scatter
        return jax.lax.platform_dependent(old_GSK, new_GTK, slots_GT, tpu=_select, cpu=on_cpu, default=_scatter)

    new = tuple(
        as_int8(x) if isinstance(old, Int8Rows) and not isinstance(x, Int8Rows) else x
        for old, x in zip(layer, (k_GTK, v_GTK), strict=True)
    )
    return jax.tree.map(put, layer, new)


def _scatter(old_GSK: jax.Array, new_GTK: jax.Array, slots_GT: jax.Array) -> jax.Array:
    rows_G1 = jnp.arange(old_GSK.shape[0])[:, None]
    # A negative slot would count from the end; it cannot occur (positions start at 0, replies at their length).
    old, new = (_bits(x) for x in (old_GSK, new_GTK))
    out = old.at[rows_G1, slots_GT].set(new, mode="drop", unique_indices=True)
    return jax.lax.bitcast_convert_type(out, old_GSK.dtype)


def _bits(x: jax.Array) -> jax.Array:
    """bfloat16 as whole numbers, which are not cast around a scatter: 4 ms instead of 15."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _select(old_GSK: jax.Array, new_GTK: jax.Array, slots_GT: jax.Array) -> jax.Array:
    # XLA for TPU makes a slow or sequential loop of such a scatter (jax #21367, openxla/xla #12982).
    if new_GTK.shape[1] == 1:
        return jnp.where((jnp.arange(old_GSK.shape[1])[None, :] == slots_GT)[..., None], new_GTK, old_GSK)
    source_GS = jnp.arange(old_GSK.shape[1])[None, :] - slots_GT[:, :1]
    inside_GS = (source_GS >= 0) & (source_GS < new_GTK.shape[1])
    source_GS1 = jnp.clip(source_GS, 0, new_GTK.shape[1] - 1)[..., None]
    return jnp.where(inside_GS[..., None], jnp.take_along_axis(new_GTK, source_GS1, axis=1), old_GSK)


def put_rows(cache: Any, rows_P: jax.Array, new: Any, *, rows: int) -> Any:
    """Writes the slots of P whole rows, as many as `new` has, over those of some of the cache's; the others stay.

    Args:
      cache: of `rows` rows, or a tree of several.
      rows_P: int32, which of them each of the new rows becomes; `rows` and more: none.
      new: the same of P rows, with at most the cache's slots.
    """

    def put(old_GSK: jax.Array, new_GTK: jax.Array) -> jax.Array:
        old, given = (_bits(x) for x in (old_GSK, new_GTK))
        old_MHSK = old.reshape(rows, -1, *old.shape[1:])
        new_PHTK = given.reshape(rows_P.shape[0], old_MHSK.shape[1], *given.shape[1:])
        out = old_MHSK.at[rows_P, :, : new_PHTK.shape[2]].set(new_PHTK, mode="drop")
        return jax.lax.bitcast_convert_type(out.reshape(old.shape), old_GSK.dtype)

    return jax.tree.map(put, cache, new)


def keep_reply(cache: ReplyCache, config: GPT2Config, chosen_B: jax.Array) -> KVCache:
    """Moves each row's chosen candidate behind its prefix, by one write; the result continues as an ordinary cache.

    Args:
      cache: the two parts after decoding.
      config: the model's.
      chosen_B: int32, which of the N candidates each row keeps.

    How many of the reply's slots are real is the caller's to know: as everywhere, a length says it.
    """
    rows, heads = chosen_B.shape[0], config.n_head
    chosen_G = jnp.repeat(chosen_B, heads)

    def pick(reply_GRK: jax.Array) -> jax.Array:
        candidates_GNRK = reply_GRK.reshape(rows * heads, -1, *reply_GRK.shape[1:])
        return jnp.take_along_axis(candidates_GNRK, chosen_G[:, None, None, None], axis=1)[:, 0]

    slots_R = jnp.arange(cache.reply.num_slots)
    slots_GR = jnp.repeat(cache.lengths_B, heads)[:, None] + slots_R[None, :]
    pairs = zip(cache.prefix.layers, cache.reply.layers, strict=True)
    chosen = ((prefix, jax.tree.map(pick, reply)) for prefix, reply in pairs)
    return KVCache(tuple(write(prefix, k_GRK, v_GRK, slots_GR) for prefix, (k_GRK, v_GRK) in chosen))


def reorder(reply: KVCache, parents_BN: jax.Array) -> KVCache:
    """Replies in another order: number n of a row is what its number `parents_BN[n]` was. N stands inside G = B·H·N.

    parents [2 0 2]:   keys of a head [x y z] → [z x z]
    """
    rows, candidates = parents_BN.shape
    heads = reply.layers[0][0].shape[0] // (rows * candidates)
    parents_BHN = jnp.broadcast_to(parents_BN[:, None], (rows, heads, candidates))
    from_G = (jnp.arange(rows * heads)[:, None] * candidates + parents_BHN.reshape(-1, candidates)).reshape(-1)
    return jax.tree.map(lambda x_GRK: jnp.take(x_GRK, from_G, axis=0, mode="clip"), reply)
