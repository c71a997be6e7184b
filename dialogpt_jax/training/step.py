"""One training step, pure: state and batch in, state and metrics out. The caller applies jit, donation, shardings."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dialogpt_jax.arguments import as_flag, as_whole_number, shown
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import Batch
from dialogpt_jax.errors import counted
from dialogpt_jax.int8 import check_trainable
from dialogpt_jax.model import Params
from dialogpt_jax.parallel.sharded_gradient import gather_params, shard_gradient
from dialogpt_jax.token_arrays import as_float_dtype, as_key
from dialogpt_jax.training.distillation import Teacher, check_teachers
from dialogpt_jax.training.objective import LANGUAGE_MODEL, Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Arrays only.

    Attributes:
      step: int32, steps done.
      params: float32.
      opt_state: the optimiser's.
      key: `jax.random.key` of the run; the key of a step is `fold_in(key, step)`.

    Example:
      >>> jax.tree.structure(state.params) == jax.tree.structure(bot.params)
      True
    """

    step: jax.Array
    params: Params
    opt_state: Any
    key: jax.Array

    def __repr__(self) -> str:  # it may hold arrays, their shapes or their shardings
        sizes = [sum(getattr(x, "size", 0) for x in jax.tree.leaves(tree)) for tree in (self.params, self.opt_state)]
        return f"TrainState(step {self.step}, {sizes[0]:,} parameters, {sizes[1]:,} numbers in opt_state)"


