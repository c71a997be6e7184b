"""The matrix product that every layer is made of: rows and an output-first weight in, float32 out.

Letters: M rows, I inside (contracted), O out, G weights of one shape that the same rows are multiplied by (as q, k and v).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


def precision_of(x: jax.Array) -> jax.lax.Precision | None:
    """Float32 means float32 on every platform: a TPU would multiply in bfloat16 by default."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


@jax.custom_vjp
def matmul(x_MI: jax.Array, w_OI: jax.Array) -> jax.Array:
    """x Wᵀ, accumulated and returned in float32, (M, O); a stack of weights (G, O, I) gives (G, M, O).

    The rule for its gradient keeps both products of the backward pass in the operands' dtype; jax's own would multiply
    the float32 cotangent in float32. On CPU a bfloat16 product that returns float32 is also three to four times as fast
    as one that returns bfloat16.
    """
    if w_OI.ndim == 2:
        return _contract(x_MI, w_OI, (1,), (1,))
    # As a batch of products: with two output axes side by side XLA for CPU transposes the weight at every call.
    x_GMI = jnp.broadcast_to(x_MI[None], (w_OI.shape[0], *x_MI.shape))
    return _contract(x_GMI, w_OI, (2,), (2,), ((0,), (0,)))


def _contract(
    x: jax.Array, y: jax.Array, axes_x: Sequence[int], axes_y: Sequence[int], batch: Any = ((), ())
) -> jax.Array:
    return jax.lax.dot_general(
        x, y, ((axes_x, axes_y), batch), precision=precision_of(x), preferred_element_type=jnp.float32
    )


def _forward(x_MI: jax.Array, w_OI: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x_MI, w_OI), (x_MI, w_OI)


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


matmul.defvjp(_forward, _backward)
