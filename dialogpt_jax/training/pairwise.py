"""The objective of a ranker: pairs of replies to one context in; −log of the probability that the better one wins, out.

    p(better wins) = exp(s_better) / (exp(s_better) + exp(s_worse)),   s the score at each text's last token

A row holds both texts, each a segment of its own: nothing attends across, positions restart, and so each has the score that
it has alone. What is marked by a weight is the last token of each (`data/pairs.py` makes such rows).

Letters: B rows, T tokens.

Source: Gao et al. 2020 (arXiv 2009.06978); golsun/DialogRPT `src/model.py` (`forward`) and `src/master.py` (`loss`).
"""

import jax
import jax.numpy as jnp

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.pairs import BETTER, WORSE
from dialogpt_jax.likelihood import hidden_of_texts
from dialogpt_jax.model import Params
from dialogpt_jax.score_row import score_of, trunk_of


def summed_pair_loss(
    params: Params,
    config: GPT2Config,
    tokens_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    segments_BT: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    checkpoint_blocks: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Σ weight · −log p(better wins) in nats, and Σ weight, both float32: `Objective.summed` of pairs.

    Raises:
      ValueError: the rows hold no pairs, for they have no segments.
    """
    margins_B = score_margins(
        params,
        config,
        tokens_BT,
        weights_BT,
        segments_BT=segments_BT,
        dropout_key=dropout_key,
        checkpoint_blocks=checkpoint_blocks,
    )
    weights_B = jnp.where(segments_BT == BETTER, weights_BT, 0.0).sum(axis=1)
    return (weights_B * jax.nn.softplus(-margins_B)).sum(), weights_B.sum()


def score_margins(
    params: Params,
    config: GPT2Config,
    tokens_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    segments_BT: jax.Array | None,
    dropout_key: jax.Array | None = None,
    checkpoint_blocks: bool = False,
) -> jax.Array:
    """By how much the better reply of each row scores higher, float32 (B,); 0 where a row marks nothing."""
    if segments_BT is None:
        raise ValueError("a pair is two texts in one row, told apart by segments; make the examples by `make_pairs`")
    x_BTD = hidden_of_texts(trunk_of(params), config, tokens_BT, segments_BT, dropout_key, checkpoint_blocks)
    with jax.named_scope("score"):
        scores_BT = score_of(params, x_BTD)

    def of(segment: int) -> jax.Array:
        return jnp.where((weights_BT > 0) & (segments_BT == segment), scores_BT, 0.0).sum(axis=1)

    return of(BETTER) - of(WORSE)
