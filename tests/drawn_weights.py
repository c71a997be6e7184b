"""A config in, weights out with every tensor drawn: in Hugging Face's layout, and the same as our parameters.

Drawn in NumPy, so nothing compiles. Biases are N(0, 0.1), gains 1 + N(0, 0.2), block matrices `scale` times the usual
scale: on the usual initialisation most wrong programs pass. The package's mapping carries the numbers over, and the
second implementation (`reference.py`) reads them as they were drawn: so the mapping is held to account too.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.convert.mapping import to_params


def shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """The tensors of Hugging Face's `GPT2LMHeadModel`."""
    d, f = config.n_embd, config.mlp_dim
    out = {"wte.weight": (config.vocab_size, d), "wpe.weight": (config.n_positions, d)}
    for i in range(config.n_layer):
        out |= {f"h.{i}.{name}.{kind}": (d,) for name in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        for name, inside, outside in (
            ("attn.c_attn", d, 3 * d),
            ("attn.c_proj", d, d),
            ("mlp.c_fc", d, f),
            ("mlp.c_proj", f, d),
        ):
            out |= {f"h.{i}.{name}.weight": (inside, outside), f"h.{i}.{name}.bias": (outside,)}
    out |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    out = {f"transformer.{name}": shape for name, shape in out.items()}
    return out if config.tie_word_embeddings else {**out, "lm_head.weight": (config.vocab_size, d)}


def draw_tensors(config: GPT2Config, seed: int = 0, scale: float = 10.0) -> dict[str, np.ndarray]:
    """Float32 tensors by Hugging Face's names, each from a generator of its own."""
    out = {}
    for index, (name, shape) in enumerate(shapes(config).items()):
        noise = np.random.default_rng([seed, index]).standard_normal(shape, np.float32)
        if name.endswith(".bias"):
            out[name] = 0.1 * noise
        elif ".ln_" in name:
            out[name] = 1 + 0.2 * noise
        else:
            factor = scale if ".h." in name else 1.0
            factor /= math.sqrt(2 * config.n_layer) if "c_proj" in name else 1.0
            out[name] = np.float32(factor * config.initializer_range) * noise
    return out


def usual_tensors(config: GPT2Config, seed: int = 0) -> dict[str, np.ndarray]:
    """The usual initialisation: zero biases, gains of one."""
    drawn = draw_tensors(config, seed, scale=1.0)
    plain = {name: np.full_like(x, not name.endswith(".bias")) for name, x in drawn.items() if x.ndim == 1}
    return drawn | plain


def as_params(tensors, config: GPT2Config):
    """Our parameters, on the device."""
    return jax.tree.map(jnp.asarray, to_params(tensors, config)[0])


def draw_params(config: GPT2Config, seed: int = 0, scale: float = 10.0, dtype=jnp.float32):
    """Our parameters of `draw_tensors`, every one drawn; `scale` multiplies the block matrices of the usual scale."""
    drawn = to_params(draw_tensors(config, seed, scale), config)[0]
    return jax.tree.map(lambda x: jnp.asarray(x.astype(dtype)), drawn)
