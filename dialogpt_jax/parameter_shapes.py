"""The shapes of a tree of parameters by path: a config's, a tree's, and a line on where two of them differ."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.quantization import quantize

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


@functools.cache
def model_shapes(config: GPT2Config, int8: bool) -> tuple[Shapes, Shapes]:
    """The shapes of every parameter outside the blocks, by its path as `wte/embedding`, and of those of one block.

    A table of what `init_params` makes, for tracing that takes 60 ms, which every fresh process would wait for.
    """
    width, heads, inner = config.n_embd, (config.n_head, config.head_dim), config.mlp_dim

    def norm() -> dict[str, Any]:
        return {"scale": _like(width), "bias": _like(width)}

    def linear(out: tuple[int, ...], inside: tuple[int, ...]) -> dict[str, Any]:
        return {"kernel": _like(*out, *inside), "bias": _like(*out)}

    attn = {"c_attn": linear((3, *heads), (width,)), "c_proj": linear((width,), heads)}
    mlp = {"c_fc": linear((inner,), (width,)), "c_proj": linear((width,), (inner,))}
    params: dict[str, Any] = {
        "wte": {"embedding": _like(config.padded_vocab_size, width)},
        "wpe": {"embedding": _like(config.n_positions, width)},
        "h_0": {"ln_1": norm(), "attn": attn, "ln_2": norm(), "mlp": mlp},
        "ln_f": norm(),
    }
    if not config.tie_word_embeddings:
        params["lm_head"] = {"kernel": _like(config.padded_vocab_size, width)}
    params = jax.eval_shape(quantize, params) if int8 else params
    block = params.pop("h_0")
    return shapes_of(params), shapes_of(block)


def _like(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
