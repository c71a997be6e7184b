"""On a GPU: the numbers are those of the CPU, attention is fused, and a step of the loop is few kernels. Skips without one.

Letters: B rows, T tokens, H heads, K head dim, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import TINY, draw_params

import dialogpt_jax as dg
from dialogpt_jax import attention
from dialogpt_jax.decoding.generate import reply_program
from dialogpt_jax.decoding.request import assemble
from dialogpt_jax.quantization import quantize
from dialogpt_jax.training.loss import loss

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU, with JAX_PLATFORMS unset")
FLOAT32_TOLERANCE, BFLOAT16_TOLERANCE = 2e-5, 2e-2
TOKENS_BT = np.random.default_rng(0).integers(0, 60, (3, 10)).astype(np.int32)
SEGMENTS_BT = np.repeat([[0, 0, 0, 0, 1, 1, 1, 2, 2, 2]], 2, axis=0)
SHAPE = dataclasses.replace(dg.GPT2Config.small(), n_layer=2)
MOST_KERNELS = {1: 10, 8: 14}  # of a block, by rows


def on_cpu(f, *arrays):
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        return f(*jax.device_put(arrays, cpu))


def greedily(params):
    keys = jax.random.split(jax.random.key(0), len(TOKENS_BT))
    how = {"sampling": dataclasses.replace(dg.GREEDY, min_new_tokens=12), "max_new_tokens": 12, "keys": keys}
    return dg.generate(params, TINY, TOKENS_BT, np.full(len(TOKENS_BT), 10), **how)


def test_logits_are_those_of_the_cpu():
    params = draw_params(TINY)
    forward = jax.jit(dg.forward, static_argnums=1)
    expected = on_cpu(lambda params: forward(params, TINY, TOKENS_BT), params)
    np.testing.assert_allclose(forward(params, TINY, TOKENS_BT), expected, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_reply_is_that_of_the_cpu(dtype):
    params = draw_params(TINY)
    params = quantize(params) if dtype == "int8" else params
    expected, got = on_cpu(greedily, params), greedily(params)
    tolerance = FLOAT32_TOLERANCE if dtype == "float32" else 0.1  # on a GPU no input is rounded to 8 bits
    if dtype == "float32":
        np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_allclose(got.logprobs[:, 0], expected.logprobs[:, 0], atol=tolerance)


@pytest.mark.parametrize("segments_BT", [None, SEGMENTS_BT], ids=["whole rows", "segments"])
def test_fused_attention_gives_what_the_plain_does(segments_BT):
    draw = np.random.default_rng(1).standard_normal
    arrays = [jnp.asarray(draw((2, 10, 3, 64)), jnp.bfloat16) / 2 for _ in range(3)]
    segments_BT = None if segments_BT is None else jnp.asarray(segments_BT)

    def plain(*arrays):
        return attention.attend_in_rows(*arrays, segments_BT, lambda probs: probs)

    def either(*arrays):
        return attention.attend_in_rows(*arrays, segments_BT, None)

    assert "__cudnn$fmha" in jax.jit(either).lower(*arrays).compile().as_text()
    np.testing.assert_allclose(np.float32(either(*arrays)), np.float32(plain(*arrays)), atol=BFLOAT16_TOLERANCE)
    one, other = (
        jax.grad(lambda *a, f=f: jnp.sum(jnp.square(f(*a).astype(jnp.float32))), (0, 1, 2)) for f in (either, plain)
    )
    for a, b in zip(one(*arrays), other(*arrays), strict=True):
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=5 * BFLOAT16_TOLERANCE)


def test_training_in_bfloat16_keeps_no_scores():
    config = dataclasses.replace(SHAPE, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    params = jax.eval_shape(lambda: dg.init_params(config, jax.random.key(0), jnp.bfloat16))
    tokens_BT, ones_BT = jax.ShapeDtypeStruct((2, 512), jnp.int32), jax.ShapeDtypeStruct((2, 512), jnp.float32)
    gradient = jax.jit(jax.grad(lambda params, *batch: loss(params, config, *batch)[0]))
    text = gradient.lower(params, tokens_BT, ones_BT).compile().as_text()
    assert "__cudnn$fmhaSoftmaxBackward" in text
    assert ",512,512]" not in text


@pytest.mark.parametrize("rows", MOST_KERNELS)
def test_a_step_is_few_kernels(rows):
    counted = {}
    for layers in (2, 4):
        config = dataclasses.replace(SHAPE, n_layer=layers)
        params = jax.eval_shape(lambda config=config: dg.init_params(config, jax.random.key(0), jnp.bfloat16))
        how = {"sampling": dg.GREEDY, "max_new_tokens": 64, "keys": jax.random.split(jax.random.key(0), rows)}
        request = assemble(config, np.ones((rows, 64), np.int32), np.full(rows, 64), **how)
        counted[layers] = kernels_of_loop(reply_program.lower(params, config, request).compile().as_text())
    assert 4 <= (counted[4] - counted[2]) / 2 <= MOST_KERNELS[rows]


def kernels_of_loop(text):
    """Instructions of the loop over tokens that are work of their own."""
    free = ("parameter(", "get-tuple-element(", "tuple(", "bitcast(", "constant(")
    name = next(line.split("body=")[1].split(",")[0].lstrip("%") for line in text.splitlines() if " while(" in line)
    body = text.split(f"\n%{name} (")[1].split("\n}")[0].splitlines()[1:]
    return sum(" = " in line and not any(f" {word}" in line for word in free) for line in body)
