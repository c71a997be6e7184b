"""The shapes of a tree of parameters by path: two of them held against each other, and a line on where they differ."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Shapes = dict[str, tuple[int, ...]]


def shapes_of(params: Mapping[str, Any]) -> Shapes:
    """Shapes by path, as `attn/c_attn/kernel`, and in int8 `attn/c_attn/kernel/values`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf) for path, leaf in leaves}


def check_shapes(where: str, params: Mapping[str, Any], wanted: Shapes) -> None:
    """Whether parameters, which stand at the path `where`, have these names and shapes.

    Raises:
      ValueError: names the first that is missing, surplus, or of another shape.
    """
    found = shapes_of(params)
    if found == wanted:
        return
    name = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if name not in found or name not in wanted:
        kind = "no" if name not in found else "a"
        raise ValueError(f"the parameters have {kind} {where}{name}, against this config")
    raise ValueError(f"the parameter {where}{name} has the shape {found[name]}; this config needs {wanted[name]}")
