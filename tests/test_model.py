"""The model's properties: what sees what, what changes nothing, what is drawn, and in which dtype it is computed.

Numbers against a second implementation are in `test_model_numbers.py`; the cache is in `test_cache.py`.

Letters: B rows, T tokens, D model, V vocabulary, M merged rows, I inside, O outside.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import draw_params
from fakes import ODD, TINY
from reference import relative_error, tensor_error

from dialogpt_jax import model
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.matmul import matmul
from dialogpt_jax.parameter_shapes import model_shapes, shapes_of
from dialogpt_jax.quantization import quantize

# float32: products of other shapes round differently, by about 1e-6 of the largest logit.
TOLERANCE = 1e-5

TWO_LAYERS = dataclasses.replace(TINY, n_layer=2)
UNTIED = dataclasses.replace(TWO_LAYERS, tie_word_embeddings=False)

forward = jax.jit(model.forward, static_argnums=1)
logits = jax.jit(model.logits, static_argnums=1)
hidden = jax.jit(lambda *args, **options: model.hidden(*args, **options)[0], static_argnums=1)


def draw_tokens(*shape, seed=0, config=TINY):
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab_size, shape), jnp.int32)


def positions_like(tokens_BT):
    return jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], tokens_BT.shape)


# What sees what.


def reach(segments_BT=None):
    """Which input embedding each output depends on, by gradient, (B, T, T): every token has a row of wte to itself."""
    tokens_BT = jnp.asarray(np.random.default_rng(0).permutation(UNTIED.vocab_size)[:24].reshape(2, 12), jnp.int32)
    params = draw_params(UNTIED)
    direction_V = jnp.asarray(np.random.default_rng(5).normal(size=UNTIED.vocab_size), jnp.float32)

    def outputs(embedding):
        changed = {**params, "wte": {"embedding": embedding}}
        x_BTD, _ = model.hidden(changed, UNTIED, tokens_BT, positions_like(tokens_BT), segments_BT=segments_BT)
        logits_BTV = model.logits(changed, UNTIED, x_BTD)[..., : UNTIED.vocab_size]
        return (logits_BTV * direction_V[None, None]).sum(-1)

    gradient_BTVD = jax.jit(jax.jacrev(outputs))(params["wte"]["embedding"])
    size_BTV = np.abs(np.asarray(gradient_BTVD)).max(-1)
    both = np.stack([size_BTV[:, :, np.asarray(row)] for row in tokens_BT], axis=2)  # output row, T, input row, T
    np.testing.assert_array_equal(both[0, :, 1], 0)  # no information passes between rows
    np.testing.assert_array_equal(both[1, :, 0], 0)
    return np.stack([both[0, :, 0], both[1, :, 1]])


def test_a_token_sees_itself_and_what_is_before_it():
    sees = reach() != 0
    np.testing.assert_array_equal(sees, np.broadcast_to(np.tri(12, dtype=bool), (2, 12, 12)))


def test_a_packed_token_sees_its_own_segment_only():
    segments_BT = np.array([[1] * 5 + [2] * 4 + [3] * 3, [1] * 2 + [2] * 10])
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    np.testing.assert_array_equal(reach(jnp.asarray(segments_BT)) != 0, same & np.tri(12, dtype=bool))


def test_packed_equals_unpacked():
    params, lengths = draw_params(TWO_LAYERS), [[5, 4, 3], [9, 1, 2]]
    tokens_BT = draw_tokens(2, 12)
    segments_BT = jnp.asarray([np.repeat(np.arange(len(row)), row) for row in lengths], jnp.int32)
    positions_BT = jnp.asarray([np.concatenate([np.arange(n) for n in row]) for row in lengths], jnp.int32)
    packed = hidden(params, TWO_LAYERS, tokens_BT, positions_BT, segments_BT=segments_BT)
    for row, sizes in enumerate(lengths):
        for stop, size in zip(np.cumsum(sizes), sizes, strict=True):
            piece = jnp.zeros((1, 12), jnp.int32).at[0, :size].set(tokens_BT[row, stop - size : stop])
            single = hidden(params, TWO_LAYERS, piece, positions_like(piece))[0, :size]
            assert relative_error(packed[row, stop - size : stop], single) < TOLERANCE


def test_padded_equals_unpadded_and_pads_of_any_content_change_nothing():
    params, lengths = draw_params(TWO_LAYERS), [7, 12, 1]
    tokens_BT = np.array(draw_tokens(3, 12))
    first = forward(params, TWO_LAYERS, jnp.asarray(tokens_BT))
    for row, length in enumerate(lengths):
        tokens_BT[row, length:] = np.array(draw_tokens(12 - length, seed=8))
    second = forward(params, TWO_LAYERS, jnp.asarray(tokens_BT))
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(first[row, :length], second[row, :length])
        single = forward(params, TWO_LAYERS, jnp.asarray(tokens_BT[row : row + 1, :length]))[0]
        assert relative_error(first[row, :length], single) < TOLERANCE
    assert np.isfinite(first).all()


# The vocabulary's pad.


def with_loud_pad(params, config):
    """The pad's rows are made large, so that whatever reads them shows."""
    name, leaf = ("wte", "embedding") if config.tie_word_embeddings else ("lm_head", "kernel")
    return {**params, name: {leaf: params[name][leaf].at[config.vocab_size :].set(1e3)}}


