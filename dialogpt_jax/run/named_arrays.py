"""A pytree as a flat dict of named arrays: what is in it, whether it fits another, and a checksum of each.

What a checkpoint needs to know of a state, without any file. A typed PRNG key counts as its data, uint32, so that
whatever stores arrays can store it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ODD = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0x2545F491)  # xxHash's primes; any odd ones do

_KEYS = ("threefry2x32", "rbg", "unsafe_rbg")  # jax's generators


def named(tree: Any) -> dict[str, Any]:
    """The leaves by name, in the tree's order: `params.h_0.attn.c_attn.kernel`, `opt_state.0.count`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two arrays of this tree are called {twice!r}")
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key (`jax.random.key`)."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def data(leaf: Any) -> jax.Array:
    """The leaf as an array that can be stored."""
    leaf = jnp.asarray(leaf)
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of `data(leaf)`; a leaf without a sharding goes to the first device."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shape = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def like(leaf: Any, array: jax.Array) -> jax.Array:
    """The inverse of `data`: a key again, where `leaf` is one."""
    if not is_key(leaf):
        return array
    kinds = {jax.eval_shape(lambda kind=kind: jax.random.key(0, impl=kind)).dtype: kind for kind in _KEYS}
    return jax.random.wrap_key_data(array, impl=kinds[leaf.dtype])


def dtype_and_shape(leaf: Any) -> dict[str, Any]:
    """Dtype and shape, as JSON; a key's dtype names its kind: `key<fry>`."""
    return {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}


def first_difference(held: dict[str, dict[str, Any]], wanted: dict[str, Any]) -> str:
    """The first array of `wanted` that `held` (of `dtype_and_shape`) lacks or has otherwise, for an error; "" if none."""

    def told(description: dict[str, Any]) -> str:
        return f"{description['dtype']}{description['shape']}"

    for name, leaf in wanted.items():
        want = dtype_and_shape(leaf)
        if name not in held:
            return f"it lacks {name}, {told(want)}" + _count(wanted.keys() - held.keys())
        have = {part: held[name][part] for part in want}
        if have != want:
            return f"{name} is {told(have)} in it, and {told(want)} is wanted"
    extra = [name for name in held if name not in wanted]
    return f"it holds {extra[0]}, {told(held[extra[0]])}, which is not wanted" + _count(extra) if extra else ""


def _count(names: Any) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def checksums(arrays: dict[str, jax.Array]) -> dict[str, int]:
    """A checksum of each array's bits, the same on every mesh; on the host, so it waits for the arrays."""
    return {name: int(value) for name, value in jax.device_get({n: _checksum(x) for n, x in arrays.items()}).items()}


@jax.jit  # once for each shape and sharding, of which a model has few
def _checksum(array: jax.Array) -> jax.Array:
    """Σ bits × an odd number that depends on the position, modulo 2³²: integers, so no order of summing matters."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{min(8 * array.dtype.itemsize, 32)}")).astype(jnp.uint32)
    factor = jnp.full(bits.shape, 1, jnp.uint32)
    for axis in range(bits.ndim):
        even = np.uint32(2 * _ODD[axis % len(_ODD)] % 2**32)
        factor += even * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return (bits * factor).sum(dtype=jnp.uint32)