def init_state(params: Params, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step.

    Example:
      >>> state = dg.init_state(bot.params, optax.adamw(1e-3), jax.random.key(0))
      >>> int(state.step)
      0
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params is {shown(params)}; give the parameters, such as `bot.params`")
    if not jax.tree.leaves(params):
        raise ValueError("params holds no parameter; give the parameters, such as `bot.params`")
    check_trainable(params)
    _check_optimizer(optimizer)
    as_key("key", key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)


def _check_optimizer(optimizer: Any) -> None:
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(f"optimizer is {shown(optimizer)}; give one of optax, such as optax.adamw(1e-4)")


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: GPT2Config,
    optimizer: optax.GradientTransformation,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    accumulate: int = 1,
    checkpoint_blocks: bool = False,
    mesh: Mesh | None = None,
    teachers: Sequence[Teacher] = (),
    teacher_share: float = 0.5,
    objective: Objective = LANGUAGE_MODEL,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the optimiser on the mean loss per weight of target, over the whole batch.

    Args:
      state, batch: arrays.
      config, optimizer: bound by the caller, like what follows.
      compute_dtype: of the products, on a cast copy; parameters, gradients and the optimiser stay float32.
      accumulate: the batch is computed in this many parts, one after the other, whose rows must be as many. Sums are
        added and divided once, so the result is that of one part, up to rounding, however the weights are spread.
      checkpoint_blocks: less memory for a third more computing: see `model.hidden`.
      mesh: the state and the batch lie on it as `parallel/rules.py` says; `None`: on one device.
      teachers: whole on each device, in the dtype that they compute in; see `training/distillation.py`.
      teacher_share: of the targets, where there are teachers.
      objective: what is made small; `PAIRWISE` for a ranker, whose targets are pairs.

    Returns:
      The next state, and `loss` (nats per target, the teachers' share included), `targets` (their weight), `grad_norm`,
      `finite`. A loss or gradient that is not finite leaves parameters and optimiser as they were; the step still counts.

    Example:
      >>> optimizer = optax.adamw(1e-3)
      >>> step = jax.jit(functools.partial(dg.train_step, config=bot.config, optimizer=optimizer), donate_argnums=0)
      >>> state = dg.init_state(jax.tree.map(jnp.copy, bot.params), optimizer, jax.random.key(0))
      >>> tokens_BT = np.array([bot.encode(["Hi!", "Hello."])])
      >>> state, metrics = step(state, dg.Batch(tokens_BT, np.ones(tokens_BT.shape, np.float32)))
      >>> int(state.step), bool(metrics["finite"])
      (1, True)
    """
    compute_dtype = _check_step(state, batch, config, optimizer, compute_dtype, accumulate, mesh)
    checkpoint_blocks = as_flag("checkpoint_blocks", checkpoint_blocks)
    check_teachers(teachers, config)
    sizes = [teacher.config for teacher in teachers]
    taught = [teacher.params for teacher in teachers]
    dropout_key = None
    if config.embd_pdrop or config.attn_pdrop or config.resid_pdrop:
        dropout_key = jax.random.fold_in(state.key, state.step)

    divided = mesh if mesh is not None and mesh.size > 1 else None

    def cast(params):
        if divided is not None:
            return gather_params(params, compute_dtype, divided)
        return jax.tree.map(lambda x: x.astype(compute_dtype), params)

    def cost(params, part, key, taught):
        by_teachers = {}
        if teachers:
            both = [Teacher(*one) for one in zip(taught, sizes, strict=True)]
            by_teachers = {"teachers": both, "share": teacher_share}
        return objective.summed(
            cast(params),
            config,
            part.tokens_BT,
            part.weights_BT,
            segments_BT=part.segments_BT,
            dropout_key=key,
            checkpoint_blocks=checkpoint_blocks,
            **by_teachers,
        )

    gradient = jax.value_and_grad(cost, has_aux=True)

    def sums(params, batch, key, taught):
        """((Σ loss, Σ weight), gradient of the former), over all parts of the batch."""

        def add(sums, numbered):
            index, part = numbered
            part_key = None if key is None else jax.random.fold_in(key, index)
            return jax.tree.map(jnp.add, sums, gradient(params, part, part_key, taught)), None

        if accumulate == 1:
            return gradient(params, batch, None if key is None else jax.random.fold_in(key, 0), taught)
        zeros = ((jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, params))
        parts = jax.tree.map(lambda a: _parts(a, accumulate), batch)
        return jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))[0]

    sharded_sums = sums if divided is None else shard_gradient(sums, divided)
    (total, targets), grads = sharded_sums(state.params, batch, dropout_key, taught)
    divisor = jnp.maximum(targets, 1e-9)
    with jax.named_scope("update"):
        value, grads = total / divisor, jax.tree.map(lambda g: g / divisor, grads)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
        params, opt_state = (
            jax.tree.map(  # in the scope too, for XLA fuses it with the update, and names it by its last part
                lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
            )
        )
    state = TrainState(state.step + 1, params, opt_state, state.key)
    return state, {"loss": value, "targets": targets, "grad_norm": grad_norm, "finite": finite}


def _check_step(state, batch, config, optimizer, compute_dtype, accumulate, mesh) -> np.dtype:
    """The dtype of the products, if all fit what `train_step` says of them."""
    if not isinstance(state, TrainState):
        raise TypeError(f"state is {shown(state)}; give the TrainState of `init_state`")
    if not isinstance(batch, Batch) or any(getattr(x, "ndim", 0) != 2 for x in batch[:2]):
        raise TypeError(f"batch is {shown(batch)}; give a Batch of arrays (rows, tokens)")
    if not isinstance(config, GPT2Config):
        raise TypeError(f"config is {shown(config)}; give the GPT2Config that belongs to the parameters")
    _check_optimizer(optimizer)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"mesh is {shown(mesh)}; give one of `make_mesh`, or None")
    if batch.tokens_BT.shape[0] % as_whole_number("accumulate", accumulate, least=1):
        raise ValueError(
            f"accumulate is {accumulate}, which does not divide a batch of {counted(batch.tokens_BT.shape[0], 'rows')}"
        )
    return as_float_dtype("compute_dtype", compute_dtype)


def _parts(a_BT, count):
    """(B, T) → (A, B/A, T); each part takes every A-th row, so that rows lie on the devices where they lay."""
    return jnp.moveaxis(a_BT.reshape(a_BT.shape[0] // count, count, *a_BT.shape[1:]), 1, 0)
