"""What a reply must, may and may not say: logits and the reply so far in, logits out; each a pure function over rows.

    ─logit bias→ ─repetition, presence, frequency, DRY→ ─no repeated n-gram→ ─bad words→ ─no EOS yet→ ─forced→
    ─length decay→ ─suppressed→ ─functions of the caller's→         then temperature and the rest, in `logits.py`

The order is transformers' (`generation/utils.py`, `_get_logits_processor`), presence, frequency and DRY, which it has not,
with their kin. What is off is absent from the program. Nothing but the reply so far is carried from step to step: so a
beam, a drafted token or a row that comes and goes needs nothing of a processor.

Of a step of GPT-2 small (float32, 2 cores of a Zen 5 EPYC, V 50,304, `dialogpt bench processors`) each of these takes under
1 %, at one row and at 8. The costliest of `logits.py`: typical 2.5 % at one row and 5.6 % at 8, nucleus without top-k 1.7 %
and 5.5 %, eta 1.2 % and 0.9 %, XTC 0.6 % and 0.2 %.

Letters: M rows (all candidates of all dialogues), V vocabulary (padded), R reply slots, T context tokens, S = T + R or R,
W words, L tokens of the longest word, J forced tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dialogpt_jax.arguments import shown
from dialogpt_jax.decoding.sampling import DRY_ALLOWED_LENGTH, DRY_BASE, Number, Sampling, Scope

NO_TOKEN = -1  # stands where a list, a turn or a reply has no token
_LONGEST_REPEAT = 50  # to which DRY counts, as text-generation-webui does


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Words:
    """Lists of ids with a number each, the same for every row; `NO_TOKEN` fills them up in front."""

    ids_MWL: jax.Array
    values_MW: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLists:
    """The lists of a `Sampling` as arrays, once a row; `None` where there is none.

    Attributes:
      biases: what is added to the last id of each list where the reply ends in the others.
      bad_words: the same, −inf.
      suppressed_MW, begin_MW: ids that never come, or not first.
      forced_MJ: ids that the reply begins with.
      breaks_MV: bool, the ids across which no repeat goes, for DRY.
    """

    biases: Words | None = None
    bad_words: Words | None = None
    suppressed_MW: jax.Array | None = None
    begin_MW: jax.Array | None = None
    forced_MJ: jax.Array | None = None
    breaks_MV: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReplyState:
    """What a processor sees of each row.

    Attributes:
      tokens_MR: int32, the reply so far; EOS where nothing is written.
      counts_M: int32, how many of them are written.
      limits_M: int32, the most tokens that the reply may get.
      history: int32 (M, T) of each scope that is looked at, and "context" where there is a function of the caller's: the
        context's tokens, put to the right; `NO_TOKEN` in front, and for those out of scope.
      lists: the lists of the sampling.
      eos: static, the id that ends a reply.
    """

    tokens_MR: jax.Array
    counts_M: jax.Array
    limits_M: jax.Array
    history: dict[str, jax.Array]
    lists: TokenLists
    eos: int = dataclasses.field(metadata={"static": True})


def process(
    logits_MV: jax.Array, state: ReplyState, *, sampling: Sampling, processors: Sequence[Any] = ()
) -> jax.Array:
    """The logits after all that is on, in the order above.

    Args:
      logits_MV: the model's, float32.
      state: of each row.
      sampling: numbers are traced.
      processors: functions of the caller's.
    """
    lists, eos, counts_M = state.lists, state.eos, state.counts_M
    if lists.biases is not None:
        logits_MV = add_biases(logits_MV, state, lists.biases)
    penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    if any(number is not None for number in penalties):
        seen_MS, _ = said(state, sampling.penalty_scope)
        if sampling.repetition_penalty is not None:
            logits_MV = penalize(logits_MV, seen_MS, sampling.repetition_penalty)
        if sampling.presence_penalty is not None:
            logits_MV = lower_seen(logits_MV, seen_MS, sampling.presence_penalty)
        if sampling.frequency_penalty is not None:
            logits_MV = lower_each_time(logits_MV, seen_MS, sampling.frequency_penalty)
    if sampling.dry_multiplier is not None:
        logits_MV = lower_repeats(logits_MV, state, sampling)
    if sampling.no_repeat_ngram is not None:
        logits_MV = forbid_repeated(logits_MV, *said(state, sampling.ngram_scope), sampling.no_repeat_ngram)
    if lists.bad_words is not None:
        logits_MV = add_biases(logits_MV, state, lists.bad_words)
    if sampling.min_new_tokens is not None:
        logits_MV = forbid_early_end(logits_MV, counts_M, sampling.min_new_tokens, eos)
    if lists.forced_MJ is not None or sampling.forced_end:
        logits_MV = force(logits_MV, forced_now(state, sampling.forced_end))
    if sampling.decay_factor is not None:
        logits_MV = raise_end(logits_MV, counts_M, sampling.decay_start, sampling.decay_factor, eos)
    if lists.suppressed_MW is not None:
        logits_MV = _put(logits_MV, lists.suppressed_MW, -jnp.inf)
    if lists.begin_MW is not None:
        logits_MV = _put(logits_MV, jnp.where(counts_M[:, None] == 0, lists.begin_MW, NO_TOKEN), -jnp.inf)
    for function in processors:
        logits_MV = _checked(function(logits_MV, state), logits_MV, function)
    return logits_MV


def said(state: ReplyState, scope: Scope) -> tuple[jax.Array, jax.Array]:
    """What was said within a scope, tokens_MS, and how many columns of it are filled, M; `NO_TOKEN` where there is none.

    context [a b EOS], reply so far [x y], 4 slots for each:   "context"  [– a b EOS x y – –], 6
    """
    real_MR = jnp.arange(state.tokens_MR.shape[1])[None] < state.counts_M[:, None]
    reply_MR = jnp.where(real_MR, state.tokens_MR, NO_TOKEN)
    if scope == "reply":
        return reply_MR, state.counts_M
    before_MT = state.history[scope]
    return jnp.concatenate([before_MT, reply_MR], axis=1), before_MT.shape[1] + state.counts_M


def add_biases(logits_MV: jax.Array, state: ReplyState, words: Words) -> jax.Array:
    """Adds each word's number to the logit of its last token, where the reply ends in the tokens before it.

    words [7 8 9], reply so far [… 7 8]:   the logit of 9
    """
    before = words.ids_MWL.shape[2] - 1
    columns_ML = state.counts_M[:, None] - before + jnp.arange(before)[None]
    last_ML = jnp.take_along_axis(state.tokens_MR, jnp.maximum(columns_ML, 0), axis=1)
    last_ML = jnp.where(columns_ML >= 0, last_ML, NO_TOKEN - 1)
    front_MWL = words.ids_MWL[..., :-1]
    fits_MW = ((front_MWL == last_ML[:, None]) | (front_MWL == NO_TOKEN)).all(axis=-1)
    return _at(logits_MV, words.ids_MWL[..., -1]).add(jnp.where(fits_MW, words.values_MW, 0.0), mode="drop")


def penalize(logits_MV: jax.Array, seen_MS: jax.Array, penalty: Number) -> jax.Array:
    """Makes seen tokens less likely (a penalty over 1), whatever the sign of their logit."""
    found_MS = _logits_of(logits_MV, seen_MS)
    lower_MS = jnp.where(found_MS > 0, found_MS / column(penalty), found_MS * column(penalty))
    return _put(logits_MV, seen_MS, lower_MS)


def lower_seen(logits_MV: jax.Array, seen_MS: jax.Array, penalty: Number) -> jax.Array:
    """Takes the penalty from the logit of each token that was seen, once."""
    return _put(logits_MV, seen_MS, _logits_of(logits_MV, seen_MS) - column(penalty))


def lower_each_time(logits_MV: jax.Array, seen_MS: jax.Array, penalty: Number) -> jax.Array:
    """Takes the penalty from the logit of each token for each time that it was seen."""
    return _at(logits_MV, seen_MS).add(jnp.broadcast_to(-column(penalty), seen_MS.shape), mode="drop")


def forbid_repeated(logits_MV: jax.Array, said_MS: jax.Array, ends_M: jax.Array, size: Number) -> jax.Array:
    """Forbids each token that would say so many tokens in a row again.

        said [a b c a b], size 3:   c is forbidden, for "a b c" was said; size 2: c too; size 1: a, b and c

    Source: transformers' `NoRepeatNGramLogitsProcessor`. Loops over the size, not over what was said.
    """
    size_M1 = column(size)
    none_M1 = jnp.full((said_MS.shape[0], 1), NO_TOKEN, said_MS.dtype)

    def compare(back: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        before_MS, fits_MS = carry  # the token so far before each; whether those nearer are those nearer the end
        before_MS = jnp.concatenate([none_M1, before_MS[:, :-1]], axis=1)
        place_M1 = (ends_M - back)[:, None]
        last_M1 = jnp.take_along_axis(said_MS, jnp.maximum(place_M1, 0), axis=1)
        same_MS = (before_MS == last_M1) & (last_M1 != NO_TOKEN) & (place_M1 >= 0)
        return before_MS, fits_MS & (same_MS | (back >= size_M1))

    longest = jnp.minimum(size_M1.max(), said_MS.shape[1] + 1).astype(jnp.int32)
    _, fits_MS = jax.lax.fori_loop(1, longest, compare, (said_MS, said_MS != NO_TOKEN))
    return _put(logits_MV, jnp.where(fits_MS, said_MS, NO_TOKEN), -jnp.inf)


def lower_repeats(logits_MV: jax.Array, state: ReplyState, sampling: Sampling) -> jax.Array:
    """Lowers each token that would carry on a repeat, by multiplier · base^(n − allowed length) of the longest one, n.

        said [a b c c b c y a b c]:   c follows "a b c", n 3; y follows "b c", n 2; b follows "c", n 1

    Source: text-generation-webui's `DRYLogitsProcessor` and llama.cpp's `llama_sampler_dry_apply`. Loops over the length of
    the longest repeat, not over what was said.
    """
    base = DRY_BASE if sampling.dry_base is None else sampling.dry_base
    allowed = DRY_ALLOWED_LENGTH if sampling.dry_allowed_length is None else sampling.dry_allowed_length
    said_MS, ends_M = said(state, sampling.dry_scope)
    breaks_MS = (said_MS == NO_TOKEN) | (said_MS == state.eos)
    if state.lists.breaks_MV is not None:
        breaks_MS |= jnp.take_along_axis(state.lists.breaks_MV, jnp.maximum(said_MS, 0), axis=1)
    if sampling.dry_range is not None:
        breaks_MS |= jnp.arange(said_MS.shape[1])[None] < ends_M[:, None] - column(sampling.dry_range)
    words_MS = jnp.where(breaks_MS, NO_TOKEN, said_MS)
    none_M1 = jnp.full((said_MS.shape[0], 1), NO_TOKEN, said_MS.dtype)
    Carry = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

    def compare(carry: Carry) -> Carry:
        back, before_MS, fits_MS, lengths_MS = carry  # before each, the token so far back; whether all nearer ones fit
        before_MS = jnp.concatenate([none_M1, before_MS[:, :-1]], axis=1)
        place_M1 = (ends_M - back)[:, None]
        last_M1 = jnp.take_along_axis(words_MS, jnp.maximum(place_M1, 0), axis=1)
        fits_MS &= (before_MS == last_M1) & (last_M1 != NO_TOKEN) & (place_M1 >= 0)
        return back + 1, before_MS, fits_MS, lengths_MS + fits_MS

    start = (jnp.int32(1), words_MS, words_MS != NO_TOKEN, jnp.zeros_like(words_MS))
    more = jax.lax.while_loop(lambda carry: (carry[0] <= _LONGEST_REPEAT) & carry[2].any(), compare, start)
    over_MS = more[3] - column(allowed)
    # So that no multiplier makes an infinity of it.
    penalty_MS = column(sampling.dry_multiplier) * jnp.exp(jnp.minimum(over_MS * jnp.log(column(base)), 60.0))
    lower_MS = _logits_of(logits_MV, said_MS) - penalty_MS
    return _at(logits_MV, jnp.where(over_MS >= 0, words_MS, NO_TOKEN)).min(lower_MS, mode="drop")


def forbid_early_end(logits_MV: jax.Array, counts_M: jax.Array, minimum: Number, eos: int) -> jax.Array:
    """No EOS while the reply has fewer than `minimum` tokens."""
    early_M1 = counts_M[:, None] < column(minimum)
    return jnp.where(early_M1 & (jnp.arange(logits_MV.shape[1])[None] == eos), -jnp.inf, logits_MV)


def forced_now(state: ReplyState, forced_end: bool) -> jax.Array:
    """The token that must come next, M; `NO_TOKEN` where any may."""
    forced_M = jnp.full_like(state.counts_M, NO_TOKEN)
    if state.lists.forced_MJ is not None:
        last = state.lists.forced_MJ.shape[1] - 1
        column_M1 = jnp.minimum(state.counts_M, last)[:, None]
        forced_M = jnp.take_along_axis(state.lists.forced_MJ, column_M1, axis=1)[:, 0]
        forced_M = jnp.where(state.counts_M <= last, forced_M, NO_TOKEN)
    if forced_end:
        most_M = jnp.minimum(state.limits_M, state.tokens_MR.shape[1])
        forced_M = jnp.where(state.counts_M == most_M - 1, state.eos, forced_M)
    return forced_M


def force(logits_MV: jax.Array, forced_M: jax.Array) -> jax.Array:
    """Only the forced token, its logit 0, where there is one."""
    forced_M1 = forced_M[:, None]
    only_MV = jnp.where(jnp.arange(logits_MV.shape[1])[None] == forced_M1, 0.0, -jnp.inf)
    return jnp.where(forced_M1 == NO_TOKEN, logits_MV, only_MV)


def raise_end(logits_MV: jax.Array, counts_M: jax.Array, start: Number, factor: Number, eos: int) -> jax.Array:
    """Adds |logit| · (factor^n − 1) to that of EOS at the n-th token after the first `start`.

    start 2, factor 2:   tokens 0 1 2 as they are, 3 (n = 1) |logit|, 4 (n = 2) 3 · |logit|

    Source: transformers' `ExponentialDecayLengthPenalty`.
    """
    over_M = jnp.maximum(counts_M.astype(jnp.float32) - column(start)[:, 0], 0.0)
    end_M = logits_MV[:, eos]
    more_M = jnp.where(jnp.isfinite(end_M), jnp.abs(end_M) * (column(factor)[:, 0] ** over_M - 1.0), 0.0)
    return logits_MV.at[:, eos].add(more_M)


def column(value: Number) -> jax.Array:
    """A scalar as (1, 1), a value per row as (M, 1)."""
    return jnp.asarray(value, jnp.float32).reshape(-1, 1)


def _at(logits_MV: jax.Array, ids_MX: jax.Array) -> Any:
    """Where ids stand, `NO_TOKEN` nowhere: past the end, for a negative index would count from there."""
    rows_M1 = jnp.arange(logits_MV.shape[0])[:, None]
    return logits_MV.at[rows_M1, jnp.where(ids_MX == NO_TOKEN, logits_MV.shape[1], ids_MX)]


def _put(logits_MV: jax.Array, ids_MX: jax.Array, values: jax.Array | float) -> jax.Array:
    return _at(logits_MV, ids_MX).set(values, mode="drop")


def _logits_of(logits_MV: jax.Array, ids_MX: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits_MV, jnp.maximum(ids_MX, 0), axis=1)


def _checked(got: Any, logits_MV: jax.Array, function: Any) -> jax.Array:
    if not isinstance(got, jax.Array) or (got.shape, got.dtype) != (logits_MV.shape, logits_MV.dtype):
        name = getattr(function, "__name__", getattr(getattr(function, "func", None), "__name__", "a function"))
        given = f"{got.dtype} {got.shape}" if isinstance(got, jax.Array) else shown(got)
        raise ValueError(f"{name} of processors gave {given}; it must give logits, {logits_MV.dtype} {logits_MV.shape}")
    return got
