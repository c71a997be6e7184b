"""Logits to try the warpers on, and a choice at each of many uniforms.

Letters: M rows, V vocabulary, J draws of one row.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax.decoding.logits import by_row, choose
from dialogpt_jax.decoding.processors import NO_TOKEN, ReplyState, TokenLists

VOCAB, EOS = 24, 5


def draw_logits(rows, vocab=VOCAB, seed=0, scale=2.0):
    logits_MV = scale * np.random.default_rng(seed).standard_normal((rows, vocab)).astype(np.float32)
    if vocab > EOS:
        logits_MV[:, EOS] = logits_MV.max(axis=1) - 0.3  # EOS is likely, so that forbidding it shows
    return logits_MV


def softmax(x_V):
    e_V = np.exp(x_V - x_V.max())
    return e_V / e_V.sum()


choose_jitted = jax.jit(choose, static_argnames="bucket")


def state_of(counts_M, seen_MV=None, *, slots=4, eos=EOS):
    """A reply of so many tokens, about which nothing is said; seen are some ids of the context."""
    rows = len(counts_M)
    history = {} if seen_MV is None else {"context": jnp.where(seen_MV, jnp.arange(seen_MV.shape[1])[None], NO_TOKEN)}
    return ReplyState(
        tokens_MR=jnp.full((rows, slots), NO_TOKEN),
        counts_M=jnp.asarray(counts_M, jnp.int32),
        limits_M=jnp.full(rows, 99),
        history=history,
        lists=TokenLists(),
        eos=eos,
    )


def choose_all(logits_V, uniforms_J, *, sampling, bucket=None, seen_V=None, count=1):
    """One row's token at each of many uniforms."""
    times = len(uniforms_J)
    drawn_J, _ = choose_jitted(
        np.tile(logits_V, (times, 1)),
        np.asarray(uniforms_J, np.float32),
        state_of(np.full(times, count), None if seen_V is None else np.tile(seen_V, (times, 1))),
        sampling=by_row(dataclasses.replace(sampling, penalty_scope="context"), times),
        bucket=bucket,
    )
    return np.asarray(drawn_J)
