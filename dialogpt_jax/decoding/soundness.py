"""Whether the log-probabilities of a reply's tokens are numbers, in; nothing out, or one error.

A token drawn from logits among which one is NaN or +infinity has a log-probability that is NaN or −infinity, and those of a
reply come to the host anyway. Unchecked, such a model replies with the vocabulary's first token, for ever.
"""


class NonFiniteLogits(ValueError):
    """The model's logits are NaN or infinite: its weights are damaged, or too large for their dtype."""


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
