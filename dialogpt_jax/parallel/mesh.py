"""How devices are arranged: the text of `--mesh` in, a mesh with three named axes out.

    "data=2,fsdp=4" ─parse_mesh→ {"data": 2, "fsdp": 4} ─make_mesh→ Mesh(data=2, fsdp=4, tensor=1)

`data` repeats the model and divides the rows. `fsdp` divides the rows too, and each device keeps a part of every parameter
and of the optimiser, gathered where it is used. `tensor` divides the arithmetic of a layer: its heads, its hidden units and
the vocabulary. `rules.py` says which axis of which parameter lies on which of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from dialogpt_jax.errors import counted

AXES = ("data", "fsdp", "tensor")


class MeshError(ValueError):
    """A mesh that cannot be: the message is one line and says which would fit."""


def parse_mesh(text: str) -> dict[str, int]:
    """The sizes in `axis=size,axis=size`; an empty text is an empty dict, which means all devices on `data`.

    Raises:
      MeshError: an unknown axis, one named twice, or a size that is not a whole number from 1 on.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        axis, _, size = (piece.strip() for piece in part.partition("="))
        if axis not in AXES:
            raise MeshError(f"mesh: unknown axis {axis!r} in {text!r}; the axes are {', '.join(AXES)}: data=2,fsdp=4")
        if axis in sizes:
            raise MeshError(f"mesh: {axis} stands twice in {text!r}")
        if not (size.isascii() and size.isdigit() and int(size) > 0):
            raise MeshError(f"mesh: {axis}={size} in {text!r}; expected a whole number, at least 1: {axis}=2")
        sizes[axis] = int(size)
    return sizes


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices with the axes data, fsdp and tensor; an axis that is not named has size 1.

    Args:
      sizes: of the axes, as `parse_mesh` gives them; `None` or empty: all devices on `data`.
      devices: all of jax's by default, those of other processes included.

    Raises:
      MeshError: an unknown axis, a size under 1, or sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict(sizes) if sizes else {"data": len(devices)}
    for axis, size in sizes.items():
        if axis not in AXES:
            raise MeshError(f"mesh: unknown axis {axis!r}; the axes are {', '.join(AXES)}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise MeshError(f"mesh: {axis} is {size!r}; expected a whole number, at least 1")
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    if math.prod(shape) != len(devices):
        raise MeshError(
            f"mesh: {mesh_text(sizes)} needs {counted(math.prod(shape), 'devices')} and there are {len(devices)}; "
            f"{mesh_text(_example(sizes, len(devices)))} would fit"
        )
    # jax's own default is axes of type Explicit, which Linen's layers do not take.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def mesh_text(sizes: Mapping[str, int]) -> str:
    """The sizes as `--mesh` takes them."""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def _example(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Sizes that fit `count` devices: as many of the wanted axes as divide it, the rest on `data`."""
    found = {"data": count}
    for axis in ("tensor", "fsdp"):
        size = sizes.get(axis, 1)
        if size > 1 and found["data"] % size == 0:
            found |= {axis: size, "data": found["data"] // size}
    return {axis: found[axis] for axis in AXES if found.get(axis, 1) > 1} or {"data": 1}
