"""Int8: values within half a step of the weight, products of whole numbers, a model as good as in float32.

Letters: M rows, I inside, O outputs, D model, B rows, T tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import ODD, SENTENCES, TINY, draw_params, tiny_bot

import dialogpt_jax as dg
from dialogpt_jax.evaluation.perplexity import bits_per_byte
from dialogpt_jax.int8 import Int8Weight, is_int8
from dialogpt_jax.matmul import matmul

# In bits per byte, against float32; 0.04 % with the bundled model over sixty held-out dialogues.
QUALITY = 0.005
# Of the largest logit, with drawn weights ten times the usual scale.
LOGITS = 0.05

# What people say, which the bundled model has never seen.
DIALOGUES = [
    [
        "Hi there! How was your weekend?",
        "It was great, I went hiking with my brother.",
        "That sounds like a lot of fun.",
    ],
    ["Do you have any pets?", "Yes, I have two dogs and a cat. How about you?", "I have a cat too. She is very lazy."],
    ["I am so tired today.", "Did you not sleep well?", "No, the neighbours were loud all night."],
    ["What do you do for a living?", "I am a teacher. I teach music to children.", "I wish I could play the piano."],
    ["It is my birthday tomorrow.", "Happy birthday! Are you having a party?", "Just dinner with my family."],
    ["Have you seen any good films lately?", "I saw an old one about the sea.", "I like films about the sea."],
    ["My car broke down again.", "Oh no. What happened to it?", "I think it is the engine. It makes a strange noise."],
    ["I want to learn how to cook.", "You could begin with soup. It is easy.", "Good idea. I like soup in the winter."],
]


def outliers(params, *, factor=50.0, channels=3):
    """The same model with a few channels far larger than the rest, as GPT-2 has them: gains up, the next columns down."""
    rng, params = np.random.default_rng(0), jax.tree.map(np.array, params)
    for name in (name for name in params if name.startswith("h_")):
        block = params[name]
        for norm, linear in (("ln_1", block["attn"]["c_attn"]), ("ln_2", block["mlp"]["c_fc"])):
            chosen = rng.choice(len(block[norm]["scale"]), channels, replace=False)
            block[norm]["scale"][chosen] *= factor
            block[norm]["bias"][chosen] *= factor
            linear["kernel"][..., chosen] /= factor
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
def test_a_weight_is_within_half_a_step_and_the_rest_is_as_it_was(config):
    params = draw_params(config)
    small = dg.quantize(params)
    back = dg.dequantize(small, config)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for name in ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"):
        room, linear = name.split("/")
        kernel, weight = params["h_0"][room][linear]["kernel"], small["h_0"][room][linear]["kernel"]
        assert weight.values.dtype == np.int8
        assert weight.values.shape == kernel.shape == (*weight.scales.shape, *weight.factors.shape)
        assert weight.scales.shape == params["h_0"][room][linear]["bias"].shape  # one an output
        half = np.multiply.outer(np.asarray(weight.scales), np.asarray(weight.factors)) / 2
        assert (np.abs(back["h_0"][room][linear]["kernel"] - kernel) <= half * 1.0001).all()
        largest = np.abs(weight.values).reshape(weight.scales.size, -1).max(axis=1)
        np.testing.assert_array_equal(largest, 127)
    assert small["wte"]["embedding"] is params["wte"]["embedding"]
    assert small["h_1"]["ln_1"]["scale"] is params["h_1"]["ln_1"]["scale"]


def test_under_jit_the_same_values():
    params = draw_params(TINY)
    eager, traced = dg.quantize(params), jax.jit(dg.quantize)(params)
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(traced), strict=True):
        difference = np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).max()
        assert difference <= (1 if one.dtype == np.int8 else 1e-5)  # a quotient may be rounded otherwise


def draw_weight(stack, rng, out=24):
    shape = (*stack, out, 40)
    values, scales = rng.integers(-127, 128, shape).astype(np.int8), rng.uniform(0.5, 2, shape[:-1]).astype(np.float32)
    return Int8Weight(values, scales, rng.uniform(0.5, 2, 40).astype(np.float32))


@pytest.mark.parametrize(("stack", "out"), [((), 24), ((3,), 24), ((), 3 * 8000), ((), 8209)])
@pytest.mark.parametrize("rows", [1, 2, 9, 16, 70])
def test_a_product_is_that_of_whole_numbers(rows, stack, out):
    """A weight of many outputs is multiplied in parts, where it has parts."""
    rng = np.random.default_rng(rows)
    weight, x_MI = draw_weight(stack, rng, out), rng.normal(size=(rows, 40)).astype(np.float32)
    x_MI[-1] = 0  # a row of zeros has no scale
    y = np.asarray(jax.jit(matmul)(x_MI, weight))
    scaled_MI = x_MI * weight.factors
    steps_M1 = np.abs(scaled_MI).max(axis=1, keepdims=True) / 127
    whole_MI = np.rint(scaled_MI / np.where(steps_M1 > 0, steps_M1, 1)).astype(np.int64)
    expected = whole_MI @ np.swapaxes(weight.values.astype(np.int64), -1, -2) * steps_M1 * weight.scales[..., None, :]
    assert y.shape == (*stack, rows, out)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_a_rows_product_does_not_depend_on_the_rows_beside_it():
    rng = np.random.default_rng(0)
    weight, x_MI = draw_weight((), rng), rng.normal(size=(70, 40)).astype(np.float32)
    whole_MO = np.asarray(jax.jit(matmul)(x_MI, weight))
    for rows in (1, 3, 13, 17):
        np.testing.assert_array_equal(np.asarray(jax.jit(matmul)(x_MI[:rows], weight)), whole_MO[:rows])


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
def test_logits_are_near_those_of_the_floats(config):
    params, tokens_BT = draw_params(config), np.random.default_rng(1).integers(0, config.vocab_size, (3, 20))
    run = jax.jit(dg.forward, static_argnums=1)
    expected, found = run(params, config, tokens_BT), run(dg.quantize(params), config, tokens_BT)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < LOGITS


@pytest.fixture(scope="module")
def bundled():
    bot = dg.load()
    return bot, bits(bot.params, bot)


def bits(params, bot):
    return bits_per_byte(params, bot.config, bot.tokenizer, DIALOGUES, rows=8)["bits_per_byte"]


@pytest.mark.parametrize("change", [lambda params: params, outliers], ids=["plain", "outliers"])
def test_the_bundled_model_predicts_as_well_as_in_float32(bundled, change):
    bot, expected = bundled
    assert bits(dg.quantize(change(bot.params)), bot) == pytest.approx(expected, rel=QUALITY)


def test_the_outliers_are_the_same_model_and_would_cost_much(bundled):
    bot, expected = bundled
    changed = outliers(bot.params)
    assert bits(changed, bot) == pytest.approx(expected, rel=1e-5)
    quantized = dg.quantize(changed)
    plain = jax.tree.map(_without_factors, quantized, is_leaf=lambda leaf: isinstance(leaf, Int8Weight))
    tokens_BT = np.random.default_rng(0).integers(0, bot.config.vocab_size, (2, 24))
    whole, scaled, unscaled = (
        jax.jit(dg.forward, static_argnums=1)(params, bot.config, tokens_BT) for params in (changed, quantized, plain)
    )
    assert np.abs(unscaled - whole).mean() > 4 * np.abs(scaled - whole).mean()


def _without_factors(leaf):
    """The weight quantised as it is, its inputs as they are."""
    if not isinstance(leaf, Int8Weight):
        return leaf
    scales, factors, values = map(np.asarray, (leaf.scales, leaf.factors, leaf.values))
    kernel_OI = (np.multiply.outer(scales, factors) * values).reshape(scales.size, -1)
    steps_O = np.maximum(np.abs(kernel_OI).max(axis=1) / 127, 1e-30)
    rounded = np.rint(kernel_OI / steps_O[:, None]).astype(np.int8).reshape(values.shape)
    return Int8Weight(*map(jnp.asarray, (rounded, steps_O.reshape(scales.shape), np.ones_like(factors))))


def test_the_log_probabilities_of_replies_are_their_scores():
    """Rows that end at different times."""
    plain = tiny_bot()
    bot = dataclasses.replace(plain, params=dg.quantize(plain.params))
    assert "int8" in repr(bot)
    dialogues = [[SENTENCES[0]], [SENTENCES[2], SENTENCES[3]], [SENTENCES[4]]]
    answers = bot.answers(dialogues, max_new_tokens=12, seed=3)
    lengths = [len(answer.tokens) for answer in answers]
    assert len(set(lengths)) > 1
    contexts = [bot.encode(turns, max_new_tokens=12) for turns in dialogues]
    width = max(len(context) + length for context, length in zip(contexts, lengths, strict=True))
    tokens_BT = np.zeros((3, width), np.int32)
    for row, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        tokens_BT[row, : len(context) + len(answer.tokens)] = [*context, *answer.tokens]
    starts_B = np.array([len(context) for context in contexts])
    scores = dg.score(bot.params, bot.config, tokens_BT, starts_B, starts_B + lengths)
    np.testing.assert_allclose(scores.total, [answer.logprob for answer in answers], rtol=0.02)


def test_training_in_int8_is_refused():
    params, tokens_BT = dg.quantize(draw_params(TINY)), np.ones((2, 5), np.int32)
    teacher = dg.Teacher(params, TINY)
    examples = [dg.Example(np.ones(5, np.int32), np.ones(5, np.float32))] * 2
    options = dg.TrainOptions(steps=1, batch_size=2)
    optimizer = optax.sgd(1e-3)
    wrong = (
        lambda: dg.loss(params, TINY, tokens_BT, np.ones((2, 5))),
        lambda: dg.init_state(params, optimizer, jax.random.key(0)),
        lambda: dg.fit(params, TINY, examples, options),
        lambda: dg.fit(draw_params(TINY), TINY, examples, options, teachers=[teacher]),
    )
    for call in wrong:
        with pytest.raises(ValueError, match=r"^the parameters are int8, and training needs floating ones: .*convert"):
            call()
    with pytest.raises(ValueError, match="dtype is int8, through which no gradient flows"):
        dg.TrainOptions(steps=1, dtype="int8")


def test_what_is_int8_already_or_not_yet_is_told():
    params = draw_params(TINY)
    small = dg.quantize(params)
    assert is_int8(small)
    assert not is_int8(params)
    with pytest.raises(ValueError, match="int8 already"):
        dg.quantize(small)
    for call in (lambda: dg.quantize(TINY), lambda: dg.dequantize(TINY, TINY)):
        with pytest.raises(TypeError, match=r"params is GPT2Config\(.*; give the parameters, such as `bot\.params`"):
            call()
    with pytest.raises(ValueError, match="float already"):
        dg.dequantize(params, TINY)
    for call in (lambda: dg.quantize(params["h_0"]), lambda: dg.dequantize({"h_0": small["h_0"]}, TINY)):
        with pytest.raises(ValueError, match=r"have no wte, .*; give those of the whole model, such as `bot\.params`"):
            call()
    with pytest.raises(TypeError, match="config is None; give the GPT2Config of the parameters"):
        dg.dequantize(small, None)
    broken = small | {"lm_head": {"kernel": small["lm_head"]["kernel"]._replace(scales=jnp.ones(3))}}
    with pytest.raises(ValueError, match=r"lm_head/kernel/scales has the shape \(3,\)"):
        dg.forward(broken, TINY, np.ones((2, 5), np.int32))
