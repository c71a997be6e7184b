"""Attention as pure functions: queries and parts of keys and values in, the weighted values out.

A part is (k_GSK, v_GSK, visible). A plain forward pass has one, a cache one or two: the rows' own prefix, and the replies
of the candidates that share it.

Letters: B rows, N candidates of a row, H heads, G = B·H or B·H·N merged, T queries, S slots, R reply slots, K head dim.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from dialogpt_jax.cache import KVCache, ReplyCache, Slots, write
from dialogpt_jax.matmul import attention_product

Part = tuple[Slots, Slots, jax.Array]  # k_GSK, v_GSK, visible
Cache = KVCache | ReplyCache
Dropout = Callable[[jax.Array], jax.Array] | None  # of probabilities


def attend(q_BHNTK: jax.Array, parts: Sequence[Part], dropout: Dropout) -> jax.Array:
    """One softmax over all parts' slots. A part is (k_GSK, v_GSK, visible), `visible` broadcasting to (B, H, N, T, S).

    A part of G = B·H rows is shared by the N candidates (their queries stand side by side); one of B·H·N is their own. A
    cache merges these axes; without one they stand apart, as (B, H, S, K), so that heads can be divided among devices.
    """
    scores = []
    for k_GSK, _, visible in parts:
        q_GQK = q_BHNTK.reshape(*k_GSK.shape[:-2], -1, k_GSK.shape[-1])
        scores_BHNTS = attention_product(q_GQK, k_GSK, -1).reshape(*q_BHNTK.shape[:-1], k_GSK.shape[-2])
        scores.append(jnp.where(visible, scores_BHNTS, jnp.finfo(jnp.float32).min))
    probs_BHNTS = jax.nn.softmax(_side_by_side(scores), axis=-1)
    probs_BHNTS = (probs_BHNTS if dropout is None else dropout(probs_BHNTS)).astype(q_BHNTK.dtype)
    y_BHNTK, start = jnp.zeros((), jnp.float32), 0
    for k_GSK, v_GSK, _ in parts:
        stop = start + k_GSK.shape[-2]
        probs_GQS = probs_BHNTS[..., start:stop].reshape(*k_GSK.shape[:-2], -1, k_GSK.shape[-2])
        y_BHNTK, start = attention_product(probs_GQS, v_GSK, -2).reshape(q_BHNTK.shape) + y_BHNTK, stop
    return y_BHNTK.astype(q_BHNTK.dtype)


def attend_in_rows(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    segments_BT: jax.Array | None,
    dropout: Dropout,
) -> jax.Array:
    """Every token attends to the earlier ones of its row, or of its segment of it; no cache; (B, T, H, K).

    On a GPU in 16 bits, and without dropout of probabilities, by cuDNN's fused attention, which keeps no scores of
    (T, T): a training step of GPT-2 medium, 8 × 1,024 tokens in bfloat16, took 57 ms of an H200 instead of 104, and
    10 GiB instead of 28.
    """

    def plain(q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array) -> jax.Array:
        rows = q_BTHK.shape[0]
        q_BHNTK, k_BHNTK, v_BHNTK = (heads_first(x_BTHK, rows) for x_BTHK in (q_BTHK, k_BTHK, v_BTHK))
        part = k_BHNTK[:, :, 0], v_BHNTK[:, :, 0], causal(q_BTHK.shape[1], segments_BT)
        return rows_first(attend(q_BHNTK, [part], dropout), q_BTHK.shape)

    if dropout is not None or not _cudnn_takes(q_BTHK):
        return plain(q_BTHK, k_BTHK, v_BTHK)
    fused = functools.partial(fused_attention, segments_BT=segments_BT)
    return jax.lax.platform_dependent(q_BTHK, k_BTHK, v_BTHK, cuda=fused, default=plain)


def fused_attention(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    segments_BT: jax.Array | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """The same by jax's own function; queries are scaled already."""
    same_B1TT = None if segments_BT is None else _same_segment(segments_BT)[:, None]
    how: dict[str, Any] = {"mask": same_B1TT, "scale": 1.0, "is_causal": True, "implementation": implementation}
    return jax.nn.dot_product_attention(q_BTHK, k_BTHK, v_BTHK, **how)


def _cudnn_takes(q_BTHK: jax.Array) -> bool:
    """Whether there is a GPU whose cuDNN has such an attention; jax asks for one where it is traced."""
    _, length, _, size = q_BTHK.shape
    if q_BTHK.dtype not in (jnp.bfloat16, jnp.float16) or size % 8 or size > 128 or length % 2:
        return False
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))  # "9.0"; AMD's begin with letters
    return capability[:1].isdigit() and float(capability) >= 8


def _side_by_side(scores: Sequence[jax.Array]) -> jax.Array:
    """All parts' scores as one array; on a GPU it is made before the softmax, which is one kernel with the next product."""
    if len(scores) == 1:
        return scores[0]
    whole = jnp.concatenate(scores, axis=-1)
    return jax.lax.platform_dependent(whole, cuda=jax.lax.optimization_barrier, default=lambda x: x)


