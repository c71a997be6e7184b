"""A stream gives what the compiled loop gives, and the cache it leaves is the one that a fresh prefill makes.

Letters: B rows, T prompt tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counter import count_compilations
from decoding.tiny import CONFIG, KEYS, LENGTHS, PARAMS, TOKENS, prompts

from dialogpt_jax.decoding.generate import generate
from dialogpt_jax.decoding.prefill import prefill
from dialogpt_jax.decoding.request import assemble
from dialogpt_jax.decoding.sampling import GREEDY, Sampling
from dialogpt_jax.decoding.stream import empty_cache, keep, read, start, steps, with_slots

# float32 logits about 4 wide: sums over other numbers of slots round differently.
TOLERANCE = 2e-5

FULL = Sampling(
    temperature=0.9, top_k=20, top_p=0.95, repetition_penalty=1.3, penalty_scope="context", min_new_tokens=3
)
STEPS = 12
CUT = np.array([5, 1, 9, 1])  # tokens that a first part holds of each prompt


def put(texts, width):
    tokens_BT = np.full((len(texts), width), 2, np.int32)
    for row, text in enumerate(texts):
        tokens_BT[row, : len(text)] = text
    return jnp.asarray(tokens_BT), jnp.asarray([len(text) for text in texts], jnp.int32)


@jax.jit
def extend(tokens_BT, lengths_B, cache, starts_B):
    return prefill(PARAMS, CONFIG, tokens_BT, lengths_B, cache, starts_B)


def make_request(sampling, starts_B=None):
    how = {"sampling": sampling, "max_new_tokens": STEPS, "keys": KEYS}
    return assemble(CONFIG, TOKENS, LENGTHS, starts_B=starts_B, **how)


def begin_stream(sampling, *, parts=1):
    """The state after the first token; the prompt is prefilled in one call or in two."""
    starts_B = None
    cache = empty_cache(CONFIG, 4, CONFIG.n_positions, jnp.float32)
    if parts == 2:
        starts_B = np.minimum(CUT, LENGTHS - 1).astype(np.int32)
        first = [text[:n] or [0] for text, n in zip(prompts(), starts_B, strict=True)]  # a row of 0 is written over
        _, cache = extend(*put(first, 12), cache, jnp.zeros(4, jnp.int32))
    return start(PARAMS, CONFIG, make_request(sampling, starts_B), cache)[0]


def stream_to_the_end(state):
    """The final state, and what each row held after each step."""
    seen = []
    for _ in range(STEPS - 1):
        seen.append((np.asarray(state.tokens_MR), np.asarray(state.counts_M)))
        state, _ = steps(PARAMS, CONFIG, state, 1)
    return state, seen


@pytest.mark.parametrize("sampling", [GREEDY, FULL], ids=["greedy", "full"])
def test_a_stream_is_generate_token_by_token(sampling):
    out = generate(PARAMS, CONFIG, TOKENS, LENGTHS, sampling=sampling, max_new_tokens=STEPS, keys=KEYS)
    out = jax.device_get(out)
    state, seen = stream_to_the_end(begin_stream(sampling))
    for taken, (tokens_BR, counts_B) in enumerate(seen):
        np.testing.assert_array_equal(counts_B, np.minimum(out.lengths, taken + 1))
        for row, count in enumerate(counts_B):
            np.testing.assert_array_equal(tokens_BR[row, :count], out.tokens[row, :count])
    np.testing.assert_array_equal(state.tokens_MR[:, :STEPS], out.tokens)
    np.testing.assert_array_equal(state.counts_M, out.lengths)
    np.testing.assert_array_equal(state.finished_M, out.finished)
    np.testing.assert_allclose(state.logprobs_MR[:, :STEPS], out.logprobs, atol=TOLERANCE)


def test_steps_stop_where_they_are_told_and_where_all_is_said():
    """Calls of 3, then 2, then more than there are; what was said can be read when its state is gone."""
    out = jax.device_get(generate(PARAMS, CONFIG, TOKENS, LENGTHS, sampling=FULL, max_new_tokens=STEPS, keys=KEYS))
    state, said = start(PARAMS, CONFIG, make_request(FULL), empty_cache(CONFIG, 4, CONFIG.n_positions, jnp.float32))
    for most, upto in ((3, 4), (2, 6), (50, STEPS), (1, STEPS)):
        state, now = steps(PARAMS, CONFIG, state, most)
        assert len(read(said)[0]) == 4  # still there
        replies, finished, done = read(now)
        for row, reply in enumerate(replies):
            assert reply == out.tokens[row, : min(out.lengths[row], upto)].tolist()
        assert finished == [bool(f) and n <= upto for f, n in zip(out.finished, out.lengths, strict=True)]
        assert done == (out.lengths <= upto).all()
        said = now
    assert len(set(out.lengths.tolist())) > 1


def test_more_slots_change_nothing():
    cache = empty_cache(CONFIG, 4, CONFIG.n_positions // 2, jnp.float32)
    state, _ = start(PARAMS, CONFIG, make_request(FULL), cache)
    cache = with_slots(keep(CONFIG, state), slots=CONFIG.n_positions)
    assert cache.num_slots == CONFIG.n_positions
    starts_B = np.asarray(LENGTHS)
    texts = [[int(token)] for token in np.asarray(state.tokens_MR)[:, 0]]
    got_BV, _ = extend(*put(texts, 12), cache, jnp.asarray(starts_B, jnp.int32))
    whole = [prompt + text for prompt, text in zip(prompts(), texts, strict=True)]
    fresh = empty_cache(CONFIG, 4, CONFIG.n_positions, jnp.float32)
    fresh_BV, _ = extend(*put(whole, 40), fresh, jnp.zeros(4, jnp.int32))
    np.testing.assert_allclose(got_BV[:, :61], fresh_BV[:, :61], atol=TOLERANCE)


def test_a_prompt_in_two_parts_is_the_prompt_in_one():
    in_one, _ = stream_to_the_end(begin_stream(FULL))
    in_two, _ = stream_to_the_end(begin_stream(FULL, parts=2))
    np.testing.assert_array_equal(in_one.tokens_MR, in_two.tokens_MR)
    np.testing.assert_allclose(in_one.logprobs_MR, in_two.logprobs_MR, atol=TOLERANCE)


def test_a_kept_reply_continues_as_a_fresh_prefill():
    state, _ = stream_to_the_end(begin_stream(FULL))
    counts_B = np.asarray(state.counts_M)
    replies = [np.asarray(state.tokens_MR)[row, : counts_B[row]].tolist() for row in range(4)]
    cache = keep(CONFIG, state)
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
    cache, request = empty_cache(CONFIG, 4, CONFIG.n_positions, jnp.float32), make_request(GREEDY)
    state, said = start(PARAMS, CONFIG, request, cache)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
    after, _ = steps(PARAMS, CONFIG, state, 2)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, said, KEYS)))
    kept = keep(CONFIG, after)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(after.cache.prefix))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((kept, after.cache.reply)))


def test_another_stream_compiles_nothing():
    stream_to_the_end(begin_stream(FULL))
    other = dataclasses.replace(FULL, temperature=2, top_k=40, top_p=0.5)
    with count_compilations() as programs:
        stream_to_the_end(begin_stream(other))
    assert programs == []


def test_an_empty_cache_compiles_nothing():
    with count_compilations() as programs:
        cache = empty_cache(CONFIG, 3, 77, jnp.bfloat16)
    assert programs == []
    assert cache.layers[0][0].shape == (3 * CONFIG.n_head, 77, CONFIG.head_dim)
    assert not any(leaf.any() for leaf in jax.tree.leaves(cache))
