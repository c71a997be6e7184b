"""What a run compiles: options, a config and a mesh in; the first state and the step, jitted, out."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import Batch
from dialogpt_jax.model import Params
from dialogpt_jax.parallel.rules import batch_sharding, shardings
from dialogpt_jax.run.options import TrainOptions
from dialogpt_jax.training.distillation import Teacher
from dialogpt_jax.training.objective import LANGUAGE_MODEL, Objective
from dialogpt_jax.training.step import TrainState, init_state, train_step


class TrainProgram(NamedTuple):
    """The first state and the step, jitted; shape, dtype and sharding of every array of the state.

    `compiled` names the batches, (rows, tokens of a row), whose step `fit` has had compiled: the next is there at once.
    """

    begin: jax.stages.Wrapped
    step: jax.stages.Wrapped
    layout: TrainState
    optimizer: optax.GradientTransformation
    compiled: set[tuple[int, int]]


def make_program(
    options: TrainOptions,
    config: GPT2Config,
    mesh: Mesh,
    teachers: tuple[GPT2Config, ...] = (),
    objective: Objective = LANGUAGE_MODEL,
) -> TrainProgram:
    """What `fit` runs on a mesh. With the same options, but for how often something is told, it is the same object.

    Its step takes the state, a batch and the parameters of each teacher, whole on each device.
    """
    return _make_program(options.without_what_is_told(), config, mesh, teachers, objective)


def lower_step(options: TrainOptions, config: GPT2Config, mesh: Mesh, *, rows: int, length: int) -> jax.stages.Lowered:
    """The step that `fit` runs, lowered for batches of `rows` rows of `length` tokens from their shapes alone.

    `.compile()` compiles it for the mesh's devices, which need not be here.
    """
    program, rows_on = make_program(options, config, mesh), batch_sharding(mesh)
    tokens, weights = (
        jax.ShapeDtypeStruct((rows, length), dtype, sharding=rows_on) for dtype in (np.int32, np.float32)
    )
    return program.step.lower(program.layout, Batch(tokens, weights), [])


@functools.lru_cache(maxsize=8)  # fit again with the same options, and nothing is compiled again
def _make_program(
    options: TrainOptions, config: GPT2Config, mesh: Mesh, teachers: tuple[GPT2Config, ...], objective: Objective
) -> TrainProgram:
    optimizer = options.transformation(config)

    def begin(params: Params) -> TrainState:
        return init_state(params, optimizer, jax.random.key(options.seed))

    def step(state: TrainState, batch: Batch, taught: list[Params]):
        batch = batch._replace(weights_BT=options.weigh(batch.weights_BT))
        return train_step(
            state,
            batch,
            config=options.with_dropout(config),
            optimizer=optimizer,
            compute_dtype=options.compute_dtype,
            accumulate=options.accumulate,
            checkpoint_blocks=options.checkpoint_blocks,
            mesh=mesh,
            teachers=[Teacher(*both) for both in zip(taught, teachers, strict=True)],
            teacher_share=options.teacher_share,
            objective=objective,
        )

    abstract = jax.eval_shape(lambda: begin(objective.init(config, jax.random.key(0))))
    layout = shardings(abstract, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return TrainProgram(
        begin=jax.jit(begin, donate_argnums=0, out_shardings=layout),
        step=jax.jit(step, donate_argnums=0, out_shardings=(layout, everywhere)),
        layout=jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, layout),
        optimizer=optimizer,
        compiled=set(),
    )


def shardings_of(layout: Any) -> Any:
    """The shardings of a layout."""
    return jax.tree.map(lambda a: a.sharding, layout)
