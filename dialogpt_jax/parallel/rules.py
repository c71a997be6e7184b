"""Where every array of a run lies: a tree of parameters or a whole training state in, a tree of shardings out.

    "h_0/attn/c_attn/kernel" ─RULES→ PartitionSpec(None, "tensor", None, "fsdp") ─mesh→ NamedSharding

`tensor` lies on heads, on hidden units of the MLP and on the vocabulary: two products in a row, the first divided by its
outputs and the second by its inputs, need one sum over the devices between them and the residual stream, forward and
backward. `fsdp` lies on the model's width D, which every matrix has: the matrix is gathered where it is used, and its
gradient is summed and scattered. Biases of the width and norms are small and lie whole on every device. What the optimiser
keeps for a parameter lies where the parameter does.

Letters: B rows, T tokens, V vocabulary (padded to a multiple of 128), D model, H heads, K head dim, F mlp.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey, GetAttrKey

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.errors import counted
from dialogpt_jax.parallel.mesh import MeshError

ROWS = P(("data", "fsdp"))

# (pattern of the whole path, axes of the array); the first that fits counts. A parameter that none fits is an error.
RULES: tuple[tuple[str, P], ...] = (
    (r"wte/embedding", P("tensor", "fsdp")),  # (V, D); the head too where it is tied
    (r"lm_head/kernel", P("tensor", "fsdp")),  # (V, D)
    (r"wpe/embedding", P(None, "fsdp")),  # (positions, D)
    (r"h_\d+/attn/c_attn/kernel", P(None, "tensor", None, "fsdp")),  # (3, H, K, D)
    (r"h_\d+/attn/c_attn/bias", P(None, "tensor", None)),  # (3, H, K)
    (r"h_\d+/attn/c_proj/kernel", P("fsdp", "tensor", None)),  # (D, H, K)
    (r"h_\d+/mlp/c_fc/kernel", P("tensor", "fsdp")),  # (F, D)
    (r"h_\d+/mlp/c_fc/bias", P("tensor")),  # (F,)
    (r"h_\d+/mlp/c_proj/kernel", P("fsdp", "tensor")),  # (D, F)
    (r"h_\d+/(attn|mlp)/c_proj/bias", P(None)),  # (D,)
    (r"score/kernel", P(None, None)),  # (1, D), of a ranker
    (r"(h_\d+/ln_1|h_\d+/ln_2|ln_f)/(scale|bias)", P(None)),  # (D,)
)


VOCABULARY = ("wte/embedding", "lm_head/kernel")  # lies whole on a `tensor` group that does not divide V


class RuleError(ValueError):
    """A parameter that no rule covers, or that its rule does not fit; the message names it."""


def spec_of(path: str) -> P:
    """The axes of the parameter at a path like `h_0/mlp/c_fc/kernel`.

    Raises:
      RuleError: no rule fits.
    """
    found = _rule(path)
    if found is None:
        raise RuleError(f"no rule says how the parameter {path} lies on a mesh; add one to RULES in parallel/rules.py")
    return found


def fitted_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """`spec_of`, without `tensor` on a vocabulary that it does not divide: 50,304 rows on 5 devices, where 20 heads do.

    Raises:
      RuleError: no rule fits the path.
    """
    spec = spec_of(path)
    return P(None, *spec[1:]) if path in VOCABULARY and shape[0] % mesh.shape["tensor"] else spec


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for each leaf of a tree of parameters, of a `TrainState`, or of an optimiser's state.

    Args:
      tree: arrays, or the shapes that `jax.eval_shape` gives.
      mesh: with the axes of `make_mesh`.

    A leaf of the optimiser's state whose path ends in a parameter's (Adam's moments, Muon's momentum) lies as the
    parameter does; another one (a count, factored moments) lies whole on every device, as do the step and the key.

    Raises:
      RuleError: a parameter that no rule covers, or that does not divide.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, _spec(path, leaf, mesh)), tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp`; the devices of a `tensor` group see the same rows. For every array of a batch."""
    return NamedSharding(mesh, ROWS)


def decode_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all devices, for the keys that `generate` gets: rows share nothing, so no device waits for another.

    Each device then gathers the parameters once for a call, however they lie.
    """
    return NamedSharding(mesh, P(mesh.axis_names))


def check_divides(config: GPT2Config, mesh: Mesh, *, rows: int | None = None) -> None:
    """Whether the model, and a batch of `rows`, divide among the devices of each axis.

    Raises:
      MeshError: names what does not divide, and the sizes that would be right.
    """
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    right = _divisors(math.gcd(config.n_head, config.mlp_dim))
    if tensor not in right:
        parts = f"{config.n_head} heads and {config.mlp_dim} hidden units"
        raise MeshError(f"mesh: tensor={tensor} does not divide {parts}; right sizes for this model: {_listed(right)}")
    if config.n_embd % fsdp:
        right = _divisors(config.n_embd)
        raise MeshError(f"mesh: fsdp={fsdp} does not divide the width {config.n_embd}; right sizes: {_listed(right)}")
    groups = mesh.shape["data"] * fsdp
    if rows is not None and (rows < 1 or rows % groups):
        least = max(1, rows // groups) * groups
        raise MeshError(
            f"mesh: a batch of {counted(rows, 'rows')} does not divide among data={mesh.shape['data']} × "
            f"fsdp={fsdp} = {groups} groups of devices; {least} or {least + groups} rows would"
        )


def _rule(path: str) -> P | None:
    return next((spec for pattern, spec in RULES if re.fullmatch(pattern, path)), None)


def _spec(path: tuple[Any, ...], leaf: Any, mesh: Mesh) -> P:
    start = len(path)
    while start and isinstance(path[start - 1], DictKey):
        start -= 1
    names = [str(entry.key) for entry in path[start:]]
    if names and (start == 0 or path[:start] == (GetAttrKey("params"),)):
        name = "/".join(names)
        spec = fitted_spec(name, leaf.shape, mesh)
        if not _fits(spec, leaf, mesh):
            raise RuleError(
                f"the parameter {name} of shape {leaf.shape} does not divide as {spec} on {dict(mesh.shape)}"
            )
        return spec
    for first in range(len(names)):  # an optimiser may keep its mirrors under further names
        name = "/".join(names[first:])
        if leaf.shape and _rule(name) is not None:
            mirrored = fitted_spec(name, leaf.shape, mesh)
            return mirrored if _fits(mirrored, leaf, mesh) else P()
    return P()


def _fits(spec: P, leaf: Any, mesh: Mesh) -> bool:
    if len(spec) != len(leaf.shape):
        return False
    return all(axis is None or size % mesh.shape[axis] == 0 for axis, size in zip(spec, leaf.shape, strict=True))


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))
