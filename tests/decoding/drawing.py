"""Logits to try the warpers on, and a choice at each of many uniforms.

Letters: M rows, V vocabulary, J draws of one row.
"""

import jax
import numpy as np

from dialogpt_jax.decoding.logits import by_row, choose

VOCAB, EOS = 24, 5


def draw_logits(rows, vocab=VOCAB, seed=0, scale=2.0):
    logits_MV = scale * np.random.default_rng(seed).standard_normal((rows, vocab)).astype(np.float32)
    if vocab > EOS:
        logits_MV[:, EOS] = logits_MV.max(axis=1) - 0.3  # EOS is likely, so that forbidding it shows
    return logits_MV


def softmax(x_V):
    e_V = np.exp(x_V - x_V.max())
    return e_V / e_V.sum()


choose_jitted = jax.jit(choose, static_argnames=("bucket", "eos"))


def choose_all(logits_V, uniforms_J, *, sampling, bucket=None, seen_V=None, count=1):
    """One row's token at each of many uniforms."""
    times = len(uniforms_J)
    drawn_J = choose_jitted(
        np.tile(logits_V, (times, 1)),
        np.asarray(uniforms_J, np.float32),
        np.full(times, count, np.int32),
        None if seen_V is None else np.tile(seen_V, (times, 1)),
        sampling=by_row(sampling, times),
        bucket=bucket,
        eos=EOS,
    )
    return np.asarray(drawn_J)
