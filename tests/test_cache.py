"""Decoding with a cache equals the plain model, however the tokens are cut into calls and whatever the pads hold.

The plain model is the one in NumPy (`reference.py`), which has no cache, no pads and nothing to compile.

Letters: B rows, N candidates of a row, T tokens, S cache slots, R slots of a reply, K head dim, G = B·H·N merged.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from drawn_weights import as_params, draw_tensors
from fakes import ODD
from fakes import TINY as THREE_LAYERS
from reference import relative_error

from dialogpt_jax import cache as caches
from dialogpt_jax import model
from dialogpt_jax.cache import KVCache, init_cache, init_reply, keep_reply

# float32: sums over other numbers of slots round differently, by about 1e-6 of the largest logit.
TOLERANCE = 1e-5

TINY = dataclasses.replace(THREE_LAYERS, n_layer=2)  # compiles faster, and a second layer is enough to go wrong in
LENGTHS = np.array([9, 4, 13])
TENSORS = draw_tensors(TINY)
PARAMS, WEIGHTS = as_params(TENSORS, TINY), reference.checkpoint(TENSORS)


@jax.jit
def run(params, tokens_BT, positions_BT, cache):
    x_BTD, cache = model.hidden(params, TINY, tokens_BT, positions_BT, cache)
    return model.logits(params, TINY, x_BTD)[..., : TINY.vocab_size], cache


def draw_tokens(*shape, seed=0, config=TINY):
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape).astype(np.int32)


TEXTS = [draw_tokens(length, seed=int(length)) for length in LENGTHS]


def alone(text):
    """Logits of one text, by itself, without cache or pad."""
    return reference.logits(WEIGHTS, TINY, text[None])[0]


def feed(cache, starts_B, chunks, *, width=0, seed=0):
    """One call: a chunk per row, padded with arbitrary ids to the longest (at least `width`)."""
    width = max(width, *(len(chunk) for chunk in chunks))
    tokens_BT = draw_tokens(len(chunks), width, seed=seed)
    for row, chunk in enumerate(chunks):
        tokens_BT[row, : len(chunk)] = chunk
    positions_BT = np.asarray(starts_B)[:, None] + np.arange(width)[None]
    logits_BTV, cache = run(PARAMS, jnp.asarray(tokens_BT), jnp.asarray(positions_BT, jnp.int32), cache)
    logits_BTV = np.asarray(logits_BTV)
    return [logits_BTV[row, : len(chunk)] for row, chunk in enumerate(chunks)], cache


def feed_in_turn(texts, sizes, slots):
    """Several calls; `sizes` has each row's number of tokens in each call. A row with 0 stands still."""
    cache, starts_B, out = init_cache(TINY, len(texts), slots, jnp.float32), np.zeros(len(texts), int), []
    for call, sizes_B in enumerate(sizes):
        chunks = [text[start : start + n] for text, start, n in zip(texts, starts_B, sizes_B, strict=True)]
        logits, cache = feed(cache, starts_B, chunks, seed=call)
        out.append(logits)
        starts_B = starts_B + np.array(sizes_B)
    assert starts_B.tolist() == [len(text) for text in texts]
    return [np.concatenate(parts) for parts in zip(*out, strict=True)], cache


@pytest.mark.parametrize(
    "sizes",
    [
        [(9, 4, 13)],
        [(5, 4, 7), (4, 0, 6)],
        [(3, 3, 3), (3, 1, 3), (3, 0, 3), (0, 0, 3), (0, 0, 1)],
        [tuple(int(step < length) for length in LENGTHS) for step in range(13)],
    ],
    ids=["one call", "two", "many", "token by token"],
)
def test_cached_equals_plain(sizes):
    for got, text in zip(feed_in_turn(TEXTS, sizes, slots=20)[0], TEXTS, strict=True):
        assert relative_error(got, alone(text)) < TOLERANCE


def test_pads_of_any_content_change_nothing():
    starts_B, cache = np.zeros(3, int), init_cache(TINY, 3, 20, jnp.float32)
    first, _ = feed(cache, starts_B, TEXTS, seed=1)
    second, _ = feed(cache, starts_B, TEXTS, seed=2)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_lies_in_unwritten_slots_changes_nothing():
    empty = init_cache(TINY, 3, 20, jnp.float32)
    full = jax.tree.map(lambda x: x + 1e4, empty)
    first, _ = feed(empty, np.zeros(3, int), TEXTS)
    second, _ = feed(full, np.zeros(3, int), TEXTS)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)


