"""A gradient over the devices of a mesh: a function of (parameters, batch) in, the same function of divided ones out.

    each device:  its rows, its part of every parameter ─gather→ the parameters ─loss, gradient→ ─sum, scatter→ its part

XLA's partitioner, left to itself, confuses the two ways to divide a matrix: where `fsdp` lies on the width, it divides the
residual stream by its width and gathers the rows. So rows and `fsdp` are written down here, by `shard_map`; `tensor` is the
partitioner's, which follows the parameters.
The collectives of a step are then these: `fsdp` gathers each parameter in the dtype of the products, and sums and
scatters its gradient in float32; `data` sums what is left of the gradient; `tensor` sums activations.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dialogpt_jax.model import Params
from dialogpt_jax.parallel.rules import ROWS, fitted_spec

ROW_AXES = ("data", "fsdp")


def shard_gradient(sums: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`sums(params, batch, key, whole) -> (scalars, gradient)` as a function of arrays that lie as `rules.py` says.

    Args:
      sums: called on each device with its rows and its parts of the parameters, which it makes whole by `gather_params`.
        The scalars are sums over rows: they are added over all devices. Its key is another one on each group of rows,
        so that dropout differs; `None` stays `None`. `whole` is a tree of arrays that lie whole on every device.
      mesh: with the axes of `make_mesh`.
    """
    manual = {axis for axis in mesh.axis_names if axis in ROW_AXES or mesh.shape[axis] == 1}

    def one_device(params, batch, key, whole):
        if key is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(ROW_AXES))
        scalars, gradient = sums(params, batch, key, whole)
        return jax.tree.map(lambda x: jax.lax.psum(x, ROW_AXES), scalars), gradient

    def run(params, batch, key, whole):
        parts = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _manual_part(fitted_spec(_name(path), leaf.shape, mesh)), params
        )
        return jax.shard_map(
            one_device,
            mesh=mesh,
            in_specs=(parts, ROWS, P(), P()),
            out_specs=(P(), parts),
            axis_names=manual,
            check_vma=False,
        )(params, batch, key, whole)

    return run


def gather_params(params: Params, dtype: jax.typing.DTypeLike, mesh: Mesh) -> Params:
    """Inside `shard_gradient`: the whole parameters in `dtype`; the gradient that flows back is summed and divided."""

    def each(path, leaf):
        return _gathered(leaf, fitted_spec(_name(path), leaf.shape, mesh), jnp.dtype(dtype), mesh)

    return jax.tree_util.tree_map_with_path(each, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(part, spec, dtype, mesh):
    def gather(part):
        return _on_front(functools.partial(jax.lax.all_gather, axis_name="fsdp", axis=0, tiled=True), part, spec)

    return _in_tensor_groups(gather, spec, mesh)(part.astype(dtype)) if _divided(spec, mesh) else part.astype(dtype)


def _gathered_forward(part, spec, dtype, mesh):
    return _gathered(part, spec, dtype, mesh), None


def _gathered_backward(spec, dtype, mesh, _, g):
    def scatter(g):
        sum_and_scatter = functools.partial(jax.lax.psum_scatter, axis_name="fsdp", scatter_dimension=0, tiled=True)
        return _on_front(sum_and_scatter, g, spec)

    # In float32: a sum over many devices in half precision loses what the master weights are there for.
    g = g.astype(jnp.float32)
    if not _divided(spec, mesh):
        return (jax.lax.psum(g, ROW_AXES),)
    return (jax.lax.psum(_in_tensor_groups(scatter, spec, mesh)(g), "data"),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def _divided(spec: P, mesh: Mesh) -> bool:
    return "fsdp" in spec and mesh.shape["fsdp"] > 1


def _on_front(f: Callable[[jax.Array], jax.Array], x: jax.Array, spec: P) -> jax.Array:
    """`f` on x as a matrix whose first axis is that of `fsdp`, and lies so in memory.

    Otherwise XLA for TPU sums most arrays whole on every device and cuts afterwards, which sends twice as much.
    """
    axis = tuple(spec).index("fsdp")
    front = jnp.moveaxis(x, axis, 0)
    y = f(with_layout_constraint(front.reshape(front.shape[0], -1), Layout(major_to_minor=(0, 1))))
    return jnp.moveaxis(y.reshape(y.shape[0], *front.shape[1:]), 0, axis)


def _in_tensor_groups(f, spec: P, mesh: Mesh):
    """`f` on each device's own part along `tensor`: the partitioner would gather that axis before it runs `f`."""
    if mesh.shape["tensor"] == 1:
        return f
    part = P(*[axis if axis == "tensor" else None for axis in spec])
    return jax.shard_map(f, in_specs=part, out_specs=part, axis_names={"tensor"}, check_vma=False)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(entry.key) for entry in path)


def _manual_part(spec: P) -> P:
    return P(*[axis if axis in ROW_AXES else None for axis in spec])