@pytest.mark.parametrize("config", [TWO_LAYERS, ODD])
def test_the_pad_of_the_vocabulary_is_invisible(config):
    quiet, tokens_BT = draw_params(config), draw_tokens(2, 6)
    params = with_loud_pad(quiet, config)
    x_BTD = hidden(params, config, tokens_BT, positions_like(tokens_BT))
    logits_BTV = np.asarray(logits(params, config, x_BTD))
    assert logits_BTV.shape == (2, 6, config.padded_vocab_size)
    assert np.isneginf(logits_BTV[..., config.vocab_size :]).all()
    assert np.isfinite(logits_BTV[..., : config.vocab_size]).all()
    plain = forward(params, config, tokens_BT)
    assert plain.shape == (2, 6, config.vocab_size)
    np.testing.assert_array_equal(plain, forward(quiet, config, tokens_BT))


@pytest.mark.parametrize("config", [TWO_LAYERS, ODD])
def test_the_pad_of_the_vocabulary_gets_no_gradient(config):
    params = with_loud_pad(draw_params(config), config)
    x_BTD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, config.n_embd)), jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jax.nn.logsumexp(model.logits(params, config, x_BTD), axis=-1).sum()

    found = gradient(params)
    head_VD = np.asarray(found["wte"]["embedding"] if config.tie_word_embeddings else found["lm_head"]["kernel"])
    assert np.isfinite(head_VD).all()
    assert not head_VD[config.vocab_size :].any()
    assert head_VD[: config.vocab_size].any(axis=-1).all()


def test_a_vocabulary_without_pad_needs_none():
    config = dataclasses.replace(TWO_LAYERS, vocab_size=128)
    assert np.isfinite(logits(draw_params(config), config, jnp.ones((3, 32)))).all()


def test_logits_of_one_position_and_of_many_agree():
    params = draw_params(TWO_LAYERS)
    x_BTD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 32)), jnp.float32)
    whole, last = logits(params, TWO_LAYERS, x_BTD), logits(params, TWO_LAYERS, x_BTD[:, -1])
    assert relative_error(whole[:, -1, :61], last[:, :61]) < TOLERANCE


# Parameters.


@pytest.mark.parametrize("config", [GPT2Config.small(), GPT2Config.medium(), GPT2Config.large(), TINY, ODD])
def test_number_of_parameters(config):
    shapes = jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))
    pad = (config.padded_vocab_size - config.vocab_size) * config.n_embd * (1 if config.tie_word_embeddings else 2)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) - pad == config.num_parameters


def test_fresh_parameters_are_drawn_as_gpt2_draws_them():
    config = GPT2Config(vocab_size=500, n_positions=200, n_embd=96, n_layer=4, n_head=4, eos_token_id=0)
    config = dataclasses.replace(config, tie_word_embeddings=False)
    params = jax.tree.map(np.asarray, jax.jit(model.init_params, static_argnums=0)(config, jax.random.key(0)))
    seen = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [entry.key for entry in path]
        assert leaf.dtype == jnp.float32
        if names[-1] in ("bias", "scale"):
            np.testing.assert_array_equal(leaf, float(names[-1] == "scale"))
            continue
        residual = names[-2] == "c_proj"
        stddev = 0.02 / math.sqrt(2 * config.n_layer) if residual else 0.02
        assert abs(float(leaf.mean())) < 5 * stddev / math.sqrt(leaf.size), names
        assert abs(float(leaf.std()) / stddev - 1) < 5 / math.sqrt(2 * leaf.size), names
        seen.add(round(float(leaf.ravel()[0]), 9))
    assert len(seen) == 3 + 4 * config.n_layer  # no two drawn alike


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_fresh_parameters_have_the_dtype_asked_for(dtype):
    params = jax.eval_shape(lambda: model.init_params(ODD, jax.random.key(0), dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


# Dtypes.


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 0.1), (jnp.float16, 0.01)])
def test_half_precision_comes_from_the_parameters(dtype, tolerance):
    # Tolerances: a few roundings of 2^-8 and 2^-11 a block. Logits themselves are float32.
    params, tokens_BT = draw_params(TWO_LAYERS, scale=4.0), draw_tokens(2, 9)
    half = jax.tree.map(lambda x: x.astype(dtype), params)
    x_BTD = hidden(half, TWO_LAYERS, tokens_BT, positions_like(tokens_BT))
    assert x_BTD.dtype == dtype
    got = forward(half, TWO_LAYERS, tokens_BT)
    assert got.dtype == jnp.float32
    exact = forward(params, TWO_LAYERS, tokens_BT)
    assert 1e-4 < relative_error(got, exact) < tolerance