def test_pads_past_the_last_slot_are_dropped():
    # 13 slots for 16 columns: a clamped write would move back over the last tokens.
    got, padded = feed(init_cache(TINY, 3, 13, jnp.float32), np.zeros(3, int), TEXTS, width=16)
    _, exact = feed(init_cache(TINY, 3, 20, jnp.float32), np.zeros(3, int), TEXTS)
    for row, text in enumerate(TEXTS):
        assert relative_error(got[row], alone(text)) < TOLERANCE
        for ours, theirs in zip(jax.tree.leaves(padded), jax.tree.leaves(exact), strict=True):
            ours_HTK, theirs_HTK = (
                np.asarray(x).reshape(3, TINY.n_head, *x.shape[1:])[row, :, : len(text)] for x in (ours, theirs)
            )
            assert relative_error(ours_HTK, theirs_HTK) < TOLERANCE


def test_pads_past_the_last_position_are_harmless():
    # More slots than positions, so that what such a pad writes stays: were it NaN, 0 · NaN would spoil the row.
    texts = [draw_tokens(TINY.n_positions, seed=5), draw_tokens(44, seed=6)]
    _, cache = feed(init_cache(TINY, 2, 64, jnp.float32), [0, 0], [text[:41] for text in texts])
    got, _ = feed(cache, [41, 41], [text[41:] for text in texts], width=16)  # columns stand at positions 41..56 of 48
    for row, text in enumerate(texts):
        assert relative_error(got[row], alone(text)[41:]) < TOLERANCE


def test_taking_tokens_back_is_a_smaller_length():
    other = [draw_tokens(3, seed=20 + row) for row in range(3)]
    _, cache = feed_in_turn(TEXTS, [(9, 4, 13)], slots=20)
    kept_B = LENGTHS - np.array([2, 0, 5])
    got, _ = feed(cache, kept_B, other)
    for row, text in enumerate(TEXTS):
        expected = alone(np.concatenate([text[: kept_B[row]], other[row]]))[kept_B[row] :]
        assert relative_error(got[row], expected) < TOLERANCE


def test_init_cache_is_zeros_of_the_shape_the_products_read():
    cache = init_cache(ODD, 5, 7, jnp.bfloat16)
    assert cache.num_slots == 7
    assert len(cache.layers) == ODD.n_layer
    for leaf in jax.tree.leaves(cache):
        assert (leaf.shape, leaf.dtype) == ((5 * 3, 7, 10), jnp.bfloat16)
        assert not leaf.any()


# The two-part cache.


