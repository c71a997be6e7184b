"""Averages of parameters: a running one beside the optimiser, a gradient transformation in, one that also averages out; and
the mean of several models.

The average is smoother than the last step's parameters, and better while the rate is high (Polyak & Juditsky 1992). It
lies in the optimiser's state, so it is saved, resumed and sharded as the momenta are, and a step that is not finite leaves
it alone.

    step t (from 0), parameters p after it      average ← average + (1 − d)(p − average),  d = min(decay, (1 + t)/(10 + t))

The first steps count more than `decay` says, or the average would remember the parameters of step 0 for long.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AveragedState(NamedTuple):
    """The optimiser's state and, for each parameter, its average.

    Attributes:
      count: int32, steps averaged.
      average: like the parameters, float32.
      inner: of the optimiser.
    """

    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of this name, which nothing calls here
    average: Any
    inner: Any


def averaged(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """The same updates; the state keeps the exponential average of what they lead to.

    Args:
      optimizer: schedule included: its updates are what is added to the parameters.
      decay: above 0 and below 1; 0.99 averages over about 100 steps.
    """

    def init(params):
        return AveragedState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params), optimizer.init(params))

    def update(grads, state, params=None):
        updates, inner = optimizer.update(grads, state.inner, params)
        share = 1.0 - jnp.minimum(decay, (1.0 + state.count) / (10.0 + state.count))
        average = jax.tree.map(lambda a, p, u: a + share * (p + u - a), state.average, params, updates)
        return updates, AveragedState(state.count + 1, average, inner)

    return optax.GradientTransformation(init, update)


def average_of(params: Any, opt_state: Any) -> Any:
    """What a run evaluates and exports: the average where the optimiser keeps one, the parameters elsewhere."""
    return opt_state.average if isinstance(opt_state, AveragedState) else params


def mean_of(*params: Any) -> Any:
    """The mean of the parameters of several models that were trained from one: it keeps much of what each has learned.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section 3.
    """
    return jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]) / len(leaves), *params)
