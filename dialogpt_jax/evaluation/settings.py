"""How a model is asked for the replies that are measured: a decoding and a few numbers in; checked settings out.

Nothing here imports jax, for the help of a command shows the defaults.
"""

import dataclasses
from collections.abc import Mapping

from dialogpt_jax.decoding.beam_options import BeamOptions
from dialogpt_jax.decoding.contrastive_options import ContrastiveOptions
from dialogpt_jax.decoding.sampling import GREEDY, PAPER, Sampling
from dialogpt_jax.ranking.rank_options import Rank
from dialogpt_jax.replies.settings import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_SAMPLING,
    DEFAULT_SEED,
    checked_length,
    checked_sampling,
)

# Top-k is the paper's (section 3.3); nucleus has Holtzman et al.'s p for dialogue-sized models; chat is `Bot.reply`'s.
DECODINGS: Mapping[str, Sampling] = {
    "greedy": GREEDY,
    "topk": PAPER,
    "nucleus": Sampling(top_p=0.9),
    "chat": DEFAULT_SAMPLING,
}
DEFAULT_DECODING = "greedy"
RANKED_DECODING = "topk"  # the paper's; the best token would be the same for all hypotheses
ROWS = 32


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a model's replies to given contexts.

    Attributes:
      sampling: how a token is chosen.
      seed: of the draws, from 0.
      max_new_tokens: the longest reply, EOS included.
      beams: how beams are searched; `None`: without them.
      contrastive: how contrastive search chooses, greedily; `None`: without it.
      rank: how one of several replies is chosen; `None`: one is made.
      rows: contexts that one device answers at a time. Rounding differs with it (1e-6 in float32).
    """

    sampling: Sampling = DECODINGS[DEFAULT_DECODING]
    seed: int = DEFAULT_SEED
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    rows: int = ROWS
    beams: BeamOptions | None = None
    rank: Rank | None = None
    contrastive: ContrastiveOptions | None = None

    def __post_init__(self) -> None:
        checked_length(self.max_new_tokens)
        checked_sampling(self.sampling)
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}; a batch has at least 1")
        ways = [name for name in ("rank", "beams", "contrastive") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} are two ways to a reply; give one of them")