@pytest.mark.parametrize(("candidates", "sizes"), [(1, (4,)), (3, (1, 1, 1, 1)), (3, (2, 2)), (3, (4,))])
def test_candidates_on_a_shared_prefix_equal_whole_texts(candidates, sizes):
    prefix, replies_BNT, reply_cache = _begin(candidates)
    before = jax.tree.map(np.asarray, prefix)
    got, reply_cache = _continue(reply_cache, replies_BNT, sizes)
    for leaf, old in zip(jax.tree.leaves(reply_cache.prefix), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(leaf, old)  # read, never written
    for row, text in enumerate(TEXTS):
        for n in range(candidates):
            expected = alone(np.concatenate([text, replies_BNT[row, n]]))[len(text) :]
            assert relative_error(got[row * candidates + n], expected) < TOLERANCE


def test_pads_of_a_reply_are_dropped():
    _, replies_BNT, reply_cache = _begin(2)
    got, _ = _continue(reply_cache, replies_BNT, (4,), width=8)  # the reply has 5 slots
    expected = alone(np.concatenate([TEXTS[1], replies_BNT[1, 1]]))[4:]
    assert relative_error(got[3], expected) < TOLERANCE


def test_a_kept_reply_continues_as_an_ordinary_cache():
    _, replies_BNT, reply_cache = _begin(3)
    _, reply_cache = _continue(reply_cache, replies_BNT, (1, 1, 1, 1))
    chosen_B = np.array([2, 0, 1], np.int32)
    cache = keep_reply(reply_cache, TINY, jnp.asarray(chosen_B))
    assert isinstance(cache, KVCache)
    after = [draw_tokens(2, seed=40 + row) for row in range(3)]
    got, _ = feed(cache, LENGTHS + 4, after)
    for row, text in enumerate(TEXTS):
        expected = alone(np.concatenate([text, replies_BNT[row, chosen_B[row]], after[row]]))[-2:]
        assert relative_error(got[row], expected) < TOLERANCE


def test_a_kept_reply_that_passes_the_last_slot_loses_its_end_only():
    _, replies_BNT, reply_cache = _begin(2, slots=14)  # row 2: 13 tokens and a reply of 4
    _, reply_cache = _continue(reply_cache, replies_BNT, (4,))
    kept = keep_reply(reply_cache, TINY, jnp.zeros(3, jnp.int32))
    heads = TINY.n_head
    for new, old in zip(jax.tree.leaves(kept), jax.tree.leaves(reply_cache.prefix), strict=True):
        np.testing.assert_array_equal(new[2 * heads :, :13], old[2 * heads :, :13])
    for new, reply in zip(jax.tree.leaves(kept), jax.tree.leaves(reply_cache.reply), strict=True):
        first_HRK = np.asarray(reply).reshape(3, heads, 2, 5, -1)[2, :, 0]
        np.testing.assert_array_equal(new[2 * heads :, 13], first_HRK[:, 0])


def _begin(candidates, slots=20) -> Any:
    """A prefilled prefix with pads in it, replies of 4 tokens, and a two-part cache of 5 reply slots."""
    _, prefix = feed(init_cache(TINY, 3, slots, jnp.float32), np.zeros(3, int), TEXTS)
    replies_BNT = draw_tokens(3, candidates, 4, seed=30)
    return prefix, replies_BNT, init_reply(TINY, prefix, jnp.asarray(LENGTHS, jnp.int32), candidates, 5)


def _continue(cache, replies_BNT, sizes, width=0):
    rows = replies_BNT.reshape(-1, replies_BNT.shape[-1])
    starts, done, out = np.repeat(LENGTHS, replies_BNT.shape[1]), 0, []
    for size in sizes:
        logits, cache = feed(cache, starts + done, list(rows[:, done : done + size]), width=width)
        out.append(logits)
        done += size
    return [np.concatenate(parts) for parts in zip(*out, strict=True)], cache


# `write` itself, on both of its ways.


def write_by_hand(old_GSK, new_GTK, slots_GT):
    out = old_GSK.copy()
    for g, slots_T in enumerate(slots_GT):
        for t, slot in enumerate(slots_T):
            if slot < out.shape[1]:
                out[g, slot] = new_GTK[g, t]
    return out


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_one_number_is_the_first_position_of_every_row(dtype):
    tokens_BT, chunk_BT = (draw_tokens(3, width, seed=width) for width in (5, 4))
    cache = init_cache(TINY, 3, 12, dtype)
    _, cache = run(PARAMS, tokens_BT, jnp.int32(0), cache)
    found_BTV, found = run(PARAMS, chunk_BT, jnp.int32(5), cache)
    apart = init_cache(TINY, 3, 12, dtype)
    _, apart = run(PARAMS, tokens_BT, np.tile(np.arange(5, dtype=np.int32), (3, 1)), apart)
    each_BTV, each = run(PARAMS, chunk_BT, np.tile(np.arange(5, 9, dtype=np.int32), (3, 1)), apart)
    np.testing.assert_array_equal(found_BTV, each_BTV)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(each), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.asarray(a)[:, :9].astype(np.float32).any(axis=-1).all()
        assert not np.asarray(a)[:, 9:].astype(np.float32).any()
    text = run.lower(PARAMS, tokens_BT, jnp.int32(0), init_cache(TINY, 3, 5, dtype)).compile().as_text()
    assert "scatter" not in text  # a prompt that fills its cache is the cache


@pytest.mark.parametrize("way", ["_scatter", "_select"])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_write_puts_each_token_in_its_slot(way, length):
    random = np.random.default_rng(length)
    old_GSK, new_GTK = random.normal(size=(6, 7, 2)), random.normal(size=(6, length, 2))
    slots_GT = np.array([0, 2, 5, 6, 7, 30])[:, None] + np.arange(length)[None]  # inside, over the end, and beyond
    arrays = jnp.asarray(old_GSK, jnp.float32), jnp.asarray(new_GTK, jnp.float32), jnp.asarray(slots_GT, jnp.int32)
    got = jax.jit(getattr(caches, way))(*arrays)
    np.testing.assert_array_equal(got, write_by_hand(*map(np.asarray, arrays)))


def test_each_platform_gets_its_way_of_writing():
    cache = init_cache(TINY, 2, 8, jnp.float32)
    new_GTK, slots_GT = jnp.zeros((8, 1, 8)), jnp.zeros((8, 1), jnp.int32)
    traced = jax.jit(caches.write).trace(cache.layers[0], new_GTK, new_GTK, slots_GT)
    has_scatter = {
        platform: "scatter" in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert has_scatter == {"cpu": True, "cuda": True, "tpu": False}
