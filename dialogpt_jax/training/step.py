"""One training step, pure: state and batch in, state and metrics out. The caller applies jit, donation, shardings."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import Batch
from dialogpt_jax.model import Params
from dialogpt_jax.training.loss import loss


@struct.dataclass
class TrainState:
    """Arrays only.

    Attributes:
      step: int32, steps done.
      params: float32.
      opt_state: the optimiser's.
      key: `jax.random.key` of the run; the key of a step is `fold_in(key, step)`.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    key: jax.Array


def init_state(params: Params, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: GPT2Config,
    optimizer: optax.GradientTransformation,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the optimiser on the mean loss per target token.

    Args:
      state, batch: arrays.
      config, optimizer, compute_dtype: bound by the caller. Products run in `compute_dtype` on a cast copy; parameters,
        gradients and the optimiser stay float32.

    Returns:
      The next state, and `loss` (nats per target), `targets` (their weight), `grad_norm`, `finite`. A loss or gradient
      that is not finite leaves parameters and optimiser as they were; the step still counts.
    """
    dropout_key = None
    if config.embd_pdrop or config.attn_pdrop or config.resid_pdrop:
        dropout_key = jax.random.fold_in(state.key, state.step)

    def objective(params):
        cast = jax.tree.map(lambda x: x.astype(compute_dtype), params)
        return loss(cast, config, batch.tokens_BT, batch.weights_BT, dropout_key=dropout_key)

    (value, targets), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    state = TrainState(state.step + 1, params, opt_state, state.key)
    return state, {"loss": value, "targets": targets, "grad_norm": grad_norm, "finite": finite}
