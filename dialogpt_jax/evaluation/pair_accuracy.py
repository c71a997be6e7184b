"""How often a ranker prefers the better of two replies: held-out pairs in; a function for `fit` out.

Letters: B rows, T tokens, P pairs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import collate, fill_up
from dialogpt_jax.data.examples import Example
from dialogpt_jax.decoding.request import bucket_of
from dialogpt_jax.model import Params
from dialogpt_jax.training.pairwise import score_margins


@functools.cache
def _margins_on(mesh: Mesh | None):
    """The compiled `score_margins` for parameters on a mesh; every process computes, and gets, all of them."""
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(score_margins, static_argnames="config", out_shardings=everywhere)


def measure_margins(params: Params, config: GPT2Config, examples: Sequence[Example], *, rows: int = 32) -> np.ndarray:
    """By how much the better reply of each pair scores higher, float32 (P,)."""
    sharding = params["wte"]["embedding"].sharding if isinstance(params["wte"]["embedding"], jax.Array) else None
    mesh = cast(Mesh, sharding.mesh) if isinstance(sharding, NamedSharding) else None
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens_T))
    found_P = np.zeros(len(examples), np.float32)
    for start in range(0, len(order), rows):
        members = order[start : start + rows]
        width = bucket_of(len(examples[members[-1]].tokens_T))
        batch = collate(fill_up([examples[i] for i in members], rows), width)
        margins_B = _margins_on(mesh)(params, config, batch.tokens_BT, batch.weights_BT, segments_BT=batch.segments_BT)
        found_P[members] = np.asarray(margins_B)[: len(members)]
    return found_P


def make_pair_evaluation(config: GPT2Config, examples: Sequence[Example]) -> Callable[[Params], dict[str, float]]:
    """Parameters to what held-out pairs say of them, in float32.

    Returns:
      A function to `valid_loss` (nats a pair; a coin has 0.693) and `valid_accuracy`, the share of pairs whose better reply
      scores higher (a coin has 0.5; where both score the same, it is not).
    """
    if not examples:
        raise ValueError("there are no pairs to evaluate on")

    def evaluate(params: Params) -> dict[str, float]:
        margins_P = measure_margins(params, config, examples).astype(np.float64)
        return {
            "valid_loss": float(np.logaddexp(0, -margins_P).mean()),
            "valid_accuracy": float((margins_P > 0).mean()),
        }

    return evaluate
