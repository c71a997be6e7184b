"""Against what could be said to anything: a language model without the context, whose log-probabilities are taken off.

Letters: M rows, R reply slots, G first tokens, D model, V vocabulary (padded).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dialogpt_jax import model
from dialogpt_jax.arguments import as_number, as_whole_number
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.processors import ReplyState


def anti_lm(params: Any, config: GPT2Config, *, weight: float = 0.5, tokens: int = 5) -> "AntiModel":
    """A processor: log P(token | context, reply) − weight · log P(token | reply), for the first tokens of a reply.

    The second is the model's after a lone EOS, as of a reply that answers nothing. Only the first tokens are changed: they
    decide what is said, and grammar suffers from more (Li et al. 2016, section 4.5.1, MMI-antiLM).

    Args:
      params, config: the language model, as a rule the one that replies.
      weight: λ, from 0 to 1.
      tokens: γ, how many of the reply's tokens are changed. Each costs the model's time for that many: there is no cache.

    Raises:
      ValueError: a number is out of range.

    Example:
      >>> anti = dg.anti_lm(bot.params, bot.config, weight=0.4, tokens=3)
      >>> bot.reply("Any plans for today?", sampling=dg.Sampling(temperature=0.3, top_k=10, processors=[anti]))
      '...'
    """
    model.check_params(params, config)
    tokens = as_whole_number("tokens", tokens, least=1, most=config.n_positions)
    return AntiModel(params, np.float32(as_number("weight", weight, most=1.0)), config, tokens)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AntiModel:
    """The processor of `anti_lm`, a pytree whose weight and parameters are traced."""

    params: Any
    weight: Any
    config: GPT2Config = dataclasses.field(metadata={"static": True})
    tokens: int = dataclasses.field(metadata={"static": True})

    @property
    def __name__(self) -> str:
        return f"anti_lm(weight {self.weight:g}, {self.tokens} tokens)"

    def __call__(self, logits_MV: jax.Array, state: ReplyState) -> jax.Array:
        early_M1 = (state.counts_M < self.tokens)[:, None]

        def lower(logits_MV: jax.Array) -> jax.Array:
            # The reply so far behind an EOS: place n predicts its token n.
            width = min(self.tokens, state.tokens_MR.shape[1])
            tokens_MG = jnp.pad(state.tokens_MR[:, : width - 1], ((0, 0), (1, 0)), constant_values=state.eos)
            x_MGD, _ = model.hidden(self.params, self.config, tokens_MG, 0)
            place_M11 = jnp.minimum(state.counts_M, width - 1)[:, None, None]
            x_MD = jnp.take_along_axis(x_MGD, place_M11, axis=1)[:, 0]
            alone_MV = jax.nn.log_softmax(model.logits(self.params, self.config, x_MD), axis=-1)
            # What a model or a processor before this forbids stays so; a pad of the vocabulary is −inf in both.
            return jnp.where(early_M1 & jnp.isfinite(logits_MV), logits_MV - self.weight * alone_MV, logits_MV)

        return jax.lax.cond(early_M1.any(), lower, lambda logits_MV: logits_MV, logits_MV)
