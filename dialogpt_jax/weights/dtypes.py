"""A dtype as a user names it in, a NumPy dtype out; a tree of arrays in, the same in another dtype out."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import ml_dtypes  # noqa: F401  (NumPy then knows bfloat16 by its name)
import numpy as np

from dialogpt_jax.arguments import shown
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.mapping import NonFiniteWeights
from dialogpt_jax.int8 import is_int8

if TYPE_CHECKING:  # else where it is used, for the help of a command names the dtypes
    import jax

DTypeName = Literal["float32", "bfloat16", "float16", "int8"]  # that a model may be stored and computed in
DTYPES = get_args(DTypeName)


def parse_dtype(dtype: Any) -> np.dtype:
    """A dtype as the user names it.

    Raises:
      ValueError: not one of `DTYPES`.
    """
    try:
        parsed = np.dtype(dtype)
    except TypeError:
        parsed = None
    if dtype is None or parsed is None or parsed.name not in DTYPES:
        raise ValueError(f"dtype is {shown(dtype)}; known: {', '.join(DTYPES)}")
    return parsed


def give_to_jax(array: np.ndarray) -> "jax.Array":
    """The array as jax's, which may keep its memory; a copy if that is a mapped file's, which may change.

    NumPy copies: jax's own copy of a host's array is a program for each shape.
    """
    import jax

    return jax.device_put(array if array.flags.owndata else np.array(array))


def cast(params: Any, dtype: np.dtype, *, to: Callable[[np.ndarray], Any] = give_to_jax) -> Any:
    """Every array in `dtype`, made by `to`: jax arrays by default.

    Warns:
      NonFiniteWeights: a finite weight is out of the new dtype's range.
    """
    import jax

    lost = 0

    def cast_one(leaf: Any) -> Any:
        nonlocal lost
        old = np.asarray(leaf)
        if old.dtype == dtype:
            return to(old)
        with np.errstate(over="ignore", invalid="ignore"):
            new = old.astype(dtype, order="C")  # as jax lays it: otherwise it copies a transposed one once more
        if dtype == np.float16 or old.dtype.itemsize == 8:  # the only ways to a smaller range
            lost += int(np.count_nonzero(np.isfinite(old) & ~np.isfinite(new)))
        return to(new)

    out = jax.tree.map(cast_one, params)
    if lost:
        warnings.warn(f"{lost} weights are out of {dtype}'s range and became infinite", NonFiniteWeights, stacklevel=2)
    return out


def in_dtype(params: Any, config: GPT2Config, dtype: np.dtype, *, to: Callable[[np.ndarray], Any] = give_to_jax) -> Any:
    """Parameters in a dtype that a user names, as `cast` makes them; in int8 quantised, with the rest in float32.

    Those that are int8 already stay as they are in int8, and become float ones in another dtype.

    Warns:
      NonFiniteWeights: as `cast`.
    """
    import jax

    from dialogpt_jax.quantization import dequantize, quantize

    if dtype != np.int8:
        return cast(dequantize(params, config) if is_int8(params) else params, dtype, to=to)
    if is_int8(params):
        return jax.tree.map(lambda leaf: to(np.asarray(leaf)), params)

    def keep(leaf: Any) -> Any:
        return to(np.asarray(leaf, np.int8 if leaf.dtype == np.int8 else np.float32))

    return jax.tree.map(keep, quantize(params))
