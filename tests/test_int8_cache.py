"""A cache of 8 bits is near the plain model, exact where it ought to be, and what int8 weights have.

Letters: B rows, N candidates of a row, T tokens, S cache slots, R slots of a reply, K head dim, G = B·H·N merged.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from drawn_weights import as_params, draw_tensors
from fakes import TINY as THREE_LAYERS
from reference import relative_error

from dialogpt_jax import model
from dialogpt_jax.cache import cache_dtype, init_cache, init_reply, keep_reply, reorder, write
from dialogpt_jax.matmul import as_int8, attention_product
from dialogpt_jax.quantization import quantize

# A key or value is within 1/254 of its largest number; of the logits the error is then some thousandths of the largest.
TOLERANCE = 2e-2

TINY = dataclasses.replace(THREE_LAYERS, n_layer=2)
TENSORS = draw_tensors(TINY)
PARAMS, WEIGHTS = as_params(TENSORS, TINY), reference.checkpoint(TENSORS)
TOKENS_BT = np.random.default_rng(0).integers(0, TINY.vocab_size, (3, 12)).astype(np.int32)
LENGTHS = np.array([12, 7, 10])


@jax.jit
def run(params, tokens_BT, positions_BT, cache):
    x_BTD, cache = model.hidden(params, TINY, tokens_BT, positions_BT, cache)
    return model.logits(params, TINY, x_BTD)[..., : TINY.vocab_size], cache


def feed(cache, tokens_BT, start_B):
    positions_BT = np.broadcast_to(start_B, len(tokens_BT))[:, None] + np.arange(tokens_BT.shape[1])[None]
    logits_BTV, cache = run(PARAMS, jnp.asarray(tokens_BT), jnp.asarray(positions_BT, jnp.int32), cache)
    return np.asarray(logits_BTV), cache


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [7, 4, 1]], ids=["one call", "token by token", "pieces"])
def test_cached_is_near_the_plain_model(sizes):
    cache, start, out = init_cache(TINY, 3, 20, jnp.int8), 0, []
    for size in sizes:
        logits_BTV, cache = feed(cache, TOKENS_BT[:, start : start + size], start)
        out.append(logits_BTV)
        start += size
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype(jnp.int8), jnp.dtype(jnp.float32)}
    assert relative_error(np.concatenate(out, axis=1), reference.logits(WEIGHTS, TINY, TOKENS_BT)) < TOLERANCE


@pytest.mark.parametrize("queries", [1, 3, 65], ids=["one", "few", "many"])
def test_products_by_8_bits_are_those_by_the_numbers_they_stand_for(queries):
    """Also of what is thousands of times smaller than the largest beside it: queries have more than 8 bits."""
    rng = np.random.default_rng(1)
    y = as_int8(jnp.asarray(rng.normal(size=(4, 1000, 8)) * rng.uniform(0.1, 10, size=(4, 1000, 1)), jnp.float32))
    plain_GSK = np.asarray(y.values, np.float64) * np.asarray(y.scales, np.float64)
    query_GQK = rng.normal(size=(4, queries, 8)).astype(np.float32)
    query_GQK[..., 0] *= 1000.0
    probs_GQS = np.full((4, queries, 1000), 0.0005, np.float32)
    probs_GQS[..., 5] = 0.5005
    for x, axis, exact in (
        (query_GQK, -1, query_GQK @ plain_GSK.swapaxes(1, 2)),
        (probs_GQS, -2, probs_GQS @ plain_GSK),
    ):
        got = jax.jit(attention_product, static_argnums=2)(jnp.asarray(x), y, axis)
        assert relative_error(got, exact) < 2e-3  # half of one part in 16,256 of the largest, summed over a thousand


def test_a_row_rounds_to_within_half_a_step_and_zeros_stay():
    x_GSK = np.random.default_rng(2).normal(size=(2, 5, 8)).astype(np.float32)
    x_GSK[1, 3] = 0.0
    got = as_int8(jnp.asarray(x_GSK))
    step_GS1 = np.abs(x_GSK).max(axis=-1, keepdims=True) / 127
    assert (np.abs(got.values * np.asarray(got.scales) - x_GSK) <= step_GS1 / 2 * (1 + 1e-5)).all()


def test_what_lies_in_unwritten_slots_and_pads_changes_nothing():
    tokens_BT, cache = TOKENS_BT.copy(), init_cache(TINY, 3, 20, jnp.int8)
    first, _ = feed(cache, tokens_BT, 0)
    tokens_BT[1, 7:] = 3
    second, _ = feed(jax.tree.map(lambda x: x + 100, cache), tokens_BT, 0)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(
            first[row, : min(length, 7 if row == 1 else 12)], second[row, : min(length, 7 if row == 1 else 12)]
        )


def test_candidates_are_moved_kept_and_go_on():
    _, prefix = feed(init_cache(TINY, 3, 20, jnp.int8), TOKENS_BT, 0)
    cache = init_reply(TINY, prefix, jnp.asarray(LENGTHS, jnp.int32), 2, 5)
    reply_MT = np.random.default_rng(3).integers(0, TINY.vocab_size, (6, 3)).astype(np.int32)
    _, cache = feed(cache, reply_MT, np.repeat(LENGTHS, 2))
    swapped = dataclasses.replace(cache, reply=reorder(cache.reply, jnp.array([[1, 0]] * 3)))
    chosen_B = np.array([1, 0, 1])
    kept, kept_of_swapped = (
        keep_reply(cache, TINY, jnp.asarray(chosen_B)),
        keep_reply(swapped, TINY, jnp.asarray(1 - chosen_B)),
    )
    jax.tree.map(np.testing.assert_array_equal, kept, kept_of_swapped)
    after_BT = np.full((3, 1), 7, np.int32)
    got, _ = feed(kept, after_BT, LENGTHS + 3)
    for row, length in enumerate(LENGTHS):
        text_T = np.concatenate([TOKENS_BT[row, :length], reply_MT[2 * row + chosen_B[row]], after_BT[row]])
        assert relative_error(got[row, 0], reference.logits(WEIGHTS, TINY, text_T[None])[0, -1]) < TOLERANCE


def test_a_written_row_is_rounded_once():
    """What is moved from cache to cache is the same numbers."""
    cache = init_cache(TINY, 2, 4, jnp.int8).layers[0]
    new_GTK = jnp.asarray(np.random.default_rng(4).normal(size=(8, 1, 8)), jnp.float32)
    slots_GT = jnp.full((8, 1), 2, jnp.int32)
    written = write(cache, new_GTK, -new_GTK, slots_GT)
    again = write(cache, as_int8(new_GTK), as_int8(-new_GTK), slots_GT)
    jax.tree.map(np.testing.assert_array_equal, written, again)
    np.testing.assert_array_equal(written[0].values[:, 2:3], as_int8(new_GTK).values)
    assert not written[0].values[:, [0, 1, 3]].any()


def test_int8_weights_have_a_cache_of_8_bits_and_floats_their_own():
    assert cache_dtype(quantize(PARAMS)) == jnp.int8
    assert cache_dtype(PARAMS) == jnp.float32
    assert cache_dtype(jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)) == jnp.bfloat16
