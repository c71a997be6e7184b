"""GPT-2 as pure functions: parameters, tokens and a cache in; hidden states and the cache out.

    tokens_BT ─embed→ x_BTD ─L blocks→ x_BTD ─ln_f→ x_BTD          `hidden`
    x ─head→ logits, float32                                        `logits`

The modules in Linen are in `modules.py`; nobody else calls them.

Letters: B rows, T query length, S cache slots, D model, V vocabulary (padded to a multiple of 128).

**Layout.** A weight is stored with its output first and contracted on its last axis: c_attn (3, H, K, D), so that heads
shard without a permute; attn.c_proj (D, H, K); c_fc (F, D); mlp.c_proj (D, F). On CPU that is two to three times faster
than (in, out) once there is more than one row. `convert/mapping.py` is the only other place that knows it.

**Dtype.** The computation has the parameters' dtype. In float32 every product is float32 on every platform (TPUs would
otherwise multiply in bfloat16). Statistics of LayerNorm, softmax and logits are float32 always.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from dialogpt_jax.arguments import shown
from dialogpt_jax.cache import KVCache, ReplyCache
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.errors import counted
from dialogpt_jax.int8 import is_int8
from dialogpt_jax.matmul import matmul
from dialogpt_jax.modules import GPT2
from dialogpt_jax.parameter_shapes import check_shapes, model_shapes
from dialogpt_jax.token_arrays import Array, as_float_dtype, as_key, as_tokens, check_width

Params = dict[str, Any]  # a plain pytree of arrays, keyed by the modules' names
CacheT = TypeVar("CacheT", KVCache, ReplyCache, None)


def init_params(config: GPT2Config, key: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> Params:
    """Fresh parameters as GPT-2 draws them: N(0, initializer_range), residual projections smaller, biases zero.

    Args:
      config: the sizes.
      key: a `jax.random.key`.
      dtype: of every parameter.

    Example:
      >>> config = dg.GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, eos_token_id=299)
      >>> params = dg.init_params(config, jax.random.key(0))
      >>> params["wpe"]["embedding"].shape
      (64, 32)
    """
    if not isinstance(config, GPT2Config):
        raise TypeError(f"config is {shown(config)}; give a GPT2Config, such as GPT2Config.small()")
    as_key("key", key)
    dtype = as_float_dtype("dtype", dtype)
    zeros_BT = jnp.zeros((1, 1), jnp.int32)
    trunk_key, head_key = jax.random.split(key)
    params = GPT2(config).init(trunk_key, zeros_BT, zeros_BT)["params"]
    if not config.tie_word_embeddings:
        shape = (config.padded_vocab_size, config.n_embd)
        params["lm_head"] = {"kernel": config.initializer_range * jax.random.normal(head_key, shape)}
    return jax.tree.map(lambda x: x.astype(dtype), params)


def check_params(params: Params, config: GPT2Config) -> None:
    """Whether parameters are those of a config, floating or int8.

    Raises:
      TypeError: `config` is no `GPT2Config`, or `params` no tree of parameters.
      ValueError: one is missing, surplus or has another shape; the message names the first.
    """
    if not isinstance(config, GPT2Config):
        raise TypeError(f"config is {shown(config)}; give the GPT2Config that belongs to the parameters")
    if not isinstance(params, Mapping):
        raise TypeError(f"params are {shown(params)}; give the tree that load_params and init_params return")
    blocks = {name for name in params if str(name).startswith("h_")}
    if len(blocks) != config.n_layer or f"h_{config.n_layer - 1}" not in blocks:
        held = counted(len(blocks), "blocks")
        raise ValueError(f"the parameters have {held}; the config's n_layer is {config.n_layer}")
    outside, block = model_shapes(config, is_int8(params))
    check_shapes("", {name: leaf for name, leaf in params.items() if name not in blocks}, outside)
    for layer in range(config.n_layer):
        check_shapes(f"h_{layer}/", params[f"h_{layer}"], block)


def compute_dtype(params: Params) -> jnp.dtype:
    """The dtype of the computation, which is the parameters', or with int8 weights that of the others."""
    return jnp.dtype(params["wte"]["embedding"].dtype)


