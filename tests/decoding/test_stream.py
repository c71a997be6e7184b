"""A stream gives what the compiled loop gives, and the cache it leaves is the one that a fresh prefill makes.

Letters: B rows, T prompt tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counter import count_compilations
from decoding.tiny import CONFIG, KEYS, LENGTHS, PARAMS, TOKENS, prompts

from dialogpt_jax.decoding.generate import generate, prefill, seen_tokens
from dialogpt_jax.decoding.logits import GREEDY, Sampling, as_arrays, top_k_bucket
from dialogpt_jax.decoding.stream import empty_cache, keep, start, step

# float32 logits about 4 wide: sums over other numbers of slots round differently.
TOLERANCE = 2e-5

FULL = Sampling(temperature=0.9, top_k=20, top_p=0.95, repetition_penalty=1.3, penalize_context=True, min_new_tokens=3)
STEPS, SLOTS = 12, 16
CUT = np.array([5, 1, 9, 1])  # tokens that a first part holds of each prompt


def put(texts, width):
    tokens_BT = np.full((len(texts), width), 2, np.int32)
    for row, text in enumerate(texts):
        tokens_BT[row, : len(text)] = text
    return jnp.asarray(tokens_BT), jnp.asarray([len(text) for text in texts], jnp.int32)


@jax.jit
def extend(tokens_BT, lengths_B, cache, starts_B):
    return prefill(PARAMS, CONFIG, tokens_BT, lengths_B, cache, starts_B)


def begin_stream(sampling, *, parts=1):
    """A prefilled prompt, in one call or in two, and the state after the first token."""
    texts, starts_B = prompts(), np.zeros(4, np.int32)
    seen_BV = None
    if sampling.penalize_context:
        seen_BV = seen_tokens(*put(texts, 12), CONFIG.padded_vocab_size)
    cache = empty_cache(CONFIG, 4, CONFIG.n_positions, jnp.float32)
    if parts == 2:
        starts_B = np.minimum(CUT, LENGTHS - 1).astype(np.int32)
        first = [text[:n] or [0] for text, n in zip(texts, starts_B, strict=True)]  # a row of 0 is written over
        _, cache = extend(*put(first, 12), cache, jnp.zeros(4, jnp.int32))
        texts = [text[n:] for text, n in zip(texts, starts_B, strict=True)]
    return start(
        PARAMS,
        CONFIG,
        *put(texts, 12),
        jnp.asarray(starts_B),
        cache,
        jnp.full(4, STEPS, jnp.int32),
        KEYS,
        as_arrays(sampling),
        seen_BV,
        slots=SLOTS,
        bucket=top_k_bucket(sampling, CONFIG.vocab_size),
    )


def stream_to_the_end(prefix, state, sampling):
    """The final state, and what each row held after each step."""
    seen = []
    bucket = top_k_bucket(sampling, CONFIG.vocab_size)
    lengths_B = jnp.asarray(LENGTHS, jnp.int32)
    for _ in range(STEPS - 1):
        seen.append((np.asarray(state.tokens_MR), np.asarray(state.counts_M)))
        state = step(PARAMS, CONFIG, prefix, lengths_B, state, KEYS, as_arrays(sampling), bucket=bucket)
    return state, seen


@pytest.mark.parametrize("sampling", [GREEDY, FULL], ids=["greedy", "full"])
def test_a_stream_is_generate_token_by_token(sampling):
    out = generate(PARAMS, CONFIG, TOKENS, LENGTHS, sampling=sampling, max_new_tokens=STEPS, keys=KEYS)
    out = jax.device_get(out)
    state, seen = stream_to_the_end(*begin_stream(sampling), sampling)
    for steps, (tokens_BR, counts_B) in enumerate(seen):
        np.testing.assert_array_equal(counts_B, np.minimum(out.lengths, steps + 1))
        for row, count in enumerate(counts_B):
            np.testing.assert_array_equal(tokens_BR[row, :count], out.tokens[row, :count])
    np.testing.assert_array_equal(state.tokens_MR[:, :STEPS], out.tokens)
    np.testing.assert_array_equal(state.counts_M, out.lengths)
    np.testing.assert_array_equal(state.finished_M, out.finished)
    np.testing.assert_allclose(state.logprobs_MR[:, :STEPS], out.logprobs, atol=TOLERANCE)


def test_a_prompt_in_two_parts_is_the_prompt_in_one():
    in_one, _ = stream_to_the_end(*begin_stream(FULL), FULL)
    in_two, _ = stream_to_the_end(*begin_stream(FULL, parts=2), FULL)
    np.testing.assert_array_equal(in_one.tokens_MR, in_two.tokens_MR)
    np.testing.assert_allclose(in_one.logprobs_MR, in_two.logprobs_MR, atol=TOLERANCE)


def test_a_kept_reply_continues_as_a_fresh_prefill():
    prefix, state = begin_stream(FULL)
    state, _ = stream_to_the_end(prefix, state, FULL)
    counts_B = np.asarray(state.counts_M)
    replies = [np.asarray(state.tokens_MR)[row, : counts_B[row]].tolist() for row in range(4)]
    lengths_B = jnp.asarray(LENGTHS, jnp.int32)
    cache = keep(CONFIG, prefix, lengths_B, state.cache)
    # The last token drawn is not in the cache yet: the next chunk begins with it.
    new = [[reply[-1], *turn] for reply, turn in zip(replies, ([4, 5], [6], [7, 8, 9], [11]), strict=True)]
    starts_B = jnp.asarray(LENGTHS + counts_B - 1, jnp.int32)
    kept_BV, _ = extend(*put(new, 12), cache, starts_B)
    whole = [prompt + reply[:-1] + turn for prompt, reply, turn in zip(prompts(), replies, new, strict=True)]
    fresh = empty_cache(CONFIG, 4, CONFIG.n_positions, jnp.float32)
    fresh_BV, _ = extend(*put(whole, 40), fresh, jnp.zeros(4, jnp.int32))
    np.testing.assert_allclose(kept_BV[:, :61], fresh_BV[:, :61], atol=TOLERANCE)
    assert len(set(counts_B.tolist())) > 1  # rows whose replies differ in length


def test_what_is_given_away_is_gone():
    cache = empty_cache(CONFIG, 4, CONFIG.n_positions, jnp.float32)
    texts = put(prompts(), 12)
    limits_B, starts_B = jnp.full(4, STEPS, jnp.int32), jnp.zeros(4, jnp.int32)
    prefix, state = start(
        PARAMS,
        CONFIG,
        *texts,
        starts_B,
        cache,
        limits_B,
        KEYS,
        as_arrays(GREEDY),
        None,
        slots=SLOTS,
        bucket=None,
    )
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
    lengths_B = jnp.asarray(LENGTHS, jnp.int32)
    after = step(PARAMS, CONFIG, prefix, lengths_B, state, KEYS, as_arrays(GREEDY), bucket=None)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.cache))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(prefix))  # read again at each step
    kept = keep(CONFIG, prefix, lengths_B, after.cache)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(prefix))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((kept, after.cache)))


def test_another_stream_compiles_nothing():
    stream_to_the_end(*begin_stream(FULL), FULL)
    other = FULL.replace(temperature=2, top_k=40, top_p=0.5)
    with count_compilations() as programs:
        stream_to_the_end(*begin_stream(other), other)
    assert programs == []


def test_an_empty_cache_compiles_nothing():
    with count_compilations() as programs:
        cache = empty_cache(CONFIG, 3, 77, jnp.bfloat16)
    assert programs == []
    assert cache.layers[0][0].shape == (3 * CONFIG.n_head, 77, CONFIG.head_dim)
    assert not any(leaf.any() for leaf in jax.tree.leaves(cache))
