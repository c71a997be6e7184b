"""How a seed becomes keys: a seed and each row's place in, one key a row out.

They are those of `jax.random.key` and `fold_in`, made by NumPy: a program would be traced, lowered and compiled for each
number of rows, before the first reply of a process too.
"""

from collections.abc import Sequence

import jax
import numpy as np

# Threefry-2x32 with 20 rounds (Salmon et al. 2011): how far each rotates, and what joins the key.
_ROTATIONS, _PARITY = ((13, 15, 26, 6), (17, 29, 16, 24)), 0x1BD11BDA


def row_keys(
    seed: int, places: Sequence[int], turns: Sequence[int], attempts: Sequence[int] | None = None
) -> jax.Array:
    """One key a row: of the seed, its place in the caller's list, the turns of its dialogue, and which try this is."""
    rows = len(places)
    attempts = [0] * rows if attempts is None else attempts
    keys_B2 = np.array([[0, seed & 0xFFFFFFFF]] * rows, np.uint32).reshape(rows, 2)
    for data in ([seed >> 32] * rows, places, turns, attempts):
        keys_B2 = _fold_in(keys_B2, np.array(data, np.uint32).reshape(rows))
    return jax.random.wrap_key_data(jax.device_put(keys_B2), impl="threefry2x32")


def _fold_in(keys_B2: np.ndarray, data_B: np.ndarray) -> np.ndarray:
    """`jax.random.fold_in` of each row: (0, data) enciphered by its key."""
    schedule = (keys_B2[:, 0], keys_B2[:, 1], keys_B2[:, 0] ^ keys_B2[:, 1] ^ np.uint32(_PARITY))
    left_B, right_B = schedule[0].copy(), data_B + schedule[1]
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            left_B = left_B + right_B
            right_B = left_B ^ (right_B << np.uint32(turn) | right_B >> np.uint32(32 - turn))
        left_B = left_B + schedule[(group + 1) % 3]
        right_B = right_B + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return np.stack([left_B, right_B], axis=1)