def hidden(
    params: Params,
    config: GPT2Config,
    tokens_BT: Array,
    positions_BT: Array | int,
    cache: CacheT = None,  # type: ignore[assignment]  # without one, its type is None
    *,
    segments_BT: Array | None = None,
    dropout_key: jax.Array | None = None,
    checkpoint_blocks: bool = False,
) -> tuple[jax.Array, CacheT]:
    """The last hidden state of every token, x_BTD in the parameters' dtype, and the cache with these tokens written.

    Args:
      params, config: the model.
      tokens_BT: int32 ids, pads included: they must be in range, and nothing is inferred from them.
      positions_BT: int32, consecutive in a row. A pad's may run past `n_positions`; a token's may not. One number: that of
        the first token in every row, all of whose slots a `KVCache` must have; they are then written as one block.
      cache: `None`: the tokens see the earlier ones of `tokens_BT` by index. A `KVCache`: they are written to the
        slots of their positions and see the slots up to there. A `ReplyCache`: B·N rows, written to the replies.
      segments_BT: without a cache, tokens see their own segment only (packed training).
      dropout_key: dropout with the config's rates; without it, none.
      checkpoint_blocks: for a gradient, keep only what enters each block and compute its inside again.

    Positions and the cache:

        turn 1, 3 tokens:   positions [0 1 2], cache empty        → slots 0..2 written
        reply, 2 tokens:    positions [3], then [4]               → slots 3, 4
        turn 2, 2 tokens:   positions [5 6]                       → slots 5, 6, seeing 0..6

    Raises:
      ValueError: the parameters are not those of the config; the shapes of tokens and positions differ; `segments_BT`
        with a cache; without either, rows of more than `n_positions` tokens.
    """
    check_params(params, config)
    positions_BT = jnp.asarray(positions_BT, jnp.int32)
    if tokens_BT.ndim != 2 or positions_BT.shape not in ((), tokens_BT.shape):
        raise ValueError(
            f"tokens have the shape {tokens_BT.shape} and positions {positions_BT.shape}; both must be (rows, tokens)"
        )
    if cache is not None and segments_BT is not None:
        raise ValueError("segments_BT is for packed training; a cache knows its rows by their positions")
    if cache is None and segments_BT is None:
        check_width(config, tokens_BT)
    trunk: Any = GPT2(config)
    return trunk.apply({"params": params}, tokens_BT, positions_BT, cache, segments_BT, dropout_key, checkpoint_blocks)


def head_kernel(params: Params, config: GPT2Config) -> jax.Array:
    """The head's weight (V, D): the embedding where they are tied."""
    return params["lm_head"]["kernel"] if "lm_head" in params else params["wte"]["embedding"]


def logits_by(kernel_VD: jax.Array, config: GPT2Config, x: jax.Array) -> jax.Array:
    """`logits` by a head's weight that is at hand."""
    out = matmul(x.reshape(-1, x.shape[-1]), kernel_VD).reshape(*x.shape[:-1], -1)
    if config.padded_vocab_size == config.vocab_size:
        return out
    real_V = jnp.arange(config.padded_vocab_size) < config.vocab_size
    return jnp.where(jnp.expand_dims(real_V, tuple(range(out.ndim - 1))), out, -jnp.inf)


def logits(params: Params, config: GPT2Config, x: jax.Array) -> jax.Array:
    """Hidden states (…, D) → float32 logits (…, V), V padded to a multiple of 128, the pad −inf."""
    with jax.named_scope("head"):
        return logits_by(head_kernel(params, config), config, x)


def forward(params: Params, config: GPT2Config, tokens_BT: Any) -> jax.Array:
    """Float32 logits (B, T, vocab_size) of the token after each one: the plain language model, without a cache.

    Args:
      params, config: the model.
      tokens_BT: int32 ids, an array or lists of one length, at most `n_positions`; pads must be ids too.

    Raises:
      ValueError: shape, dtype or ids do not fit (ids, where they are not traced); the message has the numbers.

    Example:
      >>> tokens_BT = np.array([bot.encode(["Hi!", "Hello.", "How are you?"])])
      >>> logits_BTV = jax.jit(dg.forward, static_argnums=1)(bot.params, bot.config, tokens_BT)
      >>> logits_BTV.shape == (*tokens_BT.shape, bot.config.vocab_size)
      True
    """
    check_params(params, config)
    tokens_BT = as_tokens(config, tokens_BT)
    x_BTD, _ = hidden(params, config, tokens_BT, 0)
    return logits(params, config, x_BTD)[..., : config.vocab_size]
