"""The step as a pure function: state and batch in, state and metrics out, and nothing that is not finite gets in.

Float32 throughout; equality is exact where the same program runs twice.
"""

import dataclasses
import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dialogpt_jax.data.batches import Batch
from dialogpt_jax.training.loss import loss
from dialogpt_jax.training.optim import make_optimizer, matrix_axes
from dialogpt_jax.training.step import init_state, train_step

# Two programs (one jitted, one not) round sums of a few hundred terms in another order.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}

CONFIG = fakes.no_dropout(dataclasses.replace(fakes.TINY, n_layer=2))


def batch(seed=0, rows=3, length=12, config=CONFIG) -> Batch:
    rng = np.random.default_rng(seed)
    tokens_BT = rng.integers(0, config.vocab_size, (rows, length)).astype(np.int32)
    weights_BT = (rng.random((rows, length)) < 0.7).astype(np.float32)
    weights_BT[-1, length // 2 :] = 0  # a ragged row
    return Batch(tokens_BT, weights_BT)


def step_of(optimizer, config=CONFIG, **named):
    return jax.jit(functools.partial(train_step, config=config, optimizer=optimizer, **named))


@pytest.fixture(scope="module")
def params():
    return fakes.draw_params(CONFIG, scale=2.0)


@pytest.fixture(scope="module")
def adam():
    """(optimiser, its jitted step), shared: a step is a program."""
    optimizer = optax.adam(1e-2)
    return optimizer, step_of(optimizer)


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def values(state):
    return jax.device_get((state.params, state.opt_state))


def test_a_step_of_plain_descent_is_params_minus_rate_times_gradient(params):
    optimizer, data = optax.sgd(0.5), batch()
    state = init_state(params, optimizer, jax.random.key(0))
    new, metrics = step_of(optimizer)(state, data)
    (value, targets), grads = jax.value_and_grad(
        lambda p: loss(p, CONFIG, jnp.asarray(data.tokens_BT), jnp.asarray(data.weights_BT)), has_aux=True
    )(params)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), new.params, expected)
    np.testing.assert_allclose(metrics["loss"], value, **TOLERANCE)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), **TOLERANCE)
    assert float(metrics["targets"]) == float(targets) == data.weights_BT[:, 1:].sum()
    assert bool(metrics["finite"])
    assert int(new.step) == 1


def test_the_step_is_pure(params, adam):
    optimizer, step = adam
    state = init_state(params, optimizer, jax.random.key(0))
    before = values(state)
    one, other = step(state, batch()), step(state, batch())
    assert same(values(one[0]), values(other[0]))
    assert same(values(state), before)
    assert same(jax.random.key_data(one[0].key), jax.random.key_data(state.key))


