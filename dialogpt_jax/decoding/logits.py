"""Logits to a token: processors (`processors.py`), then warpers, each a pure function over rows, and the draw.

    logits_MV ─processors→ ─temperature→ ─top-nσ→ ─top-k→ ─top-p→ ─min-p→ ─typical→ ─epsilon→ ─eta→ ─XTC→
              one uniform → token

Order and rules are transformers' (`generation/logits_process.py`); of those it has not, top-nσ stands first, as it looks
at all logits, and XTC last, as in text-generation-webui. Nothing here sorts the vocabulary, which would cost more than the
model: top-k takes a static number of the best and cuts at its own k inside; nucleus (without top-k) and typical find their
threshold by bisection; a draw is one uniform and an inverse CDF.

Letters: M rows (all candidates of all dialogues), V vocabulary (padded), K the best few of it, X either.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax.arguments import shown
from dialogpt_jax.decoding.best import best
from dialogpt_jax.decoding.processors import ReplyState, column, process
from dialogpt_jax.decoding.sampling import (
    LISTS,
    NUMBERS,
    STATIC,
    TOP_K_BUCKETS,
    XTC_THRESHOLD,
    Number,
    Sampling,
    is_number,
)
from dialogpt_jax.token_arrays import Array, array_library

# Halvings of a log-probability interval 40 wide: the threshold is known to 4e-8, float32's own precision near 1.
_BISECTIONS = 30
# A set that holds all of `top_p` but this is enough: a few roundings of sums near 1, so that .5 + .3 is .8.
_ENOUGH = 3e-7
# A colder temperature is taken for this: no logit over it is beyond float32, and a lead of 1e-6 decides.
_COLDEST = 1e-8
_XTC = 1  # what is folded into a token's key for the draw beside the token's own

jax.tree_util.register_dataclass(Sampling, data_fields=NUMBERS, meta_fields=STATIC)


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

    Its lists are left out: `token_lists` makes arrays of them, for another list is no other program either.

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

    none: dict[str, Any] = dict.fromkeys(LISTS, ())
    return jax.tree_util.tree_map_with_path(each, dataclasses.replace(sampling, **none))


def keep_top_k(best_MK: jax.Array, top_k: Number) -> jax.Array:
    """Of logits in falling order, those at least as high as the k-th; the others −inf."""
    last_M1 = jnp.clip(jnp.broadcast_to(column(top_k), (best_MK.shape[0], 1)).astype(jnp.int32), 1, best_MK.shape[1])
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
    short_MK = (before_MK < column(top_p) - _ENOUGH) | (place_K == 0) | (column(top_p) >= 1)
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
    goal_M1 = jnp.broadcast_to(column(top_p), best_M1.shape) - _ENOUGH

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_M1, high_M1 = bounds  # tokens over `low` hold top_p, those over `high` do not
        middle_M1 = (low_M1 + high_M1) / 2
        held_M1 = jnp.sum(jnp.where(logprobs_MV >= middle_M1, probs_MV, 0.0), axis=-1, keepdims=True)
        enough_M1 = held_M1 >= goal_M1
        return jnp.where(enough_M1, middle_M1, low_M1), jnp.where(enough_M1, high_M1, middle_M1)

    low_M1, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (best_M1 - 40.0, best_M1 + 1e-3))
    return jnp.where((logprobs_MV >= jnp.minimum(low_M1, best_M1)) | (column(top_p) >= 1), logits_MV, -jnp.inf)


def keep_min_p(logits_MX: jax.Array, min_p: Number) -> jax.Array:
    """Tokens at least `min_p` times as probable as the best; the others −inf."""
    floor_M1 = logits_MX.max(axis=-1, keepdims=True) + jnp.log(column(min_p))
    return jnp.where(logits_MX >= floor_M1, logits_MX, -jnp.inf)


def keep_top_n_sigma(logits_MV: jax.Array, sigmas: Number) -> jax.Array:
    """Tokens whose logit is within so many standard deviations (of all that are possible) of the best; the others −inf."""
    possible_MV = jnp.isfinite(logits_MV)
    best_M1, count_M1 = logits_MV.max(axis=-1, keepdims=True), possible_MV.sum(axis=-1, keepdims=True)
    below_MV = jnp.where(possible_MV, logits_MV - best_M1, 0.0)
    mean_M1 = below_MV.sum(axis=-1, keepdims=True) / count_M1
    square_MV = jnp.where(possible_MV, (below_MV - mean_M1) ** 2, 0.0)
    deviation_M1 = jnp.sqrt(square_MV.sum(axis=-1, keepdims=True) / count_M1)
    return jnp.where(logits_MV >= best_M1 - column(sigmas) * deviation_M1, logits_MV, -jnp.inf)


def keep_typical(logits_MX: jax.Array, mass: Number) -> jax.Array:
    """The tokens whose surprise is nearest to the expected one, so many that they hold `mass`; the others −inf.

    Those as near as the last one kept are all kept. The best token may go.
    """
    logprobs_MX = jax.nn.log_softmax(logits_MX, axis=-1)
    probs_MX = jnp.exp(logprobs_MX)
    expected_M1 = entropy(logits_MX)
    away_MX = jnp.abs(-logprobs_MX - expected_M1)
    goal_M1 = jnp.broadcast_to(column(mass), expected_M1.shape) - _ENOUGH

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_M1, high_M1 = bounds  # tokens up to `high` away hold the mass, those up to `low` do not
        middle_M1 = (low_M1 + high_M1) / 2
        enough_M1 = jnp.sum(jnp.where(away_MX <= middle_M1, probs_MX, 0.0), axis=-1, keepdims=True) >= goal_M1
        return jnp.where(enough_M1, low_M1, middle_M1), jnp.where(enough_M1, middle_M1, high_M1)

    # What is 40 away is as good as impossible, for the expected surprise is at most log V, about 11.
    _, high_M1 = jax.lax.fori_loop(
        0, _BISECTIONS, halve, (jnp.full_like(expected_M1, -1e-3), jnp.full_like(expected_M1, 40.0))
    )
    return jnp.where((away_MX <= high_M1) | (column(mass) >= 1), logits_MX, -jnp.inf)


def keep_epsilon(logits_MX: jax.Array, epsilon: jax.Array | Number) -> jax.Array:
    """Tokens at least so probable, and the best; the others −inf."""
    best_M1 = logits_MX.max(axis=-1, keepdims=True)
    kept_MX = jax.nn.softmax(logits_MX, axis=-1) >= column(epsilon)
    return jnp.where(kept_MX | (logits_MX == best_M1), logits_MX, -jnp.inf)


def keep_eta(logits_MX: jax.Array, epsilon: Number) -> jax.Array:
    """As `keep_epsilon` with the smaller of ε and √ε · exp(−entropy)."""
    return keep_epsilon(
        logits_MX, jnp.minimum(column(epsilon), jnp.sqrt(column(epsilon)) * jnp.exp(-entropy(logits_MX)))
    )


def exclude_top_choices(logits_MX: jax.Array, threshold: Number, now_M: jax.Array, end_MX: jax.Array) -> jax.Array:
    """Where it is time: of the tokens at least so probable only the least probable (all, of equals); the others −inf.

        probabilities [.5 .3 .15 .05], threshold .1 → [– – .15 .05]; threshold .4 → [.5 .3 .15 .05]

    Source: llama.cpp's `llama_sample_xtc_apply`; nothing goes where the end of the reply were to go, as in
    text-generation-webui's `XTCLogitsWarper`.

    Args:
      now_M: bool, whether it is this row's time.
      end_MX: bool, where EOS stands.
    """
    probs_MX = jax.nn.softmax(logits_MX, axis=-1)
    likely_MX = probs_MX >= column(threshold)
    least_M1 = jnp.where(likely_MX, probs_MX, 2.0).min(axis=-1, keepdims=True)
    gone_MX = likely_MX & (probs_MX > least_M1)
    gone_MX &= (now_M & ~(gone_MX & end_MX).any(axis=-1))[:, None]
    return jnp.where(gone_MX, -jnp.inf, logits_MX)


def xtc_now(sampling: Sampling, keys_M: jax.Array, counts_M: jax.Array) -> jax.Array | None:
    """Whether top choices are excluded at each row's next token, by its own key; `None` where they never are."""
    if sampling.temperature is None or sampling.xtc_probability is None:
        return None

    def one(key: jax.Array, count: jax.Array) -> jax.Array:
        # A key of its own: the token itself is drawn with fold_in(key, count).
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, count), _XTC))

    return jax.vmap(one)(keys_M, counts_M) < column(sampling.xtc_probability)[:, 0]


