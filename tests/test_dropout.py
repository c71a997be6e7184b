"""Dropout happens where a key is given, at the config's rates, and is a function of the key.

Letters: B rows, T tokens, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import draw_params
from fakes import TINY, no_dropout

from dialogpt_jax import model, modules

CONFIG = dataclasses.replace(TINY, n_layer=2)
PARAMS = draw_params(CONFIG)
TOKENS_BT = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 7)), jnp.int32)
hidden = jax.jit(model.hidden, static_argnums=1)
POSITIONS_BT = jnp.broadcast_to(jnp.arange(7)[None], (2, 7))


def run(config, key, params=PARAMS):
    return np.asarray(hidden(params, config, TOKENS_BT, POSITIONS_BT, dropout_key=key)[0])


def with_rates(embd=0.0, attn=0.0, resid=0.0):
    return dataclasses.replace(CONFIG, embd_pdrop=embd, attn_pdrop=attn, resid_pdrop=resid)


def test_no_key_means_no_dropout():
    np.testing.assert_array_equal(run(CONFIG, None), run(no_dropout(CONFIG), None))


def test_rates_of_zero_mean_no_dropout():
    np.testing.assert_array_equal(run(no_dropout(CONFIG), jax.random.key(0)), run(CONFIG, None))


def test_a_key_gives_its_result_and_another_key_another():
    first, again, other = (run(CONFIG, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=(1, 2)).all()
    assert (first != run(CONFIG, None)).any(axis=(1, 2)).all()


def test_rows_and_layers_are_dropped_apart():
    # Equal rows of equal tokens: they differ only by what was dropped.
    tokens_BT = jnp.broadcast_to(TOKENS_BT[:1], (2, 7))
    x_BTD, _ = hidden(PARAMS, CONFIG, tokens_BT, POSITIONS_BT, dropout_key=jax.random.key(0))
    assert (x_BTD[0] != x_BTD[1]).any(axis=-1).all()


@pytest.mark.parametrize("where", ["embd", "attn", "resid"])
def test_each_rate_acts_alone(where):
    assert (run(with_rates(**{where: 0.5}), jax.random.key(0)) != run(CONFIG, None)).any(axis=(1, 2)).all()


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_a_dropout_drops_its_share_and_keeps_the_mean(rate):
    wide = dataclasses.replace(with_rates(resid=rate), n_embd=256, n_layer=1)
    x_BTD = jnp.ones((4, 40, 256))
    mlp = modules.MLP(wide)
    params = jax.eval_shape(mlp.init, jax.random.key(0), x_BTD, None)
    # All-zero matrices and a bias of one: the MLP gives ones, so what comes out is the dropout itself.
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), params)
    params["params"]["c_proj"]["bias"] = jnp.ones(256)
    y_BTD = np.asarray(mlp.apply(params, x_BTD, jax.random.key(1)))
    np.testing.assert_allclose(np.unique(y_BTD), [0, 1 / (1 - rate)], rtol=1e-6)
    assert abs((y_BTD == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / y_BTD.size)
