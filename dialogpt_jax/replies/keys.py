"""How a seed becomes keys: a seed and each row's place in, one key a row out."""

from collections.abc import Sequence

import jax
import numpy as np


def row_keys(
    seed: int, places: Sequence[int], turns: Sequence[int], attempts: Sequence[int] | None = None
) -> jax.Array:
    """One key a row: of the seed, its place in the caller's list, the turns of its dialogue, and which try this is."""
    words = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    attempts = [0] * len(places) if attempts is None else attempts
    return _row_keys(words, *(np.array(x, np.uint32) for x in (places, turns, attempts)))


@jax.jit
def _row_keys(words: jax.Array, places_B: jax.Array, turns_B: jax.Array, attempts_B: jax.Array) -> jax.Array:
    base = jax.random.fold_in(jax.random.key(words[0]), words[1])

    def fold(place, turn, attempt):
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(base, place), turn), attempt)

    return jax.vmap(fold)(places_B, turns_B, attempts_B)