def entropy(logits_MX: jax.Array) -> jax.Array:
    """The expected surprise of a draw, in nats, (M, 1)."""
    logprobs_MX = jax.nn.log_softmax(logits_MX, axis=-1)
    return -jnp.where(jnp.isfinite(logprobs_MX), jnp.exp(logprobs_MX) * logprobs_MX, 0.0).sum(axis=-1, keepdims=True)


def draw(logits_MX: jax.Array, uniforms_M: jax.Array) -> jax.Array:
    """One index a row with the softmax's probabilities: the first whose cumulative probability passes the uniform.

    An index of probability 0 is never drawn, however the cumulative sum rounds.
    """
    probs_MX = jax.nn.softmax(logits_MX, axis=-1)
    upto_MX = jnp.cumsum(probs_MX, axis=-1)
    passed_MX = (upto_MX > uniforms_M[:, None] * upto_MX[:, -1:]) & (probs_MX > 0)
    return jnp.where(passed_MX.any(axis=-1), best(passed_MX), best(probs_MX))


def warp(
    logits_MV: jax.Array,
    *,
    sampling: Sampling,
    bucket: int | None,
    eos: int,
    xtc_now_M: jax.Array | None = None,
    least: int = 1,
) -> tuple[jax.Array, jax.Array | None]:
    """Logits to draw from, and their ids: those of the best few with a bucket; all, `None`, without.

    Args:
      logits_MV: processed; −inf is never drawn.
      sampling: its temperature is on.
      bucket: of `top_k_bucket`.
      eos: the id that ends a reply.
      xtc_now_M: of `xtc_now`.
      least: so many of the best stay in any case: with 2, one that goes on.
    """
    # The best is put at 0 first: divided by a tiny temperature, its rounding alone would overflow the softmax.
    logits_MX = logits_MV - logits_MV.max(axis=-1, keepdims=True)
    logits_MX = logits_MX / jnp.maximum(column(sampling.temperature), _COLDEST)
    if sampling.top_n_sigma is not None:
        logits_MX = keep_top_n_sigma(logits_MX, sampling.top_n_sigma)
    ids_MX = None
    if bucket is not None:
        logits_MX, ids_MX = jax.lax.top_k(logits_MX, bucket)
    all_MX = logits_MX
    if bucket is not None:
        logits_MX = keep_top_k(logits_MX, sampling.top_k)
    if sampling.top_p is not None:
        nucleus = keep_nucleus if bucket is None else keep_nucleus_sorted
        logits_MX = nucleus(logits_MX, sampling.top_p)
    if sampling.min_p is not None:
        logits_MX = keep_min_p(logits_MX, sampling.min_p)
    if sampling.typical_p is not None:
        logits_MX = keep_typical(logits_MX, sampling.typical_p)
    if sampling.epsilon_cutoff is not None:
        logits_MX = keep_epsilon(logits_MX, sampling.epsilon_cutoff)
    if sampling.eta_cutoff is not None:
        logits_MX = keep_eta(logits_MX, sampling.eta_cutoff)
    if least > 1:
        floor_M1 = jax.lax.top_k(all_MX, least)[0][:, -1:]
        logits_MX = jnp.where(all_MX >= floor_M1, all_MX, logits_MX)
    if xtc_now_M is not None:
        end_MX = (jnp.arange(logits_MX.shape[1])[None] if ids_MX is None else ids_MX) == eos
        threshold = XTC_THRESHOLD if sampling.xtc_threshold is None else sampling.xtc_threshold
        logits_MX = exclude_top_choices(logits_MX, threshold, xtc_now_M, end_MX)
    return logits_MX, ids_MX


