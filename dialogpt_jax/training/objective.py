"""What a training run makes small, and of which parameters: the loop, the step and the program take it as one value.

LANGUAGE_MODEL: −log p of the next token                of a GPT-2
PAIRWISE:       −log p that the better reply wins       of a ranker, a GPT-2 with a scoring row
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.model import Params, check_params, init_params
from dialogpt_jax.score_row import check_ranker, init_ranker
from dialogpt_jax.training.loss import summed_loss
from dialogpt_jax.training.pairwise import summed_pair_loss


class Objective(NamedTuple):
    """Module-level functions, so that a program that was compiled for one is found again.

    Attributes:
      name: what a run is known by.
      summed: `(params, config, tokens_BT, weights_BT, *, segments_BT, dropout_key, checkpoint_blocks)` to (Σ weight · loss,
        Σ weight), float32; where there are teachers, also by `teachers` and `share`.
      init: a config and a key to fresh parameters.
      check: raises where parameters are not those of a config.
    """

    name: str
    summed: Callable[..., tuple[jax.Array, jax.Array]]
    init: Callable[[GPT2Config, jax.Array], Params]
    check: Callable[[Any, Any], None]


LANGUAGE_MODEL = Objective("language model", summed_loss, init_params, check_params)
PAIRWISE = Objective("pairs of replies", summed_pair_loss, init_ranker, check_ranker)
