"""GPT-2's modules in Linen: ids, positions and a cache in; hidden states and the cache out. `model.py` calls them.

They bear the checkpoint's names (wte, wpe, h_0.ln_1, h_0.attn.c_attn …). This is the only file that imports flax.

Letters: B rows, T query length, D model, H heads, K head dim, F mlp, M rows of a product, I inside (contracted), O out, N
candidates of a row.

Source: Radford et al. 2019; transformers' `modeling_gpt2.py` for the order of operations.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dialogpt_jax.attention import Cache, attend_in_rows, attend_to_cache, each_position
from dialogpt_jax.cache import of_block, of_blocks
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.embedding import lookup
from dialogpt_jax.matmul import matmul
from dialogpt_jax.normalization import layer_norm
from dialogpt_jax.token_arrays import Array

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: nn.gelu(x, approximate=True),
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
    "silu": nn.silu,
}


class Linear(nn.Module):
    """y = x Wᵀ + b with W stored as (*out, *inside): the axes `inside` are contracted, merged as the last axis of x."""

    out: tuple[int, ...]
    inside: tuple[int, ...]
    stddev: float

    def setup(self) -> None:
        self.kernel = self.param("kernel", nn.initializers.normal(self.stddev), (*self.out, *self.inside))
        self.bias = self.param("bias", nn.initializers.zeros_init(), self.out)

    def __call__(self, x_BTI: jax.Array) -> jax.Array:
        kernel_OI = self.kernel.reshape(*self.out, math.prod(self.inside))
        y_MO = matmul(x_BTI.reshape(-1, x_BTI.shape[-1]), kernel_OI) + self.bias[None].astype(jnp.float32)
        return y_MO.astype(x_BTI.dtype).reshape(*x_BTI.shape[:-1], *self.out)


class QueriesKeysValues(Linear):
    """Three products in one, out as three of (B, T, H, K): W is (3, H, K, D).

    H and K are merged before the product, or XLA for CPU would transpose the whole weight at every call; the 3 is not, so
    that the merged axis can be divided among devices by heads.
    """

    def __call__(self, x_BTD: jax.Array) -> list[jax.Array]:  # type: ignore[override]
        kernel_3OD = self.kernel.reshape(3, -1, x_BTD.shape[-1])
        y_3MO = matmul(x_BTD.reshape(-1, x_BTD.shape[-1]), kernel_3OD) + self.bias.reshape(3, 1, -1).astype(jnp.float32)
        y_3BTHK = y_3MO.astype(x_BTD.dtype).reshape(3, *x_BTD.shape[:-1], *self.out[1:])
        return [part[0] for part in jax.lax.split(y_3BTHK, (1, 1, 1))]  # the gradient of y[0] is padded, and summed


class Embedding(nn.Embed):
    """A table (rows, D), looked up by ids."""

    def __call__(self, ids: Array) -> jax.Array:
        return lookup(self.embedding, ids)


class LayerNorm(nn.Module):
    """`layer_norm` over the model's axis."""

    config: GPT2Config

    def setup(self) -> None:
        self.scale = self.param("scale", nn.initializers.ones_init(), (self.config.n_embd,))
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.config.n_embd,))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return layer_norm(x_BTD, self.scale, self.bias, self.config.layer_norm_epsilon)


class Attention(nn.Module):
    """Causal self-attention with or without a cache, which is the block's own; `layer` is the block's index."""

    config: GPT2Config
    layer: int

    def setup(self) -> None:
        config, heads = self.config, (self.config.n_head, self.config.head_dim)
        self.c_attn = QueriesKeysValues((3, *heads), (config.n_embd,), config.initializer_range)
        self.c_proj = Linear((config.n_embd,), heads, _residual_stddev(config))
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        cache: Cache | None,
        segments_BT: jax.Array | None,
        dropout_key: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        probs_key, out_key = _split(dropout_key)
        q_BTHK, k_BTHK, v_BTHK = self.c_attn(x_BTD)
        # Scaled before the product, so that scores do not overflow in float16.
        q_BTHK = q_BTHK * jnp.asarray(self._scale(), x_BTD.dtype)
        dropout = None
        if probs_key is not None and self.config.attn_pdrop > 0:
            dropout = functools.partial(self.attn_dropout, deterministic=False, rng=probs_key)
        if cache is None:
            y_BTHK = attend_in_rows(q_BTHK, k_BTHK, v_BTHK, segments_BT, dropout)
        else:
            y_BTHK, cache = attend_to_cache(q_BTHK, k_BTHK, v_BTHK, positions_BT, cache, dropout)
        y_BTD = y_BTHK.reshape(x_BTD.shape)
        return self.resid_dropout(self.c_proj(y_BTD), out_key is None, out_key), cache

    def _scale(self) -> float:
        scale = self.config.head_dim**-0.5 if self.config.scale_attn_weights else 1.0
        return scale / (self.layer + 1) if self.config.scale_attn_by_inverse_layer_idx else scale