def products(function, *args):
    """Every dot_general in a traced function, those of inner functions and branches included."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation
            for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from walk(inner)

    return list(walk(jax.make_jaxpr(function)(*args).jaxpr))


def test_float32_means_float32_products_on_every_platform():
    params, tokens_BT = draw_params(TWO_LAYERS), draw_tokens(2, 5)
    found = products(jax.value_and_grad(lambda params: model.forward(params, TWO_LAYERS, tokens_BT).sum()), params)
    assert len(found) >= 3 * (1 + 2 * 6)  # the head, and two layers of six products, forwards and twice backwards
    for equation in found:
        assert equation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2, equation


def test_no_product_of_bfloat16_parameters_is_in_float32():
    # A float32 operand would take the slow path everywhere. The sums are float32 all the same.
    params, tokens_BT = draw_params(TWO_LAYERS, dtype=jnp.bfloat16), draw_tokens(2, 5)
    found = products(lambda params: model.forward(params, TWO_LAYERS, tokens_BT), params)
    assert len(found) == 2 * 1 + 2 * (2 * 4 + 2)  # those of weights once for CPU, once for the other platforms
    for equation in found:
        assert {operand.aval.dtype for operand in equation.invars} == {jnp.dtype(jnp.bfloat16)}, equation


# Our own product and its gradient.


def test_gradient_of_the_product_is_jaxs_own_in_float32():
    x_MI, w_OI, g_MO = operands(jnp.float32)
    ours, theirs = gradients(matmul, x_MI, w_OI, g_MO), gradients(plain_product, x_MI, w_OI, g_MO)
    for got, expected in zip(ours, theirs, strict=True):
        assert relative_error(got, expected) < TOLERANCE


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradient_of_the_product_is_close_in_half_precision(dtype):
    # Both of its operands and its result are rounded once: 2^-9 of the norm in bfloat16 each.
    ours = gradients(matmul, *operands(dtype))
    theirs = gradients(plain_product, *operands(jnp.float32))
    for got, expected in zip(ours, theirs, strict=True):
        assert got.dtype == dtype
        assert tensor_error(got.astype(jnp.float32), expected) < 0.01


def test_cpu_turns_an_operand_in_half_precision_only():
    for dtype, turned in ((jnp.bfloat16, True), (jnp.float32, False)):
        traced = jax.jit(lambda *args: gradients(matmul, *args)).trace(*operands(dtype))
        text = traced.lower(lowering_platforms=("cpu",)).as_text()
        assert ("LayoutConstraint" in text) == turned


def operands(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((7, 5), (6, 5), (7, 6))
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def plain_product(x_MI, w_OI):
    return jnp.dot(x_MI, w_OI.T, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def gradients(product, x_MI, w_OI, g_MO):
    return jax.grad(lambda x_MI, w_OI: (product(x_MI, w_OI) * g_MO).sum(), argnums=(0, 1))(x_MI, w_OI)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("inner", [None, 40])
def test_the_table_of_shapes_is_what_a_fresh_model_has(int8, tied, inner):
    config = GPT2Config(
        vocab_size=50,
        eos_token_id=0,
        n_positions=16,
        n_embd=24,
        n_layer=1,
        n_head=3,
        n_inner=inner,
        tie_word_embeddings=tied,
    )
    params = jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))
    params = jax.eval_shape(quantize, params) if int8 else params
    block = params.pop("h_0")
    assert model_shapes(config, int8) == (shapes_of(params), shapes_of(block))
