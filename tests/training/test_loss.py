"""The loss: what counts as a target, how it is weighted, and its numbers against the second implementation.

Letters: B rows, T tokens.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from drawn_weights import as_params, draw_params, draw_tensors
from fakes import ODD, TINY
from reference import tensor_error

from dialogpt_jax import likelihood, model
from dialogpt_jax.convert.mapping import from_params
from dialogpt_jax.training import loss as losses

# float32: one sum of a few dozen numbers of about 5, each good to 1e-6.
TOLERANCE = 1e-5
# A gradient in units of its tensor's norm.
GRADIENT_TOLERANCE = 2e-5

CONFIG = dataclasses.replace(TINY, n_layer=2)
PARAMS = draw_params(CONFIG)
TOKENS_BT = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (3, 11)).astype(np.int32)
WEIGHTS_BT = np.random.default_rng(1).random((3, 11)).astype(np.float32) * (np.arange(11) < [[11], [6], [2]])

forward = jax.jit(model.forward, static_argnums=1)
token_losses = jax.jit(likelihood.token_losses, static_argnums=1)
both = jax.jit(jax.value_and_grad(losses.loss, has_aux=True), static_argnums=1)


def loss(tokens_BT, weights_BT, params=PARAMS, config=CONFIG):
    return both(params, config, jnp.asarray(tokens_BT), jnp.asarray(weights_BT, jnp.float32))[0]


def gradient(tokens_BT, weights_BT, params=PARAMS, config=CONFIG):
    return both(params, config, jnp.asarray(tokens_BT), jnp.asarray(weights_BT, jnp.float32))[1]


def test_a_token_costs_what_its_predecessor_gave_it():
    log_BTV = np.asarray(jax.nn.log_softmax(forward(PARAMS, CONFIG, jnp.asarray(TOKENS_BT))))
    got_BT = np.asarray(token_losses(PARAMS, CONFIG, jnp.asarray(TOKENS_BT)))
    assert got_BT.dtype == np.float32
    np.testing.assert_array_equal(got_BT[:, 0], 0)
    for row in range(3):
        for t in range(1, 11):
            assert got_BT[row, t] == pytest.approx(-log_BTV[row, t - 1, TOKENS_BT[row, t]], rel=TOLERANCE)


def test_a_model_that_knows_nothing_costs_the_logarithm_of_the_vocabulary():
    # The unpadded one: its pad takes no share of the probability.
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    value, _ = loss(TOKENS_BT, WEIGHTS_BT, zero)
    assert float(value) == pytest.approx(math.log(CONFIG.vocab_size), rel=1e-6)


def test_the_mean_is_over_the_whole_batch():
    value, total = loss(TOKENS_BT, WEIGHTS_BT)
    parts = [loss(TOKENS_BT[rows], WEIGHTS_BT[rows]) for rows in (slice(0, 1), slice(1, 2), slice(2, 3))]
    assert float(total) == pytest.approx(WEIGHTS_BT[:, 1:].sum(), rel=TOLERANCE)
    mean = sum(float(v) * float(t) for v, t in parts) / sum(float(t) for _, t in parts)
    assert float(value) == pytest.approx(mean, rel=TOLERANCE)
    mean_of_means = np.mean([float(v) for v, _ in parts])
    assert abs(float(value) / mean_of_means - 1) > 100 * TOLERANCE  # these rows would show that mistake


def test_weights_are_relative():
    value, total = loss(TOKENS_BT, WEIGHTS_BT)
    scaled, larger = loss(TOKENS_BT, 7 * WEIGHTS_BT)
    assert float(scaled) == pytest.approx(float(value), rel=TOLERANCE)
    assert float(larger) == pytest.approx(7 * float(total), rel=TOLERANCE)


def test_the_first_token_of_a_row_is_no_target():
    other = WEIGHTS_BT.copy()
    other[:, 0] = 5
    np.testing.assert_array_equal(loss(TOKENS_BT, WEIGHTS_BT), loss(TOKENS_BT, other))


def test_nothing_to_learn_is_zero_and_has_no_gradient():
    assert [float(x) for x in loss(TOKENS_BT, 0 * WEIGHTS_BT)] == [0, 0]
    for leaf in jax.tree.leaves(gradient(TOKENS_BT, 0 * WEIGHTS_BT)):
        assert not np.asarray(leaf).any()


def test_what_pads_hold_changes_neither_loss_nor_gradient():
    other = np.where(np.arange(11) < [[11], [6], [2]], TOKENS_BT, TOKENS_BT[::-1, ::-1])
    assert (other != TOKENS_BT).sum() > 8
    np.testing.assert_array_equal(loss(TOKENS_BT, WEIGHTS_BT), loss(other, WEIGHTS_BT))
    first, second = (
        from_params(gradient(TOKENS_BT, WEIGHTS_BT), CONFIG),
        from_params(gradient(other, WEIGHTS_BT), CONFIG),
    )
    for name in first:
        assert tensor_error(first[name], second[name]) < GRADIENT_TOLERANCE, name


def test_a_weight_is_a_weight_of_its_own_token():
    costs_BT = np.asarray(token_losses(PARAMS, CONFIG, jnp.asarray(TOKENS_BT)))
    for row, t in ((0, 1), (1, 5), (2, 10)):
        only = np.zeros_like(WEIGHTS_BT)
        only[row, t] = 0.3
        assert float(loss(TOKENS_BT, only)[0]) == pytest.approx(costs_BT[row, t], rel=TOLERANCE)


def test_dropout_needs_a_key():
    plain, first, again, other = (
        np.asarray(token_losses(PARAMS, CONFIG, jnp.asarray(TOKENS_BT), dropout_key=key))
        for key in (None, jax.random.key(0), jax.random.key(0), jax.random.key(1))
    )
    np.testing.assert_array_equal(first, again)
    assert (plain != first)[:, 1:].any(axis=1).all()
    assert (other != first)[:, 1:].any(axis=1).all()


@pytest.mark.parametrize("config", [CONFIG, ODD], ids=["tied", "untied"])
def test_loss_and_gradients_against_the_second_implementation(config):
    tensors = draw_tensors(config)
    w = reference.checkpoint(tensors)
    expected, gradients = reference.loss_and_gradients(w, config, TOKENS_BT, WEIGHTS_BT.astype(np.float64))
    params = as_params(tensors, config)
    assert float(loss(TOKENS_BT, WEIGHTS_BT, params, config)[0]) == pytest.approx(expected, rel=TOLERANCE)
    found = from_params(gradient(TOKENS_BT, WEIGHTS_BT, params, config), config)
    assert {name.removeprefix("transformer.") for name in found} == set(gradients)
    for name, ours in found.items():  # whole tensors: a key bias has no gradient, only rounding
        assert tensor_error(ours, gradients[name.removeprefix("transformer.")]) < GRADIENT_TOLERANCE, name


def test_bfloat16_parameters_have_a_float32_loss_and_bfloat16_gradients():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw_params(CONFIG, scale=4.0))
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    value, _ = loss(TOKENS_BT, WEIGHTS_BT, half)
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(float(loss(TOKENS_BT, WEIGHTS_BT, exact)[0]), rel=0.01)
    found, expected = gradient(TOKENS_BT, WEIGHTS_BT, half), gradient(TOKENS_BT, WEIGHTS_BT, exact)
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == jnp.bfloat16
        # A few per cent: a dozen roundings of 2^-9, on the way there and back, of numbers that partly cancel.
        assert tensor_error(ours.astype(jnp.float32), theirs) < 0.06, jax.tree_util.keystr(path)


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_a_head_in_chunks_is_the_head(chunk):
    # 11 tokens: chunks that divide them, that do not, and one for all. The whole logits, by jax's own gradient.
    def whole(params):
        logits_BTV = model.forward(params, CONFIG, jnp.asarray(TOKENS_BT))
        log_BTV = jax.nn.log_softmax(logits_BTV)
        costs_BT = -jnp.take_along_axis(log_BTV[:, :-1], jnp.asarray(TOKENS_BT)[:, 1:, None], axis=-1)[..., 0]
        return (costs_BT * WEIGHTS_BT[:, 1:]).sum() / WEIGHTS_BT[:, 1:].sum()

    def chunked(params):
        return losses.loss(params, CONFIG, jnp.asarray(TOKENS_BT), jnp.asarray(WEIGHTS_BT), chunk=chunk)[0]

    (value, gradients), (expected, references) = (jax.jit(jax.value_and_grad(f))(PARAMS) for f in (chunked, whole))
    assert float(value) == pytest.approx(float(expected), rel=TOLERANCE)
    assert float(jax.jit(chunked)(PARAMS)) == pytest.approx(float(expected), rel=TOLERANCE)  # no gradient asked for
    for path, got in jax.tree_util.tree_leaves_with_path(gradients):
        wanted = dict(jax.tree_util.tree_leaves_with_path(references))[path]
        error = float(jnp.linalg.norm(got - wanted) / jnp.maximum(jnp.linalg.norm(wanted), 1e-3))
        assert error < GRADIENT_TOLERANCE, jax.tree_util.keystr(path)
    token = jax.jit(likelihood.token_losses, static_argnames=("config", "chunk"))
    np.testing.assert_allclose(
        token(PARAMS, CONFIG, jnp.asarray(TOKENS_BT), chunk=chunk),
        token_losses(PARAMS, CONFIG, jnp.asarray(TOKENS_BT)),
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )


def test_logits_are_never_held_whole():
    config = dataclasses.replace(CONFIG, n_layer=1, vocab_size=200)  # 256 with the pad: no other width of the model
    params = jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))

    def text(chunk):
        tokens_BT, weights_BT = jnp.zeros((2, 24), jnp.int32), jnp.ones((2, 24))
        step = jax.grad(lambda p: losses.loss(p, config, tokens_BT, weights_BT, chunk=chunk)[0])
        return jax.jit(step).lower(params).compile().as_text()

    whole, chunked = text(24), text(4)
    assert "f32[48,256]" in whole
    assert "f32[8,256]" in chunked
    assert "[48,256]" not in chunked
    assert "[2,24,256]" not in chunked


def test_what_cannot_be_is_an_error_and_lists_will_do():
    long_BT = np.zeros((2, CONFIG.n_positions + 1), np.int32)
    negative_BT, nan_BT = WEIGHTS_BT.copy(), WEIGHTS_BT.copy()
    negative_BT[1, 2], nan_BT[1, 2] = -0.5, np.nan
    wrong_BT = TOKENS_BT.copy()
    wrong_BT[2, 1] = CONFIG.vocab_size
    for tokens_BT, weights_BT, said in (
        (long_BT, np.ones(long_BT.shape), f"have {CONFIG.n_positions + 1} tokens; n_positions is {CONFIG.n_positions}"),
        (TOKENS_BT, WEIGHTS_BT[:, 1:], r"tokens are \(3, 11\) and weights \(3, 10\); give a weight for each token"),
        (TOKENS_BT[0], WEIGHTS_BT[0], r"tokens have the shape \(11,\); expected \(rows, tokens\)"),
        (TOKENS_BT + 0.0, WEIGHTS_BT, "tokens are float64; expected integers"),
        (wrong_BT, WEIGHTS_BT, f"token id {CONFIG.vocab_size} is outside the vocabulary of {CONFIG.vocab_size}"),
        (TOKENS_BT, negative_BT, "a weight is below 0, or not finite; a token that is no target weighs 0"),
        (TOKENS_BT, nan_BT, "a weight is below 0, or not finite; a token that is no target weighs 0"),
    ):
        with pytest.raises(ValueError, match=said) as refused:
            losses.loss(PARAMS, CONFIG, tokens_BT, weights_BT)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="n_positions"):  # shapes are known under jit too
        both(PARAMS, CONFIG, jnp.asarray(long_BT), jnp.ones(long_BT.shape))
    with pytest.raises(ValueError, match="n_positions"):
        token_losses(PARAMS, CONFIG, jnp.asarray(long_BT))
    found = losses.loss(PARAMS, CONFIG, TOKENS_BT.tolist(), WEIGHTS_BT.tolist())
    assert float(found[0]) == pytest.approx(float(loss(TOKENS_BT, WEIGHTS_BT)[0]), rel=1e-6)