class MLP(nn.Module):
    """c_proj(activation(c_fc(x)))."""

    config: GPT2Config

    def setup(self) -> None:
        config = self.config
        self.c_fc = Linear((config.mlp_dim,), (config.n_embd,), config.initializer_range)
        self.c_proj = Linear((config.n_embd,), (config.mlp_dim,), _residual_stddev(config))
        self.dropout = nn.Dropout(config.resid_pdrop)

    def __call__(self, x_BTD: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        # In float32: XLA for CPU computes a bfloat16 activation and its gradient several times slower than a float32 one.
        y_BTF = _ACTIVATIONS[self.config.activation_function](self.c_fc(x_BTD).astype(jnp.float32))
        x_BTF = y_BTF.astype(x_BTD.dtype)
        return self.dropout(self.c_proj(x_BTF), dropout_key is None, dropout_key)


class Block(nn.Module):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x))."""

    config: GPT2Config
    layer: int

    def setup(self) -> None:
        self.ln_1 = LayerNorm(self.config)
        self.attn = Attention(self.config, self.layer)
        self.ln_2 = LayerNorm(self.config)
        self.mlp = MLP(self.config)

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        cache: Cache | None,
        segments_BT: jax.Array | None,
        dropout_key: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        attn_key, mlp_key = _split(dropout_key)
        y_BTD, cache = self.attn(self.ln_1(x_BTD), positions_BT, cache, segments_BT, attn_key)
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(self.ln_2(x_BTD), mlp_key), cache


class GPT2(nn.Module):
    """The trunk: embeddings, blocks and the last norm. The head is `logits`, apart, so that it runs where it is needed."""

    config: GPT2Config

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        self.wte = Embedding(config.padded_vocab_size, config.n_embd, embedding_init=init)
        self.wpe = Embedding(config.n_positions, config.n_embd, embedding_init=init)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = [Block(config, layer) for layer in range(config.n_layer)]
        self.ln_f = LayerNorm(config)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        cache: Cache | None = None,
        segments_BT: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        checkpoint_blocks: bool = False,
    ) -> tuple[jax.Array, Cache | None]:
        keys = [None] * (len(self.h) + 1) if dropout_key is None else jax.random.split(dropout_key, len(self.h) + 1)
        with jax.named_scope("embed"):
            # A pad may stand past the last position: it reads some row of wpe, for `lookup` gives NaN out of range.
            inside_BT = jnp.clip(each_position(positions_BT, tokens_BT.shape[1]), 0, self.config.n_positions - 1)
            x_BTD = self.drop(self.wte(tokens_BT) + self.wpe(inside_BT), dropout_key is None, keys[-1])
        caches = []
        inside = self.is_initializing() or self.is_mutable_collection("intermediates")  # what a function would hide
        for layer, block in enumerate(self.h):
            run = block if inside else _as_function(block, checkpoint_blocks)
            x_BTD, own = run(x_BTD, positions_BT, of_block(cache, layer), segments_BT, keys[layer])
            caches.append(own)
        return self.ln_f(x_BTD), of_blocks(cache, caches)


def _as_function(block: Block, checkpoint: bool) -> Callable[..., tuple[jax.Array, Cache | None]]:
    """The block as a pure function of its parameters; with `checkpoint` its inside is computed again for the gradient."""
    layer = block.layer if block.config.scale_attn_by_inverse_layer_idx else 0  # else all blocks are one function
    run = functools.partial(_apply_block, config=block.config, layer=layer)
    return functools.partial(jax.checkpoint(run) if checkpoint else run, block.variables["params"])


@functools.partial(jax.jit, static_argnames=("config", "layer"))
def _apply_block(
    params: dict[str, Any],
    x_BTD: jax.Array,
    positions_BT: jax.Array,
    cache: Cache | None,
    segments_BT: jax.Array | None,
    dropout_key: jax.Array | None,
    *,
    config: GPT2Config,
    layer: int,
) -> tuple[jax.Array, Cache | None]:
    """Jitted so that a program of many blocks is traced and lowered once for all of them: XLA inlines the calls."""
    block: Any = Block(config, layer, parent=None)
    with jax.named_scope("block"):
        return block.apply({"params": params}, x_BTD, positions_BT, cache, segments_BT, dropout_key)


def _residual_stddev(config: GPT2Config) -> float:
    """What is added to the residual stream starts smaller by the root of the number of additions (Radford 2019, 2.3)."""
    return config.initializer_range / math.sqrt(2 * config.n_layer)


def _split(key: jax.Array | None) -> tuple[jax.Array, jax.Array] | tuple[None, None]:
    if key is None:
        return None, None
    one, other = jax.random.split(key)
    return one, other
