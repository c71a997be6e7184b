"""The running average of parameters: it is what its formula says, changes no update, and is what a run evaluates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dialogpt_jax.training.average import average_of, averaged


def test_average_by_hand_and_the_updates_are_the_optimisers_own():
    """decay 0.5: d is 1/10, then 2/11; the parameter is lowered by 1 a step, from 10."""
    plain, beside = optax.sgd(1.0), averaged(optax.sgd(1.0), 0.5)
    params = {"w": jnp.array([10.0, 20.0])}
    state, grads = beside.init(params), {"w": jnp.ones(2)}
    expected = np.array([10.0, 20.0])
    for step in range(2):
        updates, state = beside.update(grads, state, params)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, updates, plain.update(grads, plain.init(params))[0]))
        params = optax.apply_updates(params, updates)
        d = (1 + step) / (10 + step)
        expected = d * expected + (1 - d) * np.asarray(params["w"])
    np.testing.assert_allclose(average_of(params, state)["w"], expected, rtol=1e-6)


def test_late_steps_count_what_the_decay_says():
    optimizer = averaged(optax.sgd(1.0), 0.5)
    state = optimizer.init(jnp.zeros(()))._replace(count=jnp.asarray(1000))
    _, state = optimizer.update(jnp.asarray(-8.0), state, jnp.zeros(()))
    assert float(state.average) == 4.0


def test_without_an_average_the_parameters_are_meant():
    optimizer = optax.adam(1.0)
    params = {"w": jnp.ones(2)}
    assert average_of(params, optimizer.init(params)) is params
