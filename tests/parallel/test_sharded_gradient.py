"""A train step on a mesh is the train step on one device, and moves between devices what the rules say and nothing else."""

import dataclasses
import functools
from collections import Counter

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dialogpt_jax.data.batches import Batch
from dialogpt_jax.parallel.mesh import make_mesh, parse_mesh
from dialogpt_jax.parallel.rules import batch_sharding, shardings
from dialogpt_jax.run.compiled_text import collectives
from dialogpt_jax.training.optim import make_optimizer
from dialogpt_jax.training.step import init_state, train_step

# Sums over devices round in another order: 1e-7 a step, which 20 steps may enlarge.
LOSS = {"rtol": 0, "atol": 1e-5}

CONFIG = fakes.no_dropout(dataclasses.replace(fakes.TINY, n_layer=2))
STEPS = 20


def batch(step, rows=8, length=12) -> Batch:
    rng = np.random.default_rng(step % 4)  # four batches, again and again: the loss falls
    tokens_BT = rng.integers(0, CONFIG.vocab_size, (rows, length)).astype(np.int32)
    weights_BT = rng.random((rows, length)).astype(np.float32)
    weights_BT[0], weights_BT[1, 5:] = 0, 0  # devices have unequal weights, one none at all
    return Batch(tokens_BT, weights_BT)


def run(mesh, *, optimizer, steps=STEPS, config=CONFIG, **how):
    """(losses of the steps, the last state, the compiled step)."""
    state = init_state(fakes.draw_params(config, scale=2.0), optimizer, jax.random.key(0))
    bound = functools.partial(train_step, config=config, optimizer=optimizer, mesh=mesh, **how)
    if mesh is None:
        jitted, place = jax.jit(bound), lambda data: data
    else:
        places = shardings(state, mesh)
        state = jax.device_put(state, places)
        jitted = jax.jit(bound, out_shardings=(places, None), donate_argnums=0)
        place = functools.partial(jax.device_put, device=batch_sharding(mesh))
    compiled = jitted.lower(state, place(batch(0))).compile()
    losses = []
    for step in range(steps):
        state, metrics = compiled(state, place(batch(step)))
        losses.append(float(metrics["loss"]))
    return np.array(losses), state, compiled


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3))


@pytest.fixture(scope="module")
def alone():
    return run(None, optimizer=OPTIMIZER)


# What a step of two blocks, with a tied head, moves: kernels are 2 · 4 + wte + wpe = 10 arrays that `fsdp` divides.
MESHES = {
    "data=8": {"all-gather": 0, "reduce-scatter": 0},
    "fsdp=8": {"all-gather": 10, "reduce-scatter": 10},
    "tensor=4,data=2": {"all-gather": 0, "reduce-scatter": 0},
    "data=2,fsdp=2,tensor=2": {"all-gather": 10, "reduce-scatter": 10},
}


@pytest.mark.parametrize("text", [pytest.param("data=8", marks=pytest.mark.long), *list(MESHES)[1:]])
def test_a_mesh_of_eight_devices_trains_as_one_device_and_moves_what_the_rules_say(alone, text):
    mesh = make_mesh(parse_mesh(text))
    losses, state, compiled = run(mesh, optimizer=OPTIMIZER)
    np.testing.assert_allclose(losses, alone[0], **LOSS)
    assert losses[-4:].mean() < losses[:4].mean() - 0.1
    moved = collectives(compiled.as_text(), devices=8)
    counted = Counter(found.kind for found in moved)
    assert set(counted) <= {"all-gather", "reduce-scatter", "all-reduce"}
    assert {kind: counted[kind] for kind in MESHES[text]} == MESHES[text]
    assert {found.group for found in moved if found.kind != "all-reduce"} <= {mesh.shape["fsdp"]}
    kernel = state.params["h_0"]["mlp"]["c_fc"]["kernel"]
    parts = mesh.shape["tensor"], mesh.shape["fsdp"]
    assert kernel.sharding.shard_shape(kernel.shape) == (128 // parts[0], 32 // parts[1])
    if mesh.shape["tensor"] == 1:  # no sum is larger than a gradient: activations stay where they are
        assert sum(found.bytes for found in moved if found.kind == "all-reduce") < 4 * CONFIG.num_parameters * 2
    else:
        assert all(found.group in (mesh.shape["tensor"], 2, 4, 8) for found in moved)


@pytest.mark.long
def test_parts_of_a_batch_blocks_computed_again_and_half_precision_go_over_a_mesh():
    how = {"accumulate": 2, "checkpoint_blocks": True, "compute_dtype": jnp.bfloat16}
    how |= {"optimizer": OPTIMIZER, "steps": 3, "config": dataclasses.replace(CONFIG, n_layer=1)}
    losses, _, compiled = run(make_mesh({"fsdp": 4, "tensor": 2}), **how)
    alone, _, _ = run(None, **how)
    np.testing.assert_allclose(losses, alone, rtol=0, atol=0.01)  # bfloat16 has three digits
    gathered = [found for found in collectives(compiled.as_text(), devices=8) if found.kind == "all-gather"]
    assert gathered
    assert all(found.times in (1, 2) for found in gathered)


@pytest.mark.long
def test_dropout_differs_between_devices_and_a_step_draws_it_again_alike():
    config = dataclasses.replace(CONFIG, n_layer=1, resid_pdrop=0.3)
    mesh, optimizer = make_mesh({"data": 4, "fsdp": 2}), optax.sgd(0.0)
    rows_BT = np.tile(batch(0).tokens_BT[2], (8, 1))  # each device has the same rows
    data = jax.device_put(Batch(rows_BT, np.ones_like(rows_BT, np.float32)), batch_sharding(mesh))
    _, state, compiled = run(mesh, optimizer=optimizer, steps=1, config=config)
    whole = [compiled(jax.tree.map(jnp.copy, state), data)[1]["loss"] for _ in range(2)]
    assert whole[0] == whole[1]
    losses = []
    for row in range(8):
        weights_BT = np.zeros(rows_BT.shape, np.float32)
        weights_BT[row] = 1
        one = jax.device_put(Batch(rows_BT, weights_BT), batch_sharding(mesh))
        losses.append(float(compiled(jax.tree.map(jnp.copy, state), one)[1]["loss"]))
    assert len(set(losses)) == 8


@pytest.mark.long
def test_the_bundled_models_optimiser_divides_too():
    optimizer = make_optimizer("muon", optax.constant_schedule(0.005))
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    config = dataclasses.replace(CONFIG, n_layer=1)
    losses, _, _ = run(mesh, optimizer=optimizer, steps=5, config=config)
    alone, _, _ = run(None, optimizer=optimizer, steps=5, config=config)
    np.testing.assert_allclose(losses, alone, **LOSS)
