"""Whether the log-probabilities of a reply's tokens are numbers, in; nothing out, or one error.

A token drawn from logits among which one is NaN or +infinity has a log-probability that is NaN or −infinity, and those of a
reply come to the host anyway. Unchecked, such a model replies with the vocabulary's first token, for ever; so it does where
the sampling leaves no token at all, which the decoding marks by a log-probability of +infinity.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FORBIDDEN = np.inf  # the log-probability of a token where none was possible


class NonFiniteLogits(ValueError):
    """The model's logits are NaN or infinite: its weights are damaged, or too large for their dtype."""


def marked(logprobs_M: jax.Array, possible_M: jax.Array) -> jax.Array:
    """Log-probabilities, `FORBIDDEN` where no token was possible; what is the model's own fault stays."""
    return jnp.where(possible_M | ~jnp.isfinite(logprobs_M), logprobs_M, FORBIDDEN)


def check_logprobs(logprobs: Any) -> None:
    """Passes if the log-probabilities of a reply are numbers.

    Raises:
      NonFiniteLogits: the model's were not.
      ValueError: no token was possible.
    """
    check_possible(not (logprobs == FORBIDDEN).any())
    check_finite(bool(np.isfinite(logprobs).all()))


def check_possible(is_possible: bool) -> None:
    """Passes if there was a token to choose.

    Raises:
      ValueError: there was none.
    """
    if not is_possible:
        raise ValueError(
            "no reply is possible: the sampling's processors forbid every token, or a function of theirs gives NaN or "
            "infinity"
        )


def check_finite(are_finite: bool) -> None:
    """Passes if all log-probabilities of a reply are.

    Raises:
      NonFiniteLogits: they are not.
    """
    if not are_finite:
        raise NonFiniteLogits(
            "the model's logits are NaN or infinite, so there is no reply; its weights are damaged, or too large for "
            "their dtype (float32 holds what float16 does not)"
        )
