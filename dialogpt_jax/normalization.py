"""LayerNorm as a pure function: rows, a scale and a bias in; rows of mean 0 and variance 1, scaled and shifted, out.

Letters: … any leading axes, D model.
"""

import jax
import jax.numpy as jnp


def layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> jax.Array:
    """(x − mean) / √(variance + ε) · scale + bias over the last axis, (…, D), in float32 or what is wider.

    Returned in x's dtype, or the scale's where that is wider.

    The variance is the mean square of what is centred: E[x²] − E[x]² loses digits on GPT-2's outlier channels. Epsilon
    stands under the root.
    """
    dtype = jnp.promote_types(x.dtype, scale_D.dtype)
    wide = x.astype(jnp.promote_types(dtype, jnp.float32))
    scale, bias = (jnp.expand_dims(a_D.astype(wide.dtype), range(x.ndim - 1)) for a_D in (scale_D, bias_D))
    centred = wide - _mean(wide)
    variance = _mean(jnp.square(centred))
    return (centred * (jax.lax.rsqrt(variance + epsilon) * scale) + bias).astype(dtype)


def _mean(x: jax.Array) -> jax.Array:
    """Over the last axis, which stays."""
    if x.size > x.shape[-1]:
        return by_sum(x)
    return jax.lax.platform_dependent(x, cuda=by_product, default=by_sum)


def by_sum(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=-1, keepdims=True)


def by_product(x: jax.Array) -> jax.Array:
    """A GPU's form for one row: of a sum XLA drops the axis of 1, and then sees no norm, which is one kernel, but three."""
    same_1D = jnp.full((1, x.shape[-1]), 1 / x.shape[-1], x.dtype)
    return jax.lax.dot_general(x, same_1D, (((x.ndim - 1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
