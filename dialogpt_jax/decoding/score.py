"""How probable a given reply is: prompts with their replies in, log-probabilities out.

Letters: B rows, T tokens.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.model import Params
from dialogpt_jax.training.loss import token_losses


@struct.dataclass
class Scores:
    """Of B replies.

    Attributes:
      logprobs: float32 (B, T), log p(token | tokens before it) where the token is the reply's, else 0.
      total: float32 (B,), their sum: log P(reply | context).
      mean: float32 (B,), per token; `exp(-mean)` is the reply's perplexity.
    """

    logprobs: jax.Array
    total: jax.Array
    mean: jax.Array


@functools.partial(jax.jit, static_argnames="config")
def score(
    params: Params, config: GPT2Config, tokens_BT: jax.Array, starts_B: jax.Array, lengths_B: jax.Array
) -> Scores:
    """Log-probabilities of replies, equal to the `logprobs` that `generate` reports for them.

    Args:
      tokens_BT: int32, context and reply, right-padded.
      starts_B: int32, where the reply begins, at least 1.
      lengths_B: int32, real tokens of the row.

        tokens [c c c r r pad], start 3, length 5:   logprobs [0 0 0 x x 0]
    """
    index_T = jnp.arange(tokens_BT.shape[1])[None]
    reply_BT = (index_T >= jnp.maximum(starts_B, 1)[:, None]) & (index_T < lengths_B[:, None])
    logprobs_BT = jnp.where(reply_BT, -token_losses(params, config, tokens_BT), 0.0)
    total_B = logprobs_BT.sum(axis=1)
    return Scores(logprobs_BT, total_B, total_B / jnp.maximum(reply_BT.sum(axis=1), 1))
