"""How contrastive search chooses, as a caller says it: two numbers in, checked options out. Nothing here imports jax."""

import dataclasses

from dialogpt_jax.arguments import MOST, as_number, as_whole_number

DEFAULT_ALPHA, DEFAULT_K = 0.6, 4  # Su et al. 2022, section 5, for open-ended text: α 0.6, and k from 4 to 8


@dataclasses.dataclass(frozen=True)
class ContrastiveOptions:
    """A contrastive search.

    Attributes:
      penalty_alpha: α, from 0 (the likeliest token: greedy) to 1 (the newest of the k).
      top_k: so many tokens are tried at each step.

    Raises:
      ValueError: one of them is out of range.
    """

    penalty_alpha: float = DEFAULT_ALPHA
    top_k: int = DEFAULT_K

    def __post_init__(self) -> None:
        as_number("penalty_alpha", self.penalty_alpha, most=1.0)
        as_whole_number("top_k", self.top_k, least=1, most=MOST)


def describe_contrastive(options: ContrastiveOptions) -> str:
    """For a person: `contrastive search, penalty_alpha 0.6, top_k 4`."""
    return f"contrastive search, penalty_alpha {options.penalty_alpha:g}, top_k {options.top_k}"
