"""The objective: parameters and a batch in, scalars out. Logits are never held whole: the head works in chunks along T.

Letters: B rows, T tokens, C chunks, D model, V vocabulary (padded), M rows times tokens of one chunk.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax import model
from dialogpt_jax.arguments import as_flag, as_whole_number
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.int8 import check_trainable
from dialogpt_jax.likelihood import (
    CHUNK,
    at_tokens,
    chunk_logits,
    first_of_text,
    hidden_of_texts,
    next_tokens,
    split_chunks,
)
from dialogpt_jax.matmul import product_gradient
from dialogpt_jax.token_arrays import as_key, as_segments, as_tokens
from dialogpt_jax.training.distillation import Teacher, Views, heads, mean_probabilities


def loss(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    segments_BT: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    checkpoint_blocks: bool = False,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """Σ weight · −log p / Σ weight over the whole batch, and Σ weight; (0, 0) where nothing is a target.

    Args: those of `summed_loss`; lists will do for the arrays.

    Raises:
      TypeError: `config`, `params`, `dropout_key` or `checkpoint_blocks` is something else.
      ValueError: shapes or values that cannot be, or rows longer than `n_positions`. Values are looked at where they are
        at hand, weights in lists and NumPy's arrays only, and not within a compiled program.

    Source: arXiv 1911.00536, equation 1; per batch as in microsoft/DialoGPT `lsp_model/modeling_gpt2.py`.

    Example:
      >>> tokens_BT = np.array([bot.encode(["Hi!", "Hello."])])
      >>> weights_BT = np.ones(tokens_BT.shape, np.float32)
      >>> value, targets = jax.jit(dg.loss, static_argnums=1)(bot.params, bot.config, tokens_BT, weights_BT)
      >>> float(targets) == tokens_BT.size - 1  # nothing comes before the first token: it is no target
      True
    """
    model.check_params(params, config)
    check_trainable(params)
    tokens_BT, weights_BT = _checked(config, tokens_BT, weights_BT)
    checked_BT: Any = None if segments_BT is None else as_segments(segments_BT, tokens_BT)
    total, weight = summed_loss(
        params,
        config,
        tokens_BT,
        weights_BT,
        segments_BT=checked_BT,
        dropout_key=None if dropout_key is None else as_key("dropout_key", dropout_key),
        checkpoint_blocks=as_flag("checkpoint_blocks", checkpoint_blocks),
        chunk=as_whole_number("chunk", chunk, least=1),
    )
    return total / jnp.maximum(weight, 1e-9), weight


def _checked(config: GPT2Config, tokens_BT: Any, weights_BT: Any) -> tuple[Any, Any]:
    """Tokens and weights as arrays that fit each other and the model."""
    tokens_BT = as_tokens(config, tokens_BT)
    if not isinstance(weights_BT, jax.Array):
        weights_BT = np.asarray(weights_BT)
    if tokens_BT.shape != weights_BT.shape:
        raise ValueError(f"tokens are {tokens_BT.shape} and weights {weights_BT.shape}; give a weight for each token")
    if isinstance(weights_BT, np.ndarray) and not (np.isfinite(weights_BT).all() and (weights_BT >= 0).all()):
        raise ValueError("a weight is below 0, or not finite; a token that is no target weighs 0")
    return tokens_BT, weights_BT.astype(np.float32)


def summed_loss(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    segments_BT: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    checkpoint_blocks: bool = False,
    chunk: int = CHUNK,
    teachers: Sequence[Teacher] = (),
    share: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Σ weight · −log p in nats, and Σ weight, both float32: what several batches can be added from.

    Args:
      params, config: the model.
      tokens_BT: int32, pads in range.
      weights_BT: float32, the weight of each token as a target; the first of a row has none, whatever stands there. No
        gradient flows into weights.
      segments_BT: int32, where rows hold several packed examples: nothing attends across, positions restart. A
        segment's first token, which nothing predicts, has no weight either.
      dropout_key: dropout with the config's rates; without it, none.
      checkpoint_blocks: keep only what enters each block, and compute its inside again for the gradient.
      chunk: tokens of a row whose logits are held at once.
      teachers: models whose distributions are the targets too, without dropout; no gradient flows into them.
      share: of the targets that is theirs, 0 to 1: −log p becomes the cross-entropy to the mixed distribution.
    """
    weights_BT = jnp.where(first_of_text(segments_BT, tokens_BT), 0.0, weights_BT)
    x_BTD = hidden_of_texts(params, config, tokens_BT, segments_BT, dropout_key, checkpoint_blocks)
    kernel_VD = model.head_kernel(params, config)
    taught = None
    if teachers:
        with jax.named_scope("teachers"):
            hidden = [hidden_of_texts(t.params, t.config, tokens_BT, segments_BT, None, False) for t in teachers]
            taught = (Views(hidden, heads(teachers)), jnp.float32(share))  # the head's rule gives it no gradient
    with jax.named_scope("head"):
        total = _weighted_head(x_BTD, kernel_VD, next_tokens(tokens_BT), next_tokens(weights_BT), taught, config, chunk)
    return total, weights_BT.sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _weighted_head(x_BTD, kernel_VD, next_BT, weights_BT, taught, config, chunk):
    """Σ weight · −Σ_v target[v] · log softmax(x kernelᵀ)[v]; the target is the next token, or mixed with what is taught.

    Its gradient is made in the forward pass, chunk by chunk, where the logits are at hand: three products, where computing
    the logits again would need four. Where no gradient is asked for, none is made.
    """

    def add(total, pieces):
        x_BtD, next_Bt, weights_Bt, taught_Bt = pieces
        logits_MV = chunk_logits(x_BtD, kernel_VD, config)
        return total + _cost(logits_MV, next_Bt, weights_Bt, _taught(taught, taught_Bt, config))[0], None

    return jax.lax.scan(add, jnp.zeros((), jnp.float32), _pieces(x_BTD, next_BT, weights_BT, taught, chunk))[0]


