"""The matrix product that every layer is made of: rows and an output-first weight in, float32 out.

What is fast differs between platforms, dtypes, shapes and numbers of rows, and is chosen here and nowhere else: the order
of the operands, the padding of a single row, which axes stay apart. A stack of weights is a batch of products and not one
wider product, so that the axis which is divided among devices by heads stays whole on each.

Letters: M rows, I inside (contracted), O out, G weights of one shape that the same rows are multiplied by (as q, k and v).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from dialogpt_jax.int8 import LEVELS, Int8Rows, Int8Weight

_HALF = 128  # what the higher of two numbers of 8 bits counts
_FEW_QUERIES = 64  # so many are parted in two numbers of 8 bits
_WIDE = 8192  # outputs of a weight of 8 bits that are one product


def precision_of(x: jax.Array) -> jax.lax.Precision | None:
    """Float32 means float32 on every platform: a TPU would multiply in bfloat16 by default."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def matmul(x_MI: jax.Array, w_OI: jax.Array | Int8Weight) -> jax.Array:
    """x Wᵀ, accumulated and returned in float32, (M, O); a stack of weights (G, O, I) gives (G, M, O)."""
    if isinstance(w_OI, Int8Weight):
        return jax.lax.platform_dependent(x_MI, w_OI, cpu=_int8_on_cpu, default=_dequantized)
    return _float_product(x_MI, w_OI)


@jax.custom_vjp
def _float_product(x_MI: jax.Array, w_OI: jax.Array) -> jax.Array:
    """The product of floating numbers.

    The rule for its gradient keeps both products of the backward pass in the operands' dtype; jax's own would multiply
    the float32 cotangent in float32. On CPU a bfloat16 product that returns float32 is also three to four times as fast
    as one that returns bfloat16.
    """
    return jax.lax.platform_dependent(x_MI, w_OI, cpu=_on_cpu, default=_rows_first)


def _on_cpu(x_MI: jax.Array, w_OI: jax.Array) -> jax.Array:
    """The form of the product that XLA's CPU compiler makes the most of."""
    rows, out, inside = x_MI.shape[0], *w_OI.shape[-2:]
    if rows == 1 and x_MI.dtype != jnp.float32:
        return _one_row_as_two(_on_cpu, x_MI, w_OI)
    if w_OI.dtype == jnp.int8 and w_OI.ndim == 2 and (parts := _parts(out)) > 1:
        y_GMO = _on_cpu(x_MI, w_OI.reshape(parts, -1, inside))
        return y_GMO.swapaxes(0, 1).reshape(rows, out)
    if weight_first(x_MI.dtype, rows, out, inside):
        # The barrier keeps the order: the simplifier would turn the operands to save the transposition of the result.
        y_OM = jax.lax.optimization_barrier(_contract(w_OI, x_MI) if w_OI.ndim == 2 else _stacked(w_OI, x_MI))
        return y_OM.swapaxes(-1, -2)
    return _rows_first(x_MI, w_OI)


def weight_first(dtype: jax.typing.DTypeLike, rows: int, out: int, inside: int) -> bool:
    """Whether a product on CPU has its weight as the first operand, which spares packing the weight at every call.

    Measured on 2 cores of a Zen 5 with jax 0.10.2, each weight read from memory, as speed against the rows first:

        rows                  2     4     8    16    32    64
        float32 2304×768    1.6   1.6   1.4   1.3   1.3
        float32 768×3072    2.1   2.1   2.0   2.2   1.7
        float32 50304×768   1.6   1.6   1.4   1.4   1.3
        bfloat16 2304×768   0.7   0.7   0.8   0.9   1.1
        bfloat16 768×3072   1.1   1.3   1.1   1.3   1.4
        bfloat16 50304×768  0.4   0.9   0.9   0.9   1.1
        int8 2304×768       1.2   1.5   1.4   1.2   1.7   1.0
        int8 768×3072       1.4   1.7   1.4   2.0   1.7   1.3
        int8 50304×768      1.3   1.3   1.3   1.2   1.1   0.8

    At one row the two are the same matrix-vector product, which reads float32 at the memory's limit.
    Above 64 rows the order stays: what follows takes the result as it lies, and with the weight first up to 512 rows the
    gradient of `loss` (bundled size, 8 rows of 128 tokens, one core) took 333 ms, not 273, in bfloat16 245, not 181.
    """
    if dtype == jnp.float32:
        return 2 <= rows <= 64
    if dtype == jnp.bfloat16:
        return rows <= 64 if inside > out else 16 < rows <= 64
    return dtype == jnp.int8 and rows <= 64


