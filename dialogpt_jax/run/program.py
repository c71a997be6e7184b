"""What a run compiles: options, a config and a mesh in; the first state and the step, jitted, out."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.data.batches import Batch
from dialogpt_jax.model import Params, init_params
from dialogpt_jax.parallel.rules import batch_sharding, shardings
from dialogpt_jax.run.options import TrainOptions
from dialogpt_jax.training.step import TrainState, init_state, train_step


def compile_step(
    options: TrainOptions, config: GPT2Config, mesh: Mesh, *, rows: int, length: int
) -> jax.stages.Compiled:
    """The step that `fit` runs, compiled for batches of `rows` rows of `length` tokens: to be looked at."""
    program, rows_on = compile_program(options, config, mesh), batch_sharding(mesh)
    tokens, weights = (
        jax.ShapeDtypeStruct((rows, length), dtype, sharding=rows_on) for dtype in (np.int32, np.float32)
    )
    return program.step.lower(program.layout, Batch(tokens, weights)).compile()


class TrainProgram(NamedTuple):
    """The first state and the step, jitted; shape, dtype and sharding of every array of the state."""

    begin: jax.stages.Wrapped
    step: jax.stages.Wrapped
    layout: TrainState
    optimizer: optax.GradientTransformation


@functools.lru_cache(maxsize=8)  # fit again with the same options, and nothing is compiled again
def compile_program(options: TrainOptions, config: GPT2Config, mesh: Mesh) -> TrainProgram:
    """What `fit` runs on a mesh."""
    optimizer = options.transformation(config)

    def begin(params: Params) -> TrainState:
        return init_state(params, optimizer, jax.random.key(options.seed))

    def step(state: TrainState, batch: Batch):
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
        )

    abstract = jax.eval_shape(lambda: begin(init_params(config, jax.random.key(0))))
    layout = shardings(abstract, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return TrainProgram(
        begin=jax.jit(begin, donate_argnums=0, out_shardings=layout),
        step=jax.jit(step, donate_argnums=0, out_shardings=(layout, everywhere)),
        layout=jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, layout),
        optimizer=optimizer,
    )


def shardings_of(layout: Any) -> Any:
    """The shardings of a layout."""
    return jax.tree.map(lambda a: a.sharding, layout)