def causal(length: int, segments_BT: jax.Array | None) -> jax.Array:
    """Which positions each position may attend to: the earlier ones, in its own segment.

    Returns:
      bool (B or 1, 1, 1, T, T).
    """
    index_T = jnp.arange(length)
    visible_BTS = (index_T[None, :] <= index_T[:, None])[None]
    if segments_BT is not None:
        visible_BTS = visible_BTS & _same_segment(segments_BT)
    return visible_BTS[:, None, None]


def _same_segment(segments_BT: jax.Array) -> jax.Array:
    return segments_BT[:, :, None] == segments_BT[:, None, :]


def each_position(positions_BT: jax.Array, length: int) -> jax.Array:
    """Positions as they are; or of one number, the first one of every row, (1, T)."""
    return positions_BT if positions_BT.ndim else positions_BT + jnp.arange(length, dtype=jnp.int32)[None]


def attend_to_cache(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, positions_BT: jax.Array, cache: Cache, dropout: Dropout
) -> tuple[jax.Array, Cache]:
    """Writes keys and values into a block's cache; every token attends to what it then holds up to there; (B, T, H, K)."""
    parts: list[Part]
    after: Cache
    if isinstance(cache, ReplyCache):
        rows = cache.lengths_B.shape[0]
        parts, after = reply_parts(cache, k_BTHK, v_BTHK, positions_BT)
    else:
        rows = q_BTHK.shape[0]
        parts, after = prefix_part(cache, k_BTHK, v_BTHK, positions_BT)
    return rows_first(attend(heads_first(q_BTHK, rows), parts, dropout), q_BTHK.shape), after


def prefix_part(
    cache: KVCache, k_BTHK: jax.Array, v_BTHK: jax.Array, positions_BT: jax.Array
) -> tuple[list[Part], KVCache]:
    """Writes into the rows' own cache; a query sees the slots up to its position."""
    rows, length, heads = k_BTHK.shape[:3]
    slots_GT = positions_BT if positions_BT.ndim == 0 else jnp.repeat(positions_BT, heads, axis=0)
    k_GSK, v_GSK = write(cache.layers[0], merged(k_BTHK, rows), merged(v_BTHK, rows), slots_GT)
    cache = KVCache(((k_GSK, v_GSK),))
    visible_BTS = jnp.arange(k_GSK.shape[1])[None, None, :] <= each_position(positions_BT, length)[:, :, None]
    return [(k_GSK, v_GSK, visible_BTS[:, None, None])], cache


def reply_parts(
    cache: ReplyCache, k_BTHK: jax.Array, v_BTHK: jax.Array, positions_BT: jax.Array
) -> tuple[list[Part], ReplyCache]:
    """Writes into the replies; a query sees its row's whole prefix, and its own reply up to its position."""
    rows, heads = cache.lengths_B.shape[0], k_BTHK.shape[2]
    slots_BNT = positions_BT.reshape(rows, -1, positions_BT.shape[1]) - cache.lengths_B[:, None, None]
    slots_BHNT = jnp.repeat(slots_BNT[:, None], heads, axis=1)
    slots_GT = slots_BHNT.reshape(-1, slots_BHNT.shape[-1])
    k_GRK, v_GRK = write(cache.reply.layers[0], merged(k_BTHK, rows), merged(v_BTHK, rows), slots_GT)
    reply = KVCache(((k_GRK, v_GRK),))
    k_GSK, v_GSK = cache.prefix.layers[0]
    before_BS = jnp.arange(k_GSK.shape[1])[None, :] < cache.lengths_B[:, None]
    own_BNTR = jnp.arange(k_GRK.shape[1])[None, None, None, :] <= slots_BNT[..., None]
    parts = [(k_GSK, v_GSK, before_BS[:, None, None, None]), (k_GRK, v_GRK, own_BNTR[:, None])]
    return parts, ReplyCache(cache.prefix, cache.lengths_B, reply)


def heads_first(x_BTHK: jax.Array, rows: int) -> jax.Array:
    """(B·N, T, H, K) → (B, H, N, T, K)."""
    return x_BTHK.reshape(rows, -1, *x_BTHK.shape[1:]).transpose(0, 3, 1, 2, 4)


def rows_first(x_BHNTK: jax.Array, shape: Sequence[int]) -> jax.Array:
    """The inverse, in any shape that begins with (B·N, T)."""
    return x_BHNTK.transpose(0, 2, 3, 1, 4).reshape(shape)


def merged(x_BTHK: jax.Array, rows: int) -> jax.Array:
    """(B·N, T, H, K) → (G, T, K), G = B·H·N: the cache's shape."""
    return heads_first(x_BTHK, rows).reshape(-1, x_BTHK.shape[1], x_BTHK.shape[3])