def test_steps_learn_a_batch_by_heart(params, adam):
    optimizer, step = adam
    state, losses = init_state(params, optimizer, jax.random.key(0)), []
    for _ in range(60):
        state, metrics = step(state, batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.3 * losses[0]


def test_pads_and_tokens_without_weight_change_nothing_that_they_do_not_precede(params, adam):
    optimizer, step = adam
    data = batch()
    changed = data.tokens_BT.copy()
    changed[-1, 7:] = 5  # behind the last target of the ragged row
    state = init_state(params, optimizer, jax.random.key(0))
    assert same(values(step(state, data)[0]), values(step(state, Batch(changed, data.weights_BT))[0]))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_leaves_parameters_and_optimiser_as_they_were(params, adam, poison):
    optimizer, step = adam
    state, _ = step(init_state(params, optimizer, jax.random.key(0)), batch())  # an optimiser with a past
    good = values(state)
    weights_BT = batch().weights_BT.copy()
    weights_BT[0, 3] = poison
    after, metrics = step(state, Batch(batch().tokens_BT, weights_BT))
    assert not bool(metrics["finite"])
    assert not np.isfinite(float(metrics["grad_norm"]) + float(metrics["loss"]))
    assert same(values(after), good)
    assert int(after.step) == int(state.step) + 1
    healed, metrics = step(after, batch(1))
    assert bool(metrics["finite"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(values(healed)))
    assert not same(values(healed), good)


def test_a_gradient_alone_that_is_not_finite_is_kept_out_too(params, adam):
    optimizer, step = adam
    wild = jax.tree.map(lambda x: x, params)
    wild["ln_f"] = {"scale": params["ln_f"]["scale"].at[0].set(jnp.inf), "bias": params["ln_f"]["bias"]}
    state = init_state(wild, optimizer, jax.random.key(0))
    after, metrics = step(state, batch())
    assert not bool(metrics["finite"])
    assert same(values(after), values(state))


def test_a_batch_without_targets_moves_nothing_and_is_finite(params):
    optimizer = optax.sgd(0.5)
    state = init_state(params, optimizer, jax.random.key(0))
    after, metrics = step_of(optimizer)(state, Batch(batch().tokens_BT, np.zeros_like(batch().weights_BT)))
    assert (float(metrics["loss"]), float(metrics["targets"]), bool(metrics["finite"])) == (0, 0, True)
    assert same(after.params, state.params)


def test_dropout_draws_by_key_and_step_alone(params):
    config = dataclasses.replace(CONFIG, resid_pdrop=0.2, embd_pdrop=0.2)
    optimizer = optax.sgd(0.1)
    step = step_of(optimizer, config=config)
    state = init_state(params, optimizer, jax.random.key(0))
    at = [float(step(dataclasses.replace(state, step=jnp.int32(n)), batch())[1]["loss"]) for n in (0, 1, 0)]
    assert at[0] == at[2] != at[1]
    other = dataclasses.replace(state, key=jax.random.key(1))
    assert float(step(other, batch())[1]["loss"]) != at[0]


def test_products_in_half_precision_keep_parameters_and_optimiser_in_float32(params):
    optimizer = optax.adam(1e-2)
    state = init_state(params, optimizer, jax.random.key(0))
    after, metrics = step_of(optimizer, compute_dtype=jnp.bfloat16)(state, batch())
    leaves = jax.tree.leaves((after.params, optax.tree.get(after.opt_state, "mu")))
    assert {x.dtype for x in leaves} == {jnp.dtype("float32")}
    reference = float(step_of(optimizer)(state, batch())[1]["loss"])
    assert float(metrics["loss"]) == pytest.approx(reference, rel=0.05)  # bfloat16 has three digits
    assert float(metrics["loss"]) != reference


def test_the_bundled_models_optimiser_takes_matrices_as_matrices_and_learns(params):
    axes = matrix_axes(params)
    assert axes["h_0"]["attn"]["c_attn"]["kernel"] is not None
    assert axes["wte"]["embedding"] is None
    assert axes["h_0"]["ln_1"]["scale"] is None
    assert axes["h_0"]["mlp"]["c_fc"]["bias"] is None
    optimizer = make_optimizer("muon", optax.constant_schedule(0.02), weight_decay=0.0, b2=0.99)
    step, state, losses = step_of(optimizer), init_state(params, optimizer, jax.random.key(0)), []
    for _ in range(30):
        state, metrics = step(state, batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def unequal(rows=8, length=12) -> Batch:
    """Rows whose weights differ wildly: a mean of means would be another number."""
    data = batch(rows=rows, length=length)
    return Batch(data.tokens_BT, data.weights_BT * np.array([0, 0.3, 5, 1, 1, 0, 0.01, 2], np.float32)[:rows, None])


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_batch(params, parts):
    optimizer = optax.sgd(0.5)
    state = init_state(params, optimizer, jax.random.key(0))
    whole, metrics = step_of(optimizer)(state, unequal())
    added, others = step_of(optimizer, accumulate=parts)(state, unequal())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), added.params, whole.params)
    for name in metrics:
        np.testing.assert_allclose(others[name], metrics[name], **TOLERANCE)


def test_packed_rows_are_the_loss_and_the_step_of_unpacked_ones(params):
    apart = batch(rows=4, length=9)
    sizes = [9, 4, 7, 2]
    weights_BT = apart.weights_BT * (np.arange(9) < np.array(sizes)[:, None])
    weights_BT[:, 0] = 3.0  # on a text's first token a weight says nothing, in whatever row
    tokens_BT, packed_BT = np.zeros((2, 14), np.int32), np.zeros((2, 14), np.float32)
    segments_BT = np.full((2, 14), -1, np.int32)
    for row, start, segment, source in ((0, 0, 0, 0), (0, 9, 1, 1), (1, 0, 0, 2), (1, 7, 1, 3)):
        place = slice(start, start + sizes[source])
        tokens_BT[row, place] = apart.tokens_BT[source, : sizes[source]]
        packed_BT[row, place] = weights_BT[source, : sizes[source]]
        segments_BT[row, place] = segment
    optimizer = optax.sgd(0.5)
    state = init_state(params, optimizer, jax.random.key(0))
    one, metrics = step_of(optimizer)(state, Batch(apart.tokens_BT, weights_BT))
    other, others = step_of(optimizer)(state, Batch(tokens_BT, packed_BT, segments_BT))
    assert float(others["loss"]) == pytest.approx(float(metrics["loss"]), abs=1e-5)
    assert float(others["targets"]) == pytest.approx(float(metrics["targets"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), other.params, one.params)


def test_computing_blocks_twice_changes_memory_and_no_number(params):
    config = dataclasses.replace(CONFIG, resid_pdrop=0.2, attn_pdrop=0.1)  # the same dropout both times
    optimizer = optax.sgd(0.5)
    state = init_state(params, optimizer, jax.random.key(0))
    once, _ = step_of(optimizer, config=config)(state, batch())
    step = step_of(optimizer, config=config, checkpoint_blocks=True)
    assert str(jax.make_jaxpr(step)(state, batch())).count("remat") == config.n_layer  # once in each block's gradient
    twice, _ = step(state, batch())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), twice.params, once.params)


def test_parts_of_a_batch_drop_out_differently(params):
    config = dataclasses.replace(CONFIG, resid_pdrop=0.5)
    optimizer = optax.sgd(0.5)
    state = init_state(params, optimizer, jax.random.key(0))
    one_part = batch(rows=1)
    doubled = Batch(*(np.concatenate([a, a]) for a in one_part[:2]))
    alone, _ = step_of(optimizer, config=config)(state, one_part)
    both, _ = step_of(optimizer, config=config, accumulate=2)(state, doubled)
    assert not same(both.params, alone.params)  # with the same draw the mean of both would be either
