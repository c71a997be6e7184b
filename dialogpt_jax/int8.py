"""A weight of 8-bit integers, as a value: what `quantize` makes, `matmul` multiplies by and a model directory holds.

NumPy's arrays or jax's; nothing here imports jax, for the converter reads such weights too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

LEVELS = 127  # −128 is left out, so that a weight and its negative are alike


class Int8Weight(NamedTuple):
    """A weight (*out, *inside), which is about scales · values · factors.

    Attributes:
      values: int8 (*out, *inside), −127 to 127.
      scales: float32 (*out).
      factors: float32 (*inside), what the input is multiplied by.
    """

    values: Any
    scales: Any
    factors: Any

    def reshape(self, *shape: int) -> "Int8Weight":
        """With other axes for the outputs, and those inside merged as the last."""
        return Int8Weight(self.values.reshape(shape), self.scales.reshape(shape[:-1]), self.factors.reshape(-1))


class Int8Rows(NamedTuple):
    """Rows of numbers, which are about scales · values: what a cache of 8 bits holds.

    Attributes:
      values: int8 (…, K), −127 to 127.
      scales: float32 (…, 1).
    """

    values: Any
    scales: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


def check_trainable(params: Any) -> None:
    """Whether parameters can be trained, or teach.

    Raises:
      ValueError: they are int8, through which no gradient flows.
    """
    if is_int8(params):
        raise ValueError(
            "the parameters are int8, and training needs floating ones: load the float model, or make one of this, "
            "`dialogpt convert INT8_DIR DIR --dtype float32`"
        )


def dtype_name(params: Any) -> str:
    """The dtype of a model's weights, for a person."""
    return "int8" if is_int8(params) else str(params["wte"]["embedding"].dtype)


def is_int8(params: Any) -> bool:
    """Whether a tree of parameters holds an `Int8Weight`."""
    if isinstance(params, Mapping):
        return any(map(is_int8, params.values()))
    return isinstance(params, Int8Weight)
