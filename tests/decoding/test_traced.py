"""The public functions inside `jit`, `vmap` and `grad`: traced, they give what they give when called plainly.

Letters: B rows, N candidates.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding.tiny import CONFIG, KEYS, LENGTHS, PARAMS, TOKENS

import dialogpt_jax as dg
from dialogpt_jax.parallel.mesh import make_mesh
from dialogpt_jax.parallel.rules import decode_sharding, shardings

# float32: a program in which more is constant sums in another order.
TOLERANCE = 2e-5

SAMPLING = dg.Sampling(temperature=0.9, top_k=20, top_p=0.95, repetition_penalty=1.3, penalty_scope="context")
MANY, LENGTHS_8, KEYS_8 = np.tile(TOKENS, (2, 1)), np.tile(LENGTHS, 2), jax.random.split(jax.random.key(4), 8)


def reply(params, tokens_BT, lengths_B, keys, sampling=SAMPLING, max_new_tokens=6):
    return dg.generate(
        params, CONFIG, tokens_BT, lengths_B, sampling=sampling, max_new_tokens=max_new_tokens, keys=keys
    )


def assert_same(one, other):
    one, other = jax.device_get((one, other))
    for name in ("tokens", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE)


@pytest.fixture(scope="module")
def plain():
    return reply(PARAMS, TOKENS, LENGTHS, KEYS)


def test_generate_under_jit_with_everything_traced(plain):
    assert_same(jax.jit(reply)(PARAMS, TOKENS, LENGTHS, KEYS, SAMPLING), plain)
    assert len(set(map(tuple, plain.tokens.tolist()))) == 4


def test_generate_under_jit_that_closes_over_parameters_and_sampling(plain):
    program = jax.jit(lambda tokens_BT, lengths_B, keys: reply(PARAMS, tokens_BT, lengths_B, keys))
    assert_same(program(TOKENS, LENGTHS, KEYS), plain)
    longer = np.pad(TOKENS, ((0, 0), (0, 50)))  # wider than the model has positions: pads
    assert_same(program(longer, LENGTHS, KEYS), plain)


def test_generate_under_jit_that_closes_over_the_prompts(plain):
    assert_same(jax.jit(lambda params: reply(params, TOKENS, LENGTHS, KEYS))(PARAMS), plain)
    assert_same(jax.jit(lambda keys: reply(PARAMS, TOKENS.tolist(), LENGTHS.tolist(), keys))(KEYS), plain)


def test_a_length_that_is_another_bucket_under_jit():
    wide = jax.jit(lambda keys: reply(PARAMS, TOKENS, LENGTHS, keys, max_new_tokens=70))(KEYS)
    assert wide.tokens.shape == wide.logprobs.shape == (4, 70)
    assert_same(wide, reply(PARAMS, TOKENS, LENGTHS, KEYS, max_new_tokens=70))


@pytest.mark.long
def test_generate_under_jit_on_a_mesh():
    """Parameters by the rules, keys and prompts by rows; traced, or keys closed over with their sharding."""
    expected = reply(PARAMS, MANY, LENGTHS_8, KEYS_8)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params, rows = jax.device_put(PARAMS, shardings(PARAMS, mesh)), decode_sharding(mesh)
    tokens_BT, lengths_B, keys = (jax.device_put(x, rows) for x in (jnp.asarray(MANY), jnp.asarray(LENGTHS_8), KEYS_8))
    found = jax.jit(reply)(params, tokens_BT, lengths_B, keys)
    assert_same(found, expected)
    closed = jax.jit(lambda params, tokens_BT: reply(params, tokens_BT, LENGTHS_8, keys))(params, tokens_BT)
    assert_same(closed, expected)
    assert len(closed.tokens.sharding.device_set) == 8


@pytest.mark.long
def test_candidates_score_and_forward_under_jit():
    def replies(params, keys):
        how = {"candidates": 3, "sampling": SAMPLING, "max_new_tokens": 5, "keys": keys}
        return dg.generate_candidates(params, CONFIG, TOKENS, LENGTHS, **how)

    assert_same(jax.jit(replies)(PARAMS, KEYS), replies(PARAMS, KEYS))
    score = jax.jit(dg.score, static_argnums=1)
    got = score(PARAMS, CONFIG, TOKENS, LENGTHS - 1, LENGTHS)
    np.testing.assert_allclose(got.total, dg.score(PARAMS, CONFIG, TOKENS, LENGTHS - 1, LENGTHS).total, atol=TOLERANCE)
    logits = jax.jit(dg.forward, static_argnums=1)(PARAMS, CONFIG, TOKENS)
    np.testing.assert_allclose(logits, dg.forward(PARAMS, CONFIG, TOKENS.tolist()), atol=TOLERANCE)
    gradient = jax.grad(lambda params: dg.score(params, CONFIG, TOKENS, LENGTHS - 1, LENGTHS).total.sum())(PARAMS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_shapes_are_checked_where_values_cannot_be():
    with pytest.raises(ValueError, match=r"shape \(12,\); expected \(rows, tokens\)"):
        jax.jit(reply)(PARAMS, TOKENS[0], LENGTHS, KEYS)
    with pytest.raises(ValueError, match="keys of shape"):
        jax.jit(reply)(PARAMS, TOKENS, LENGTHS, KEYS[:3])
    with pytest.raises(ValueError, match=r"max_new_tokens is .*whole number"):
        jax.jit(reply)(PARAMS, TOKENS, LENGTHS, KEYS, SAMPLING, 6)
    jax.jit(reply)(PARAMS, TOKENS, LENGTHS + 99, KEYS)  # a mistake that nobody can see