def choose(
    logits_MV: jax.Array,
    uniforms_M: jax.Array,
    state: ReplyState,
    *,
    sampling: Sampling,
    bucket: int | None,
    processors: Sequence[Any] = (),
    xtc_now_M: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The next token of each row, int32; and whether any was possible: else it means nothing.

    Args:
      logits_MV: the model's, float32; −inf is never chosen.
      uniforms_M: in [0, 1), one a row; greedy does not look at them.
      state: the reply so far.
      sampling: numbers are traced.
      bucket: of `top_k_bucket`.
      processors: functions of the caller's.
      xtc_now_M: of `xtc_now`.
    """
    logits_MV = process(logits_MV, state, sampling=sampling, processors=processors)
    possible_M = is_possible(logits_MV)
    if sampling.temperature is None:
        return best(logits_MV), possible_M
    logits_MX, ids_MX = warp(logits_MV, sampling=sampling, bucket=bucket, eos=state.eos, xtc_now_M=xtc_now_M)
    drawn_M = draw(logits_MX, uniforms_M)
    if ids_MX is not None:
        drawn_M = jnp.take_along_axis(ids_MX, drawn_M[:, None], axis=1)[:, 0].astype(jnp.int32)
    return drawn_M, possible_M


def is_possible(logits_MV: jax.Array) -> jax.Array:
    """Whether there is a token to choose: none is NaN or infinity, and one is not forbidden."""
    return jnp.isfinite(logits_MV.max(axis=-1))
