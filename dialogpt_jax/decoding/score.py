"""How probable a given reply is: prompts with their replies in, log-probabilities out.

Letters: B rows, T tokens, N candidates of a row, R tokens of a reply, M = B·N, P = M·(R − 1) places, D model,
V vocabulary (padded).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax.cache import cache_dtype, init_cache, init_reply
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.prefill import prefill
from dialogpt_jax.errors import counted
from dialogpt_jax.likelihood import losses_of_hidden, token_losses
from dialogpt_jax.model import Params, check_params, hidden
from dialogpt_jax.token_arrays import Array, array_library, as_integers, as_lengths, as_tokens, check_width, is_traced

# Places of all candidates together whose logits are held at once: 256 · 50,304 · 4 B are 51 MB. Of 200 replies of 32
# tokens all at once they would be 1.3 GB.
CHUNK = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
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

    def __repr__(self) -> str:
        shape = f"logprobs {jnp.shape(self.logprobs)}"
        if is_traced(self.total) or not isinstance(self.total, Array):
            return f"Scores({shape})"
        totals = np.asarray(self.total)
        span = f"log P from {totals.min(initial=np.inf):.2f} to {totals.max(initial=-np.inf):.2f}"
        return f"Scores({counted(totals.size, 'replies')}, {span}; {shape})"


def score(params: Params, config: GPT2Config, tokens_BT: Any, starts_B: Any, lengths_B: Any) -> Scores:
    """Log-probabilities of replies, equal to the `logprobs` that `generate` reports for them.

    One compiled call; it may be called inside `jit` too, with `config` static.

    Args:
      tokens_BT: int32, context and reply, right-padded; at most `n_positions` wide.
      starts_B: int32, where the reply begins, up to the row's length; the first token of a row has no score.
      lengths_B: int32, real tokens of the row; what stands in the pads changes nothing.

        tokens [c c c r r pad], start 3, length 5:   logprobs [0 0 0 x x 0]

    Raises:
      ValueError: shapes, starts, lengths or ids do not fit, as far as they are at hand; the message has the numbers.

    Example:
      >>> context, reply = bot.encode(["Hi!"]), bot.encode(["Hello."])  # each ends in EOS
      >>> starts_B, lengths_B = np.array([len(context)]), np.array([len(context) + len(reply)])
      >>> scores = dg.score(bot.params, bot.config, np.array([context + reply]), starts_B, lengths_B)
      >>> bool(scores.total[0] < 0)
      True
    """
    check_params(params, config)
    tokens_BT = as_integers("tokens", tokens_BT, ndim=2)
    check_width(config, tokens_BT)
    rows, length = tokens_BT.shape
    lengths_B = as_lengths("lengths", lengths_B, rows, least=1, most=length)
    starts_B = as_lengths("starts", starts_B, rows, least=0, most=lengths_B)
    return _score(params, config, as_tokens(config, tokens_BT, lengths_B), starts_B, lengths_B)


@functools.partial(jax.jit, static_argnames="config")
def _score(
    params: Params, config: GPT2Config, tokens_BT: jax.Array, starts_B: jax.Array, lengths_B: jax.Array
) -> Scores:
    index_T = jnp.arange(tokens_BT.shape[1])[None]
    reply_BT = (index_T >= jnp.maximum(starts_B, 1)[:, None]) & (index_T < lengths_B[:, None])
    logprobs_BT = jnp.where(reply_BT, -token_losses(params, config, tokens_BT), 0.0)
    total_B = logprobs_BT.sum(axis=1)
    return Scores(logprobs_BT, total_B, total_B / jnp.maximum(reply_BT.sum(axis=1), 1))


def score_candidates(
    params: Params, config: GPT2Config, context_BT: Any, lengths_B: Any, replies_BNR: Any, counts_BN: Any
) -> Scores:
    """Log-probabilities of N replies to each context, which is computed once and shared; fields are (B, N, …).

    Args:
      context_BT: int32, right-padded; `lengths_B` real tokens each.
      replies_BNR: int32, right-padded; `counts_BN` real tokens each, EOS included where it counts.

    Raises:
      ValueError: as `score`; or a context and a reply do not fit into `n_positions` together.
    """
    check_params(params, config)
    context_BT = as_integers("contexts", context_BT, ndim=2)
    rows, length = context_BT.shape
    lengths_B = as_lengths("lengths", lengths_B, rows, least=1, most=min(length, config.n_positions))
    replies_BNR = as_integers("replies", replies_BNR, ndim=3)
    counts_BN = as_integers("counts", counts_BN, ndim=2)
    if replies_BNR.shape[0] != rows or replies_BNR.shape[:2] != counts_BN.shape:
        shapes = f"replies of shape {replies_BNR.shape} and counts of shape {counts_BN.shape}"
        raise ValueError(f"{rows} contexts, {shapes}; give (rows, candidates, tokens) and (rows, candidates)")
    candidates, slots = replies_BNR.shape[1:]
    library = array_library(lengths_B, counts_BN)
    room_M = library.minimum(slots, library.repeat(config.n_positions - lengths_B, candidates))
    counts_M = as_lengths("counts", counts_BN.reshape(-1), rows * candidates, least=0, most=room_M)
    replies_MR = as_tokens(config, replies_BNR.reshape(-1, slots), counts_M, name="replies")
    context_BT = as_tokens(config, context_BT, lengths_B)
    return _score_candidates(
        params, config, context_BT, lengths_B, replies_MR.reshape(replies_BNR.shape), counts_M.reshape(counts_BN.shape)
    )


@functools.partial(jax.jit, static_argnames="config")
def _score_candidates(
    params: Params,
    config: GPT2Config,
    context_BT: jax.Array,
    lengths_B: jax.Array,
    replies_BNR: jax.Array,
    counts_BN: jax.Array,
) -> Scores:
    rows, candidates, slots = replies_BNR.shape
    real_BNR = jnp.arange(slots)[None, None] < counts_BN[..., None]
    replies_MR = replies_BNR.reshape(-1, slots)
    empty = init_cache(config, rows, context_BT.shape[1], cache_dtype(params))
    first_BV, prefix = prefill(params, config, context_BT, lengths_B, empty)
    positions_MR = jnp.repeat(lengths_B, candidates)[:, None] + jnp.arange(slots)[None]
    cache = init_reply(config, prefix, lengths_B, candidates, slots)
    x_MRD, _ = hidden(params, config, replies_MR, positions_MR, cache)
    # The first token is predicted by the context, each other by the one before it.
    first_BN = jnp.take_along_axis(first_BV, replies_BNR[..., 0], axis=1)
    first_BN = first_BN - jax.nn.logsumexp(first_BV, axis=1, keepdims=True)
    x_1PD, later_1P = x_MRD[:, :-1].reshape(1, -1, x_MRD.shape[-1]), replies_MR[:, 1:].reshape(1, -1)
    later_1P = -losses_of_hidden(params, config, x_1PD, later_1P, chunk=CHUNK) if slots > 1 else jnp.zeros((1, 0))
    later_BNR = later_1P.reshape(rows, candidates, slots - 1)
    logprobs_BNR = jnp.concatenate([first_BN[..., None], later_BNR], axis=-1)
    logprobs_BNR = jnp.where(real_BNR, logprobs_BNR, 0.0)
    total_BN = logprobs_BNR.sum(axis=-1)
    return Scores(logprobs_BNR, total_BN, total_BN / jnp.maximum(counts_BN, 1))
