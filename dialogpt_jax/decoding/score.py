"""How probable a given reply is: prompts with their replies in, log-probabilities out.

Letters: B rows, T tokens, N candidates of a row, R tokens of a reply, M = B·N, V vocabulary (padded).
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from dialogpt_jax.cache import init_cache, init_reply
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.generate import prefill
from dialogpt_jax.likelihood import token_losses
from dialogpt_jax.model import Params, hidden, logits


@struct.dataclass
class Scores:
    """Of B replies.

    Attributes:
      logprobs: float32 (B, T), log p(token | tokens before it) where the token is the reply's, else 0.
      total: float32 (B,), their sum: log P(reply | context).
      mean: float32 (B,), per token; `exp(-mean)` is the reply's perplexity.

    Example:
      >>> scores.logprobs.shape == (1, len(context) + len(reply))
      True
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
      lengths_B: int32, real tokens of the row; what stands in the pads changes nothing.

        tokens [c c c r r pad], start 3, length 5:   logprobs [0 0 0 x x 0]

    Example:
      >>> context, reply = bot.encode(["Hi!"]), bot.encode(["Hello."])  # each ends in EOS
      >>> starts_B, lengths_B = np.array([len(context)]), np.array([len(context) + len(reply)])
      >>> scores = dg.score(bot.params, bot.config, np.array([context + reply]), starts_B, lengths_B)
      >>> bool(scores.total[0] < 0)
      True
    """
    index_T = jnp.arange(tokens_BT.shape[1])[None]
    # A pad may hold anything, but the embedding gives NaN out of range, and 0 · NaN poisons a masked sum.
    tokens_BT = jnp.where(index_T < lengths_B[:, None], tokens_BT, 0)
    reply_BT = (index_T >= jnp.maximum(starts_B, 1)[:, None]) & (index_T < lengths_B[:, None])
    logprobs_BT = jnp.where(reply_BT, -token_losses(params, config, tokens_BT), 0.0)
    total_B = logprobs_BT.sum(axis=1)
    return Scores(logprobs_BT, total_B, total_B / jnp.maximum(reply_BT.sum(axis=1), 1))


@functools.partial(jax.jit, static_argnames="config")
def score_candidates(
    params: Params,
    config: GPT2Config,
    context_BT: jax.Array,
    lengths_B: jax.Array,
    replies_BNR: jax.Array,
    counts_BN: jax.Array,
) -> Scores:
    """Log-probabilities of N replies to each context, which is computed once and shared; fields are (B, N, …).

    Args:
      context_BT: int32, right-padded; `lengths_B` real tokens each.
      replies_BNR: int32, right-padded; `counts_BN` real tokens each, EOS included where it counts.

    Context and reply together must fit into `n_positions`.
    """
    rows, candidates, slots = replies_BNR.shape
    real_BNR = jnp.arange(slots)[None, None] < counts_BN[..., None]
    replies_MR = jnp.where(real_BNR, replies_BNR, 0).reshape(-1, slots)
    context_BT = jnp.where(jnp.arange(context_BT.shape[1])[None] < lengths_B[:, None], context_BT, 0)
    empty = init_cache(config, rows, context_BT.shape[1], params["wte"]["embedding"].dtype)
    first_BV, prefix = prefill(params, config, context_BT, lengths_B, empty)
    positions_MR = jnp.repeat(lengths_B, candidates)[:, None] + jnp.arange(slots)[None]
    cache = init_reply(config, prefix, lengths_B, candidates, slots)
    x_MRD, _ = hidden(params, config, replies_MR, positions_MR, cache)
    # The first token is predicted by the context, each other by the one before it.
    later_MRV = logits(params, config, x_MRD[:, :-1])
    logits_MRV = jnp.concatenate([jnp.repeat(first_BV, candidates, axis=0)[:, None], later_MRV], axis=1)
    chosen_MR = jnp.take_along_axis(logits_MRV, replies_MR[..., None], axis=-1)[..., 0]
    logprobs_BNR = (chosen_MR - jax.nn.logsumexp(logits_MRV, axis=-1)).reshape(replies_BNR.shape)
    logprobs_BNR = jnp.where(real_BNR, logprobs_BNR, 0.0)
    total_BN = logprobs_BNR.sum(axis=-1)
    return Scores(logprobs_BNR, total_BN, total_BN / jnp.maximum(counts_BN, 1))
