"""What a bot and a chat share: the defaults, checks of what a caller gives, and the lengths that programs are made for.

Nothing here imports jax, for the help of a command shows the defaults.
"""

import dataclasses
import logging
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from dialogpt_jax.arguments import MOST, as_whole_number, shown
from dialogpt_jax.decoding.sampling import GREEDY, NUMBERS, Sampling

# The temperature by the marks of the bundled model's replies: see the table in its card. So low, every sixteenth reply
# would go round in circles ("I have a cat and a cat"), if three tokens in a row might come again.
DEFAULT_SAMPLING = Sampling(temperature=0.3, top_k=50, top_p=0.9, no_repeat_ngram=3)
DEFAULT_MAX_NEW_TOKENS = 40
DEFAULT_SEED = 0

_log = logging.getLogger("dialogpt_jax")


def checked_length(max_new_tokens: int) -> int:
    """`max_new_tokens`, found sound."""
    return as_whole_number("max_new_tokens", max_new_tokens, least=1, most=MOST)


def sampling_for(sampling: Sampling | None, search: Any, rank: Any = None) -> Sampling:
    """A sampling, or what stands where none is given.

    A search (`None`: there is none) is greedy, unless told to draw; what is ranked is proposed as its rule wants it.
    """
    if sampling is not None:
        return sampling
    if rank is not None:
        return rank.proposed_by
    return DEFAULT_SAMPLING if search is None else GREEDY


def checked_sampling(sampling: Sampling, dialogues: int | None = None) -> Sampling:
    """A sampling whose values may differ from dialogue to dialogue, with those as arrays.

    Args:
      sampling: numbers, or arrays with value i for dialogue i.
      dialogues: how many there are; `None` for one alone, which takes a number, or an array that holds one.

    Raises:
      TypeError: it is no `Sampling`.
      ValueError: it has as many values as there are not dialogues.
    """
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling is {shown(sampling)}; give a Sampling, such as Sampling(temperature=0.7), or GREEDY")
    changed: dict[str, Any] = {}
    for name in NUMBERS:
        value = getattr(sampling, name)
        if np.ndim(value) == 0:
            continue
        values = np.asarray(value)
        if dialogues is None and values.size == 1:
            values = values.reshape(())
        elif values.shape != (dialogues,):
            give = "one number, as there is one dialogue"
            if dialogues is not None:
                give = f"one number, or one for each of the {dialogues} dialogues"
            raise ValueError(f"{name} has values of the shape {values.shape}; give {give}")
        changed[name] = values
    return dataclasses.replace(sampling, **changed) if changed else sampling


def rows_of_sampling(sampling: Sampling, rows: Sequence[int]) -> Sampling:
    """The sampling of some of the dialogues that a sampling is for: value i of the result is value `rows[i]`."""
    values = {name: getattr(sampling, name) for name in NUMBERS}
    return dataclasses.replace(sampling, **{k: v[np.asarray(rows)] for k, v in values.items() if np.ndim(v)})


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
        _log.warning("drew seed %d; the same seed repeats this", seed)
    return as_whole_number("seed", seed, least=0, most=2**63 - 1)
