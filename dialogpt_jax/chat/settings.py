"""What a bot and a chat share: the defaults, how a seed becomes each row's key, and the lengths programs are made for."""

import logging
import secrets
from collections.abc import Sequence

import jax
import numpy as np

from dialogpt_jax.decoding.logits import Sampling

DEFAULT_SAMPLING = Sampling(temperature=0.7, top_k=50, top_p=0.9)
DEFAULT_MAX_NEW_TOKENS = 40

_log = logging.getLogger("dialogpt_jax")


def checked_length(max_new_tokens: int) -> int:
    """`max_new_tokens`, found sound."""
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; it must be a whole number, at least 1")
    return max_new_tokens


def few_buckets(size: int, most: int, least: int = 16) -> int:
    """The next of `least`, 4 · `least`, 16 · `least` …, at most `most`: coarser than `bucket_of`, for each is a program."""
    bucket = least
    while bucket < size:
        bucket *= 4
    return min(bucket, most)


def seed_or_drawn(seed: int | None) -> int:
    """The seed, or one drawn by the system and logged, so that the call can be repeated."""
    if seed is None:
        seed = secrets.randbits(32)
        _log.warning("drew seed %d; give seed=%d to repeat this", seed, seed)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}; it must be a whole number from 0 to 2^63 − 1, or None")
    return seed


def row_keys(
    seed: int, places: Sequence[int], turns: Sequence[int], attempts: Sequence[int] | None = None
) -> jax.Array:
    """One key a row: of the seed, its place in the caller's list, the turns of its dialogue, and which try this is."""
    words = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    attempts = [0] * len(places) if attempts is None else attempts
    return _row_keys(words, *(np.array(x, np.uint32) for x in (places, turns, attempts)))


@jax.jit
def _row_keys(words, places_B, turns_B, attempts_B):
    base = jax.random.fold_in(jax.random.key(words[0]), words[1])

    def fold(place, turn, attempt):
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(base, place), turn), attempt)

    return jax.vmap(fold)(places_B, turns_B, attempts_B)