def _parts(out: int) -> int:
    """In how many products of at most 8,192 outputs a weight of 8 bits is multiplied, where so few divide it evenly.

    As one product by 50304×768, jax 0.12 takes eight times as long with the weight first; jax 0.10.2 does not.
    Milliseconds of one core of a Zen 5, jax 0.12.0.1, 2 / 8 / 32 rows:

        rows first            3.3   3.7   6.0
        weight first         17.4  18.5  20.6
        the same in 2 parts   2.7   2.8   4.5
        in 6                  2.2   2.4   4.4
        in 8                  1.9   2.2   4.0
        in 24                 2.3   2.5   3.7
    """
    return next((n for n in range(1, 65) if out % n == 0 and out // n <= _WIDE), 1)


def _rows_first(x_MI: jax.Array, w_OI: jax.Array) -> jax.Array:
    return _contract(x_MI, w_OI) if w_OI.ndim == 2 else _stacked(x_MI, w_OI)


def _stacked(x: jax.Array, y: jax.Array) -> jax.Array:
    """As a batch of products, where one side is a stack: with two output axes side by side XLA transposes a weight."""
    stack = max(x.shape[:-2], y.shape[:-2])
    x, y = (a if a.ndim == 3 else jnp.broadcast_to(a[None], (*stack, *a.shape)) for a in (x, y))
    return _contract(x, y, (2,), (2,), ((0,), (0,)))


def _one_row_as_two(product: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """A product of one bfloat16 or int8 row on CPU, where the fast kernels want two.

    In bfloat16 7 to 15 GB/s of y are read instead of 1.1; in int8 the product by 2304×768 takes 0.10 ms instead of 1.5, by
    50304×768 1.2 instead of 34. (Dequantised in the product's fusion the first takes 1.3 ms, as a sum of int16 products
    0.45; four rows cost what two do; uint8 has no fast kernel.) Without the barriers the simplifier takes the second row
    away again.
    """
    two = jax.lax.optimization_barrier(jnp.concatenate([x, x], axis=-2))
    return jax.lax.optimization_barrier(product(two, y))[..., :1, :]


def attention_product(x_GQI: jax.Array, y: jax.Array | Int8Rows, axis: int) -> jax.Array:
    """Queries by keys (axis −1 of both), or probabilities (…, Q, S) by values (…, S, K) (axis −2), in float32.

    One bfloat16 query is two on CPU, or the whole cache would be cast to float32 at every step: 1.1 ms instead of 4.5 for
    the twelve layers of GPT-2 small and 256 slots. In float32 the plain product is the fastest.
    """

    if isinstance(y, Int8Rows):
        return _int8_attention_product(x_GQI, y, axis)

    def plain(x_GQI: jax.Array, y: jax.Array) -> jax.Array:
        batch = tuple(range(y.ndim - 2))
        return _contract(x_GQI, y, (y.ndim - 1,), (y.ndim + axis,), (batch, batch))

    if x_GQI.dtype != jnp.bfloat16 or x_GQI.shape[-2] != 1:
        return plain(x_GQI, y)
    return jax.lax.platform_dependent(x_GQI, y, cpu=functools.partial(_one_row_as_two, plain), default=plain)


def _int8_attention_product(x_GQI: jax.Array, y: Int8Rows, axis: int) -> jax.Array:
    """The same by keys or values of 8 bits. Queries and probabilities have 15 on CPU, as two numbers of 8.

    A single row is two there anyway, so that they cost nothing; and in 8 bits of its own a probability under 1/254 of the
    largest would be 0, however many there are. Twelve layers of GPT-2 small, ms of a step of one core, jax 0.10.2:

        rows × slots   1 × 128   1 × 1,024   8 × 128   8 × 1,024   32 × 128
        float32           0.16         2.5       2.4          23         14
        bfloat16          0.22         2.7       2.9          23         12
        8 bits            0.22         1.8       1.6          12          6

    Many queries, as of a prefill, cost more to be parted than keys and values cost to be made float32.
    """
    over = (x_GQI.ndim - 1,), (y.values.ndim + axis,), (batch := tuple(range(y.values.ndim - 2)), batch)
    scales_G1S = y.scales.swapaxes(-1, -2)
    x_GQI = x_GQI.astype(jnp.float32)
    x_GQI = x_GQI * scales_G1S if axis == -2 else x_GQI

    def on_cpu(x_GQI: jax.Array, values: jax.Array) -> jax.Array:
        if x_GQI.shape[-2] <= _FEW_QUERIES:
            return halves(x_GQI, values)
        return _contract(x_GQI, jax.lax.optimization_barrier(values.astype(jnp.float32)), *over)

    def halves(x_GQI: jax.Array, values: jax.Array) -> jax.Array:
        largest_GQ1 = jnp.max(jnp.abs(x_GQI), axis=-1, keepdims=True)
        levels = LEVELS * _HALF
        whole_GQI = jnp.rint(x_GQI * (levels / jnp.maximum(largest_GQ1, jnp.finfo(jnp.float32).tiny)))
        high_GQI = jnp.rint(whole_GQI / _HALF)
        both = jnp.concatenate([high_GQI, whole_GQI - _HALF * high_GQI], axis=-2).astype(jnp.int8)
        high, low = jnp.split(_contract(both, values, *over).astype(jnp.float32), 2, axis=-2)
        return (_HALF * high + low) * (largest_GQ1 / levels)

    def dequantized(x_GQI: jax.Array, values: jax.Array) -> jax.Array:
        return _contract(x_GQI.astype(jnp.bfloat16), values.astype(jnp.bfloat16), *over)

    out = jax.lax.platform_dependent(x_GQI, y.values, cpu=on_cpu, default=dequantized)
    return out * scales_G1S if axis == -1 else out


def as_int8(x: jax.Array) -> Int8Rows:
    """Rows rounded to 8 bits, each with a scale."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True).astype(jnp.float32)
    values = jnp.rint(x.astype(jnp.float32) * (LEVELS / jnp.maximum(largest, jnp.finfo(jnp.float32).tiny)))
    return Int8Rows(values.astype(jnp.int8), largest / LEVELS)


def _contract(
    x: jax.Array, y: jax.Array, axes_x: Sequence[int] = (1,), axes_y: Sequence[int] = (1,), batch: Any = ((), ())
) -> jax.Array:
    summed_in = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    return jax.lax.dot_general(
        x, y, ((axes_x, axes_y), batch), precision=precision_of(x), preferred_element_type=summed_in
    )


def _int8_on_cpu(x_MI: jax.Array, weight: Int8Weight) -> jax.Array:
    """Rows rounded to 8 bits, each with a scale of its own; products and sums of whole numbers, which are exact.

    Measured as `weight_first` is, as speed against float32, each in its better order; one row as two:

        rows           1     2     4     8    16    32    64   256   1,024
        2304×768     1.8   2.8   2.5   2.8   1.4   1.8   1.5   1.4     1.0
        768×3072     1.8   2.5   2.7   2.2   1.9   1.4   1.5
        50304×768    3.3   3.7   3.2   2.9   1.4   1.5   1.2

    Dequantised to float32 first, at 256 rows it is half as fast as this, at 1,024 the same. From 9 to 16 rows the kernel
    takes as long as for 32 (ms of one core, jax 0.10.2), so that they are two products of up to 8:

                       8    16   16 as 8 + 8    32
        2304×768    0.12  0.39          0.27  0.40
        768×3072    0.21  0.42          0.40  0.56
        50304×768   2.9   9.1           5.7   8.3
    """
    whole_MI, scales_M1 = as_int8(x_MI.astype(jnp.float32) * weight.factors[None])
    rows = whole_MI.shape[0]
    parts = jnp.split(whole_MI, [rows // 2]) if 8 < rows <= 16 else [whole_MI]
    y = jnp.concatenate([_on_cpu(part, weight.values) for part in parts], axis=-2).astype(jnp.float32)
    return y * jnp.expand_dims(scales_M1, tuple(range(y.ndim - 2))) * weight.scales[..., None, :]


def _dequantized(x_MI: jax.Array, weight: Int8Weight) -> jax.Array:
    """In bfloat16, which holds every value of 8 bits, and in which an accelerator multiplies fastest."""
    x_MI = (x_MI * weight.factors[None]).astype(jnp.bfloat16)
    return _rows_first(x_MI, weight.values.astype(jnp.bfloat16)) * weight.scales[..., None, :]


def _forward(x_MI: jax.Array, w_OI: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _float_product(x_MI, w_OI), (x_MI, w_OI)


def _backward(saved: tuple[jax.Array, jax.Array], g_MO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_MI, w_OI = saved
    dx_MI, dw_OI = product_gradient(x_MI, w_OI, g_MO)
    return dx_MI.astype(x_MI.dtype), dw_OI.astype(w_OI.dtype)


def product_gradient(x_MI: jax.Array, w_OI: jax.Array, g_MO: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the cotangent of `matmul(x_MI, w_OI)` is to x_MI and to w_OI, float32, multiplied in the operands' dtype."""
    g_MO, rows = g_MO.astype(x_MI.dtype), g_MO.ndim - 2  # the axis of M, which stands behind G
    out = tuple(axis for axis in range(g_MO.ndim) if axis != rows)

    def plain(g_MO: jax.Array, x_MI: jax.Array) -> jax.Array:
        return _contract(g_MO, x_MI, (rows,), (0,))

    def turned(g_MO: jax.Array, x_MI: jax.Array) -> jax.Array:
        # XLA for CPU multiplies half precision twice as fast when the first operand really lies as (O, M) in memory.
        g_OM = with_layout_constraint(jnp.moveaxis(g_MO, rows, -1), Layout(major_to_minor=tuple(range(g_MO.ndim))))
        return _contract(g_OM, x_MI, (g_MO.ndim - 1,), (0,))

    on_cpu = plain if x_MI.dtype == jnp.float32 else turned
    dx_MI = _contract(g_MO, w_OI, out, tuple(range(w_OI.ndim - 1)))
    return dx_MI, jax.lax.platform_dependent(g_MO, x_MI, cpu=on_cpu, default=plain)


_float_product.defvjp(_forward, _backward)
