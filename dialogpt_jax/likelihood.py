"""How probable given tokens are: parameters and tokens in, −log p of each token out; what loss, score and evaluation share.

Logits are never held whole: the head works in chunks along T.

Letters: B rows, T tokens, t tokens of a chunk, C chunks, D model, V vocabulary (padded), M rows times tokens of one chunk.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dialogpt_jax import model
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.token_arrays import Array, as_tokens

# Tokens of each row whose logits are held at once: enough for full speed; 64 · 50,304 · 4 B are 13 MB a row.
CHUNK = 64


def token_losses(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: Any,
    *,
    segments_BT: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    chunk: int = CHUNK,
) -> jax.Array:
    """−log p(token t | tokens before it), float32 (B, T), in nats; the first of each row, which nothing predicts, is 0.

    Worked example: tokens [a b c] → [0, −log p(b|a), −log p(c|ab)]. With `segments_BT` each segment is such a row.

    Raises:
      ValueError: the tokens do not fit the model; the message has the numbers.
    """
    model.check_params(params, config)
    tokens_BT = as_tokens(config, tokens_BT)
    x_BTD = hidden_of_texts(params, config, tokens_BT, segments_BT, dropout_key, False)
    losses_BT = losses_of_hidden(params, config, x_BTD, next_tokens(tokens_BT), chunk=chunk)
    losses_BT = jnp.pad(losses_BT[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(first_of_text(segments_BT, tokens_BT), 0.0, losses_BT)


def losses_of_hidden(
    params: model.Params, config: GPT2Config, x_BTD: jax.Array, next_BT: Any, *, chunk: int = CHUNK
) -> jax.Array:
    """−log p of the token that comes after each hidden state, float32 (B, T), in nats.

    Args:
      x_BTD: the model's last hidden states.
      next_BT: int32, the token whose probability is asked.
      chunk: tokens of each row whose logits are held at once.
    """
    kernel_VD = model.head_kernel(params, config)

    def costs(pieces: tuple[jax.Array, jax.Array]) -> jax.Array:
        x_BtD, next_Bt = pieces
        logits_MV = chunk_logits(x_BtD, kernel_VD, config)
        return (jax.nn.logsumexp(logits_MV, axis=-1) - at_tokens(logits_MV, next_Bt)).reshape(next_Bt.shape)

    with jax.named_scope("head"):
        losses_CBt = jax.lax.map(jax.checkpoint(costs), (split_chunks(x_BTD, chunk), split_chunks(next_BT, chunk)))
    return jnp.moveaxis(losses_CBt, 0, 1).reshape(x_BTD.shape[0], -1)[:, : x_BTD.shape[1]]


def next_tokens(a_BT: Array) -> jax.Array:
    """The array shifted by one: each place holds the next token's value, the last place 0."""
    return jnp.pad(a_BT[:, 1:], ((0, 0), (0, 1)))


def split_chunks(a_BT: jax.Array, chunk: int) -> jax.Array:
    """(B, T, …) → (C, B, t, …): the fewest equal chunks of at most `chunk` tokens; the last is padded by zeros."""
    length = a_BT.shape[1]
    count = -(-length // chunk)
    size = -(-length // count)
    padded_BT = jnp.pad(a_BT, ((0, 0), (0, count * size - length), *[(0, 0)] * (a_BT.ndim - 2)))
    return jnp.moveaxis(padded_BT.reshape(a_BT.shape[0], count, size, *a_BT.shape[2:]), 1, 0)


def hidden_of_texts(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: Array,
    segments_BT: jax.Array | None,
    dropout_key: jax.Array | None,
    checkpoint_blocks: bool,
) -> jax.Array:
    """The last hidden states of rows that hold one text each, or several where `segments_BT` tells them apart."""
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
    if segments_BT is not None:  # positions restart: the index, less that of the segment's first token
        starts_BT = jnp.where(first_of_text(segments_BT, tokens_BT), positions_BT, 0)
        positions_BT = positions_BT - jax.lax.cummax(starts_BT, axis=1)
    x_BTD, _ = model.hidden(
        params,
        config,
        tokens_BT,
        positions_BT,
        segments_BT=segments_BT,
        dropout_key=dropout_key,
        checkpoint_blocks=checkpoint_blocks,
    )
    return x_BTD


def first_of_text(segments_BT: jax.Array | None, tokens_BT: Array) -> jax.Array:
    """Where nothing stands before a token that predicts it, bool (B, T)."""
    if segments_BT is None:
        return (jnp.arange(tokens_BT.shape[1]) == 0)[None]
    return jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)


def at_tokens(logits_MV: jax.Array, next_Bt: jax.Array) -> jax.Array:
    """The entry of each row of logits that belongs to its token."""
    return jnp.take_along_axis(logits_MV, next_Bt.reshape(-1, 1), axis=-1)[:, 0]


def chunk_logits(x_BtD: jax.Array, kernel_VD: jax.Array, config: GPT2Config) -> jax.Array:
    """Logits of a chunk, its rows and tokens merged."""
    return model.logits_by(kernel_VD, config, x_BtD.reshape(-1, x_BtD.shape[-1]))