def _head_forward(x_BTD, kernel_VD, next_BT, weights_BT, taught, config, chunk):
    def add(sums, pieces):
        total, dkernel_VD = sums
        x_BtD, next_Bt, weights_Bt, taught_Bt = pieces
        logits_MV = chunk_logits(x_BtD, kernel_VD, config)
        mixed = _taught(taught, taught_Bt, config)
        cost, logsum_M = _cost(logits_MV, next_Bt, weights_Bt, mixed)
        target_MV = jnp.arange(logits_MV.shape[1])[None] == next_Bt.reshape(-1, 1)
        if mixed is not None:
            probs_MV, share = mixed
            target_MV = (1 - share) * target_MV + share * probs_MV
        dlogits_MV = (jnp.exp(logits_MV - logsum_M[:, None]) - target_MV) * weights_Bt.reshape(-1, 1)
        dx_MD, dw_VD = product_gradient(x_BtD.reshape(-1, x_BtD.shape[-1]), kernel_VD, dlogits_MV)
        return (total + cost, dkernel_VD + dw_VD), dx_MD.astype(x_BtD.dtype).reshape(x_BtD.shape)

    zeros = (jnp.zeros((), jnp.float32), jnp.zeros(kernel_VD.shape, jnp.float32))
    (total, dkernel_VD), dx_CBtD = jax.lax.scan(add, zeros, _pieces(x_BTD, next_BT, weights_BT, taught, chunk))
    dx_BTD = jnp.moveaxis(dx_CBtD, 0, 1).reshape(x_BTD.shape[0], -1, x_BTD.shape[2])[:, : x_BTD.shape[1]]
    return total, (dx_BTD, dkernel_VD.astype(kernel_VD.dtype))


def _head_backward(vocab_size, chunk, saved, g):
    dx_BTD, dkernel_VD = saved
    return (g * dx_BTD).astype(dx_BTD.dtype), (g * dkernel_VD).astype(dkernel_VD.dtype), None, None, None


_weighted_head.defvjp(_head_forward, _head_backward)


def _pieces(x_BTD, next_BT, weights_BT, taught, chunk):
    """Everything that goes with the tokens, in chunks along T."""
    hidden = None if taught is None else [split_chunks(a, chunk) for a in taught[0].hidden]
    return *(split_chunks(a, chunk) for a in (x_BTD, next_BT, weights_BT)), hidden


def _taught(taught, hidden_Bt, config):
    """The teachers' mean distribution of a chunk, (M, V), and its share of the targets; `None` where there are none."""
    if taught is None:
        return None
    views, share = taught
    return mean_probabilities(Views(hidden_Bt, views.kernels), config), share


def _cost(logits_MV, next_Bt, weights_Bt, mixed):
    logsum_M = jax.nn.logsumexp(logits_MV, axis=-1)
    expected_M = at_tokens(logits_MV, next_Bt)
    if mixed is not None:
        probs_MV, share = mixed
        real_MV = jnp.where(jnp.isneginf(logits_MV), 0.0, logits_MV)  # the vocabulary's pads, which nobody expects
        expected_M = (1 - share) * expected_M + share * (probs_MV * real_MV).sum(axis=-1)
    costs_Bt = (logsum_M - expected_M).reshape(weights_Bt.shape)
    # Summed over both axes: jaxlib 0.10.2 for CPU sums three merged numbers wrongly, if vmapped over more than 32,768 rows
    # (jax #39103).
    return (weights_Bt * costs_Bt).sum(), logsum_M
