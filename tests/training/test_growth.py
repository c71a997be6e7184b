"""A grown model says what the smaller one said, learns in every new block, and refuses what it cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import TINY, draw_params, no_dropout

from dialogpt_jax.model import forward, init_params
from dialogpt_jax.training.growth import grow
from dialogpt_jax.training.loss import loss

CONFIG = no_dropout(TINY)
LARGER = dataclasses.replace(CONFIG, n_layer=2 * CONFIG.n_layer + 1, n_positions=3 * CONFIG.n_positions - 1)
TOKENS_BT = np.arange(2 * 7).reshape(2, 7) % CONFIG.vocab_size


def test_the_grown_model_predicts_the_same_and_has_the_shapes_of_its_config():
    params = draw_params(CONFIG)
    grown = grow(params, CONFIG, LARGER)
    np.testing.assert_allclose(forward(grown, LARGER, TOKENS_BT), forward(params, CONFIG, TOKENS_BT), rtol=0, atol=1e-5)
    fresh = jax.eval_shape(lambda: init_params(LARGER, jax.random.key(0)))
    assert jax.tree.map(lambda x: x.shape, grown) == jax.tree.map(lambda x: x.shape, fresh)


def test_every_new_block_gets_a_gradient():
    grown = grow(draw_params(CONFIG), CONFIG, LARGER)
    grads = jax.grad(lambda p: loss(p, LARGER, jnp.asarray(TOKENS_BT), jnp.ones(TOKENS_BT.shape))[0])(grown)
    for block in range(LARGER.n_layer):
        for part in ("attn", "mlp"):
            assert np.abs(grads[f"h_{block}"][part]["c_proj"]["kernel"]).max() > 0, (block, part)


def test_new_positions_repeat_the_rows_of_the_second_half():
    old = np.asarray(draw_params(CONFIG)["wpe"]["embedding"])
    new = np.asarray(grow(draw_params(CONFIG), CONFIG, LARGER)["wpe"]["embedding"])
    half = len(old) // 2
    np.testing.assert_array_equal(new[: len(old)], old)
    np.testing.assert_array_equal(new[len(old) : len(old) + half], old[half : 2 * half])
    assert len(new) == LARGER.n_positions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": CONFIG.n_layer - 1}, "n_layer is 3 in the model and 2 in the config; only n_layer and"),
        ({"n_head": 1}, "n_head is 4 in the model and 1 in the config"),
    ],
)
def test_what_cannot_grow_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        grow(draw_params(CONFIG), CONFIG, dataclasses.replace(CONFIG, **change))
