"""The objective: parameters and a batch in, a scalar and its counts out.

Letters: B rows, T tokens, V vocabulary.
"""

import jax
import jax.numpy as jnp

from dialogpt_jax import model
from dialogpt_jax.config import GPT2Config


def token_losses(
    params: model.Params, config: GPT2Config, tokens_BT: jax.Array, *, dropout_key: jax.Array | None = None
) -> jax.Array:
    """−log p(token t | tokens before it), float32 (B, T), in nats; the first of each row, which nothing predicts, is 0.

    Worked example: tokens [a b c] → [0, −log p(b|a), −log p(c|ab)].
    """
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
    x_BTD, _ = model.hidden(params, config, tokens_BT, positions_BT, dropout_key=dropout_key)
    logits_BTV = model.logits(params, config, x_BTD[:, :-1])
    target_BT = jnp.take_along_axis(logits_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT, ((0, 0), (1, 0)))


def loss(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Σ weight · −log p / Σ weight over the whole batch, and Σ weight; (0, 0) where nothing is a target.

    Source: arXiv 1911.00536, equation 1; per batch as in microsoft/DialoGPT `lsp_model/modeling_gpt2.py`.
    """
    losses_BT = token_losses(params, config, tokens_BT, dropout_key=dropout_key)
    weights_BT = weights_BT.at[:, 0].set(0.0)
    total = weights_BT.sum()
    return (losses_BT * weights_BT).sum() / jnp.maximum(total, 1e-9), total
