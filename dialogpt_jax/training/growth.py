"""A larger model out of one that is there: parameters and a config in; parameters of more blocks or positions out.

    4 blocks to 8       0 1 2 3  →  0 0' 1 1' 2 2' 3 3'
    positions           the rows of the second half again, as often as they are needed

A new block is a copy of the one before it whose residual projections are 0: it adds nothing yet, so on texts of the old
length the grown model computes what the old one did, and its gradient is that of a trained block's features (the identity
start of Chen et al. 2016, Net2Net).
"""

import dataclasses

import jax
import jax.numpy as jnp

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.model import Params

GROWS = ("n_layer", "n_positions")


def grow(params: Params, config: GPT2Config, sizes: GPT2Config) -> Params:
    """The parameters of a model of `sizes` that predicts as `config`'s does.

    Raises:
      ValueError: something else than blocks and positions differs, or one of them would shrink.
    """
    if config.scale_attn_by_inverse_layer_idx:
        raise ValueError("a model whose attention is scaled by the block's number cannot get blocks between its own")
    old, new = dataclasses.asdict(config), dataclasses.asdict(sizes)
    for name in old:
        if name.endswith("pdrop") or old[name] == new[name] or (name in GROWS and old[name] < new[name]):
            continue
        raise ValueError(
            f"{name} is {old[name]} in the model and {new[name]} in the config; only {' and '.join(GROWS)} can grow"
        )
    out = {name: leaf for name, leaf in params.items() if not name.startswith("h_")}
    out["wpe"] = {"embedding": _longer(params["wpe"]["embedding"], sizes.n_positions)}
    sources = [block * config.n_layer // sizes.n_layer for block in range(sizes.n_layer)]
    for block, source in enumerate(sources):
        copied = params[f"h_{source}"]
        out[f"h_{block}"] = _silent(copied) if block and sources[block - 1] == source else copied
    return out


def _silent(block: Params) -> Params:
    """The block with what it adds to the residual stream set to 0."""
    return block | {
        part: block[part] | {"c_proj": jax.tree.map(jnp.zeros_like, block[part]["c_proj"])} for part in ("attn", "mlp")
    }


def _longer(embedding_PD: jax.Array, positions: int) -> jax.Array:
    half_PD = embedding_PD[len(embedding_PD) // 2 :]
    again = -(-(positions - len(embedding_PD)) // len(half_PD))
    return jnp.concatenate([embedding_PD, *[half_PD] * again])[:positions]
