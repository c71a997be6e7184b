"""Tokens as people give them, as lists or anybody's arrays, to int32 arrays; what cannot be right, to one clear line.

Shapes and dtypes are always checked, values where they are at hand: under `jit`, `vmap` or a sharding over several machines
an array has none to look at, and goes through as it is.

Letters: B rows, T tokens.
"""

from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax.arguments import shown
from dialogpt_jax.config import GPT2Config

Array = np.ndarray | jax.Array


def as_float_dtype(name: str, value: Any) -> np.dtype:
    """A dtype of floating numbers, by its name or as NumPy's or jax's.

    Raises:
      TypeError: it is none.
    """
    try:
        dtype = jnp.dtype(value) if isinstance(value, str | type | np.dtype) else None
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} is {shown(value)}; give float32, bfloat16 or float16")
    return dtype


def as_key(name: str, value: Any) -> jax.Array:
    """One key of `jax.random`, of either kind.

    Raises:
      TypeError: it is none.
    """
    key = isinstance(value, jax.Array) and (
        value.ndim == 0
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        else (value.dtype, value.ndim) == ("uint32", 1)
    )
    if not key:
        raise TypeError(f"{name} is {shown(value)}; give a key, such as jax.random.key(0)")
    return value


def is_traced(value: Any) -> bool:
    """Whether a value is a stand-in for arrays to come, as under `jit`."""
    return isinstance(value, jax.core.Tracer)


def array_library(*arrays: Any) -> Any:
    """NumPy, which compiles nothing; `jax.numpy` where one of the arrays is traced."""
    return jnp if any(is_traced(x) for x in arrays) else np


def as_integers(name: str, value: Any, *, ndim: int) -> Array:
    """An array of whole numbers with so many axes, none of them 0: NumPy's int32, or as it is where it cannot be read.

    Raises:
      ValueError: names what was given, and the numbers.
    """
    array = value if _is_out_of_reach(value) else _on_host(name, value)
    axes = "one number for each row" if ndim == 1 else "(rows, tokens)" if ndim == 2 else "(rows, candidates, tokens)"
    if array.ndim != ndim or 0 in array.shape:
        raise ValueError(f"{name} have the shape {array.shape}; expected {axes}, none of them 0")
    if not jnp.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} are {array.dtype}; expected integers")
    if not isinstance(array, np.ndarray):
        return array.astype(jnp.int32)
    if array.size and not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31:
        raise ValueError(f"{name} run from {array.min()} to {array.max()}; they must fit int32")
    return array.astype(np.int32)


def as_tokens(config: GPT2Config, tokens: Any, lengths_B: Array | None = None, *, name: str = "tokens") -> Array:
    """Token ids, int32 (B, T), each an id of the vocabulary. Behind a row's length may stand anything, and comes out as 0.

    (Any id in range would do: but the embedding gives NaN out of range, and 0 · NaN poisons a masked sum.)

    Raises:
      ValueError: the shape is not (rows, tokens), these are not integers, or an id is outside the vocabulary.
    """
    tokens_BT = as_integers(name, tokens, ndim=2)
    if lengths_B is not None:
        library = array_library(tokens_BT, lengths_B)
        real_BT = library.arange(tokens_BT.shape[1])[None] < lengths_B[:, None]
        tokens_BT = library.where(real_BT, tokens_BT, 0)
    if isinstance(tokens_BT, np.ndarray):
        wrong = tokens_BT[(tokens_BT < 0) | (tokens_BT >= config.vocab_size)]
        if wrong.size:
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {config.vocab_size}")
    return tokens_BT


def as_lengths(name: str, value: Any, rows: int, *, least: int | Array, most: int | Array) -> Array:
    """A whole number for each row, int32 (B,), each within its limits.

    Raises:
      ValueError: not one for each row, or out of range.
    """
    lengths_B = as_integers(name, value, ndim=1)
    if lengths_B.shape != (rows,):
        raise ValueError(f"{rows} rows of tokens, and {name} of shape {lengths_B.shape}; give one for each row")
    if any(not isinstance(x, np.ndarray | int) for x in (lengths_B, least, most)):
        return lengths_B
    wrong = np.flatnonzero((lengths_B < least) | (lengths_B > most))
    if wrong.size:
        row = int(wrong[0])
        low, high = (int(np.broadcast_to(x, (rows,))[row]) for x in (least, most))
        span = f"{name} run from {lengths_B.min()} to {lengths_B.max()}"
        raise ValueError(f"{span}; that of row {row} is {lengths_B[row]}, it must be {low} to {high}")
    return lengths_B


def as_segments(value: Any, tokens_BT: Array) -> Array:
    """The number of each token's example within its row, int32 (B, T).

    Raises:
      ValueError: not one for each token, or out of range.
    """
    segments_BT = as_integers("segments", value, ndim=2)
    if segments_BT.shape != tokens_BT.shape:
        shapes = f"tokens are {tokens_BT.shape} and segments {segments_BT.shape}"
        raise ValueError(f"{shapes}; give the number of each token's example")
    if isinstance(segments_BT, np.ndarray) and segments_BT.min() < -1:
        raise ValueError(f"a segment is {segments_BT.min()}; they are numbered from 0, and a pad's is -1")
    return segments_BT


def check_width(config: GPT2Config, tokens_BT: Array) -> None:
    """Whether the model has a position for each token of a row.

    Raises:
      ValueError: it has not.
    """
    if tokens_BT.shape[1] > config.n_positions:
        raise ValueError(
            f"the rows have {tokens_BT.shape[1]} tokens; n_positions is {config.n_positions}: cut them, or leave out turns"
        )


def _is_out_of_reach(value: Any) -> TypeGuard[jax.Array]:
    return is_traced(value) or (isinstance(value, jax.Array) and not value.is_fully_addressable)


def _on_host(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
        return np.asarray(array.tolist()) if array.dtype == object else array  # as a Series of lists is
    except (ValueError, TypeError, OverflowError):
        raise ValueError(
            f"{name} are {shown(value)}; give an array or lists of one length, padded on the right"
        ) from None
