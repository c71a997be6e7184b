"""Logits to a token: processors and warpers, each a pure function over rows, and the draw.

    logits_MV ─penalty→ ─no EOS yet→ ─temperature→ ─top-k→ ─top-p→ ─min-p→ one uniform → token

Order and rules are transformers' (`generation/logits_process.py`). Nothing here sorts the vocabulary, which would cost more
than the model: top-k takes a static number of the best and cuts at its own k inside; without it the nucleus finds its
threshold by bisection; a draw is one uniform and an inverse CDF.

Letters: M rows (all candidates of all dialogues), V vocabulary (padded), K the best few of it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax.arguments import shown
from dialogpt_jax.decoding.sampling import TOP_K_BUCKETS, Number, Sampling, is_number
from dialogpt_jax.token_arrays import Array, array_library

# Halvings of a log-probability interval 40 wide: the threshold is known to 4e-8, float32's own precision near 1.
_BISECTIONS = 30
# A set that holds all of `top_p` but this is enough: a few roundings of sums near 1, so that .5 + .3 is .8.
_ENOUGH = 3e-7
# A colder temperature is taken for this: no logit over it is beyond float32, and a lead of 1e-6 decides.
_COLDEST = 1e-8

jax.tree_util.register_dataclass(
    Sampling,
    data_fields=[field.name for field in dataclasses.fields(Sampling) if field.name != "penalize_context"],
    meta_fields=["penalize_context"],
)


def top_k_bucket(sampling: Sampling, vocab_size: int) -> int | None:
    """How many of the best tokens a program takes: static, the next of `TOP_K_BUCKETS` above the largest `top_k`.

    Above, not at: a tie with the last of the k is then seen, and stays, as in transformers. Ties past the bucket go.
    """
    if sampling.temperature is None or sampling.top_k is None:
        return None
    if isinstance(sampling.top_k, jax.core.Tracer):
        return min(TOP_K_BUCKETS[-1], vocab_size)
    largest = int(np.max(np.asarray(sampling.top_k)))
    return min(next((b for b in TOP_K_BUCKETS if b > largest), TOP_K_BUCKETS[-1]), vocab_size)


def by_row(sampling: Sampling, rows: int) -> Sampling:
    """The same with every number float32 and once for each row, so that 1, 1.0 and one value a row are one program.

    Raises:
      ValueError: a number is given for more or fewer rows, or what is given is none.
    """

    def each(path: Any, number: Any) -> Array:
        if not (is_number(number) or isinstance(number, np.ndarray | jax.Array)):
            raise ValueError(f"{path[0].name} is {shown(number)}; it must be a number")
        library = array_library(number)
        if np.shape(number) not in ((), (rows,)):
            raise ValueError(
                f"{path[0].name} has the shape {np.shape(number)}; expected one number, or one for each of {rows} rows"
            )
        return library.broadcast_to(library.asarray(number, library.float32), (rows,))

    return jax.tree_util.tree_map_with_path(each, sampling)


def penalize(logits_MV: jax.Array, seen_MV: jax.Array, penalty: Number) -> jax.Array:
    """Makes seen tokens less likely (a penalty over 1), whatever the sign of their logit."""
    lower_MV = jnp.where(logits_MV > 0, logits_MV / _column(penalty), logits_MV * _column(penalty))
    return jnp.where(seen_MV, lower_MV, logits_MV)


def forbid_early_end(logits_MV: jax.Array, counts_M: jax.Array, minimum: Number, eos: int) -> jax.Array:
    """No EOS while the reply has fewer than `minimum` tokens."""
    early_M1 = counts_M[:, None] < _column(minimum)
    return jnp.where(early_M1 & (jnp.arange(logits_MV.shape[1])[None] == eos), -jnp.inf, logits_MV)


def keep_top_k(best_MK: jax.Array, top_k: Number) -> jax.Array:
    """Of logits in falling order, those at least as high as the k-th; the others −inf."""
    last_M1 = jnp.clip(jnp.broadcast_to(_column(top_k), (best_MK.shape[0], 1)).astype(jnp.int32), 1, best_MK.shape[1])
    return jnp.where(best_MK >= jnp.take_along_axis(best_MK, last_M1 - 1, axis=1), best_MK, -jnp.inf)


def keep_nucleus_sorted(best_MK: jax.Array, top_p: Number) -> jax.Array:
    """Of logits in falling order, each whose better ones together hold less than `top_p`; the others −inf.

    Of equals, in order of their ids, the last stay: so transformers has it, which cuts a rising order at its other end.

        probabilities [.5 .3 .1 .1], top_p .8 → [.5 .3]; top_p .85 → [.5 .3 – .1]
    """
    probs_MK = jax.nn.softmax(best_MK, axis=-1)
    before_MK = jnp.cumsum(probs_MK, axis=-1) - probs_MK
    place_K = jnp.arange(best_MK.shape[1])[None]
    # The best stays, however the sums round.
    short_MK = (before_MK < _column(top_p) - _ENOUGH) | (place_K == 0) | (_column(top_p) >= 1)
    count_M1 = short_MK.sum(axis=-1, keepdims=True)
    last_M1 = jnp.take_along_axis(best_MK, count_M1 - 1, axis=1)
    better_M1 = (best_MK > last_M1).sum(axis=-1, keepdims=True)
    upto_M1 = better_M1 + (best_MK == last_M1).sum(axis=-1, keepdims=True)  # the end of the equals
    kept_MK = (place_K < better_M1) | ((place_K >= upto_M1 - (count_M1 - better_M1)) & (place_K < upto_M1))
    return jnp.where(kept_MK, best_MK, -jnp.inf)


def keep_nucleus(logits_MV: jax.Array, top_p: Number) -> jax.Array:
    """The same over the whole vocabulary in any order: bisects for the highest threshold whose tokens hold `top_p`.

    Tokens as probable as the last one kept are all kept.
    """
    logprobs_MV = jax.nn.log_softmax(logits_MV, axis=-1)
    probs_MV = jnp.exp(logprobs_MV)
    best_M1 = logprobs_MV.max(axis=-1, keepdims=True)
    goal_M1 = jnp.broadcast_to(_column(top_p), best_M1.shape) - _ENOUGH

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_M1, high_M1 = bounds  # tokens over `low` hold top_p, those over `high` do not
        middle_M1 = (low_M1 + high_M1) / 2
        held_M1 = jnp.sum(jnp.where(logprobs_MV >= middle_M1, probs_MV, 0.0), axis=-1, keepdims=True)
        enough_M1 = held_M1 >= goal_M1
        return jnp.where(enough_M1, middle_M1, low_M1), jnp.where(enough_M1, high_M1, middle_M1)

    low_M1, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (best_M1 - 40.0, best_M1 + 1e-3))
    return jnp.where((logprobs_MV >= jnp.minimum(low_M1, best_M1)) | (_column(top_p) >= 1), logits_MV, -jnp.inf)


def keep_min_p(logits_MX: jax.Array, min_p: Number) -> jax.Array:
    """Tokens at least `min_p` times as probable as the best; the others −inf."""
    floor_M1 = logits_MX.max(axis=-1, keepdims=True) + jnp.log(_column(min_p))
    return jnp.where(logits_MX >= floor_M1, logits_MX, -jnp.inf)


def draw(logits_MX: jax.Array, uniforms_M: jax.Array) -> jax.Array:
    """One index a row with the softmax's probabilities: the first whose cumulative probability passes the uniform.

    An index of probability 0 is never drawn, however the cumulative sum rounds.
    """
    probs_MX = jax.nn.softmax(logits_MX, axis=-1)
    upto_MX = jnp.cumsum(probs_MX, axis=-1)
    passed_MX = (upto_MX > uniforms_M[:, None] * upto_MX[:, -1:]) & (probs_MX > 0)
    return jnp.where(passed_MX.any(axis=-1), passed_MX.argmax(axis=-1), probs_MX.argmax(axis=-1)).astype(jnp.int32)


def choose(
    logits_MV: jax.Array,
    uniforms_M: jax.Array,
    counts_M: jax.Array,
    seen_MV: jax.Array | None,
    *,
    sampling: Sampling,
    bucket: int | None,
    eos: int,
) -> jax.Array:
    """The next token of each row, int32.

    Args:
      logits_MV: the model's, float32; −inf is never chosen.
      uniforms_M: in [0, 1), one a row; greedy does not look at them.
      counts_M: tokens that the reply has so far.
      seen_MV: bool, for the repetition penalty; `None` where there is none.
      sampling: numbers are traced.
      bucket: of `top_k_bucket`.
      eos: the id that ends a reply.
    """
    if sampling.repetition_penalty is not None and seen_MV is not None:
        logits_MV = penalize(logits_MV, seen_MV, sampling.repetition_penalty)
    if sampling.min_new_tokens is not None:
        logits_MV = forbid_early_end(logits_MV, counts_M, sampling.min_new_tokens, eos)
    if sampling.temperature is None:
        return logits_MV.argmax(axis=-1).astype(jnp.int32)
    # The best is put at 0 first: divided by a tiny temperature, its rounding alone would overflow the softmax.
    logits_MV = logits_MV - logits_MV.max(axis=-1, keepdims=True)
    logits_MV = logits_MV / jnp.maximum(_column(sampling.temperature), _COLDEST)
    if bucket is None:
        if sampling.top_p is not None:
            logits_MV = keep_nucleus(logits_MV, sampling.top_p)
        if sampling.min_p is not None:
            logits_MV = keep_min_p(logits_MV, sampling.min_p)
        return draw(logits_MV, uniforms_M)
    best_MK, ids_MK = jax.lax.top_k(logits_MV, bucket)
    best_MK = keep_top_k(best_MK, sampling.top_k)
    if sampling.top_p is not None:
        best_MK = keep_nucleus_sorted(best_MK, sampling.top_p)
    if sampling.min_p is not None:
        best_MK = keep_min_p(best_MK, sampling.min_p)
    return jnp.take_along_axis(ids_MK, draw(best_MK, uniforms_M)[:, None], axis=1)[:, 0].astype(jnp.int32)


def _column(value: Number) -> jax.Array:
    """A scalar as (1, 1), a value per row as (M, 1)."""
    return jnp.asarray(value, jnp.float32).reshape(-1, 1)
