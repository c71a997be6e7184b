"""`generate` on a small GPT-2, against the same model without a cache, batch or compiled loop.

Letters: B rows, N candidates of a row, M = B·N, T prompt tokens, R reply slots, V vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counter import count_compilations
from decoding.tiny import CONFIG, KEYS, LENGTHS, PARAMS, TOKENS, next_logits, prompts
from scipy.special import log_softmax

from dialogpt_jax.decoding.generate import generate, generate_candidates
from dialogpt_jax.decoding.logits import by_row, choose, top_k_bucket
from dialogpt_jax.decoding.processors import NO_TOKEN, ReplyState, TokenLists
from dialogpt_jax.decoding.request import bucket_of
from dialogpt_jax.decoding.sampling import GREEDY, Sampling

# float32 log-probabilities of logits about 1 wide: sums over other numbers of slots round differently.
TOLERANCE = 2e-5

FULL = Sampling(
    temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.3, penalty_scope="context", min_new_tokens=3
)
NUCLEUS = Sampling(temperature=1.1, top_p=0.9, repetition_penalty=1.2)
SAMPLINGS = {"greedy": GREEDY, "plain": Sampling(), "nucleus": NUCLEUS, "full": FULL}
STEPS = 14


def run(rows=slice(None), sampling=GREEDY, tokens=TOKENS, max_new_tokens=STEPS, keys=KEYS, params=PARAMS, **more):
    """`generate` (or its candidates) for some of the rows, on the host."""
    call = functools.partial(generate_candidates, **more) if more else generate
    out = call(
        params,
        CONFIG,
        tokens[rows],
        LENGTHS[rows],
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        keys=keys[rows],
    )
    return jax.device_get(out)


def assert_same(one, other):
    for name in ("tokens", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE)


# The GPT-2, against a loop in Python that runs the whole text through the model for each token.


def by_hand(row, sampling, steps=STEPS, candidate=0):
    """A reply and its log-probabilities: no cache, no batch, no shared prefix, no compiled loop."""
    prompt, key = prompts()[row], jax.random.fold_in(KEYS[row], candidate)
    reply, logprobs = [], []
    bucket = top_k_bucket(sampling, CONFIG.vocab_size)
    while len(reply) < min(steps, CONFIG.n_positions - len(prompt)):
        logits_V = next_logits(prompt + reply)
        uniform = jax.random.uniform(jax.random.fold_in(key, len(reply)))
        drawn, _ = choose_jitted(
            logits_V[None],
            uniform[None],
            state_by_hand(prompt, reply),
            sampling=by_row(sampling, 1),
            bucket=bucket,
        )
        reply.append(int(drawn[0]))
        logprobs.append(float(log_softmax(logits_V.astype(np.float64))[reply[-1]]))
        if reply[-1] == CONFIG.eos_token_id:
            break
    return reply, logprobs


def state_by_hand(prompt, reply):
    """What processors see, put down without the package's own ways to do so."""
    slots, context = np.full((1, 48), 7), np.full((1, 48), NO_TOKEN)
    slots[0, : len(reply)] = reply
    context[0, 48 - len(prompt) :] = prompt
    count, limit = np.array([len(reply)]), np.array([99])
    return ReplyState(slots, count, limit, {"context": context}, TokenLists(), eos=CONFIG.eos_token_id)


choose_jitted = jax.jit(choose, static_argnames="bucket")


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_batch_gives_each_row_what_it_gets_by_hand(name):
    out = run(sampling=SAMPLINGS[name])
    assert out.tokens.shape == out.logprobs.shape == (4, STEPS)
    assert (out.tokens.dtype, out.lengths.dtype, out.finished.dtype, out.logprobs.dtype) == (
        np.int32,
        np.int32,
        bool,
        np.float32,
    )
    for row in range(4):
        reply, logprobs = by_hand(row, SAMPLINGS[name])
        count = len(reply)
        assert out.tokens[row].tolist() == reply + [CONFIG.eos_token_id] * (STEPS - count)
        assert out.lengths[row] == count
        assert bool(out.finished[row]) == (reply[-1] == CONFIG.eos_token_id)
        np.testing.assert_allclose(out.logprobs[row, :count], logprobs, atol=TOLERANCE)
        assert (out.logprobs[row, count:] == 0).all()
    if name == "greedy":  # that some end and some are cut, at different steps
        assert len(set(out.lengths.tolist())) >= 3
        assert set(out.finished.tolist()) == {True, False}
    assert (out.lengths >= (3 if name == "full" else 1)).all()


def test_a_row_alone_is_the_row_in_a_batch():
    batch = run(sampling=FULL)
    for row in range(4):
        alone = run(rows=slice(row, row + 1), sampling=FULL)
        assert_same(alone, jax.tree.map(lambda x, row=row: x[row : row + 1], batch))


def test_numbers_per_row_are_the_row_s_own():
    temperatures, ks = np.array([0.5, 1.0, 2.0, 1.5]), np.array([3, 5, 12, 1])
    batch = run(sampling=Sampling(temperature=temperatures, top_k=ks), candidates=2)
    for row in range(4):
        for n in range(2):
            reply, _ = by_hand(row, Sampling(temperature=float(temperatures[row]), top_k=int(ks[row])), candidate=n)
            assert batch.tokens[row, n, : batch.lengths[row, n]].tolist() == reply


def test_pads_of_any_content_change_nothing():
    first = run(sampling=FULL)
    pad_BT = np.arange(12)[None] >= LENGTHS[:, None]
    for pad in (0, CONFIG.eos_token_id, -1, 10**9):
        assert_same(run(sampling=FULL, tokens=np.where(pad_BT, pad, TOKENS)), first)


def test_wider_padding_changes_nothing():
    first = run(sampling=FULL)
    for width in (16, 33, 500):  # its bucket, the next, and more than the model has positions
        wide = np.pad(TOKENS, ((0, 0), (0, width - 12)), constant_values=7)
        assert_same(run(sampling=FULL, tokens=wide), first)


def test_only_a_generated_eos_ends_a_row():
    full_of_ends = np.full_like(TOKENS, CONFIG.eos_token_id)
    out = run(tokens=full_of_ends, sampling=Sampling(min_new_tokens=5))
    assert (out.lengths >= 5).all()
    for row in range(4):
        ends = np.flatnonzero(out.tokens[row, : out.lengths[row]] == CONFIG.eos_token_id)
        assert ends.tolist() == ([out.lengths[row] - 1] if out.finished[row] else [])


@pytest.mark.parametrize("minimum", [0, 1, 6, STEPS + 5])
def test_a_reply_has_its_minimum(minimum):
    sampling = Sampling(temperature=0.0 if minimum == 1 else 1.0, min_new_tokens=minimum)
    out = run(sampling=sampling, max_new_tokens=STEPS)
    # A reply of `minimum` tokens and its EOS, or one that was cut.
    assert (out.lengths >= min(minimum + 1, STEPS)).all() if minimum else (out.lengths >= 1).all()


def test_a_cut_reply_is_the_start_of_the_longer_one():
    long = run(sampling=NUCLEUS)
    short = run(sampling=NUCLEUS, max_new_tokens=4)
    assert short.tokens.shape == (4, 4)
    np.testing.assert_array_equal(short.tokens, long.tokens[:, :4])
    np.testing.assert_array_equal(short.lengths, np.minimum(long.lengths, 4))
    np.testing.assert_array_equal(short.finished, long.finished & (long.lengths <= 4))
    assert (~short.finished).any()
    np.testing.assert_allclose(short.logprobs, long.logprobs[:, :4], atol=TOLERANCE)


def test_rows_stop_at_the_last_position():
    most = CONFIG.n_positions
    tokens = np.random.default_rng(8).integers(0, CONFIG.vocab_size, (4, most + 3))
    lengths = np.array([most - 1, most, most - 5, 2])
    out = jax.device_get(
        generate(
            PARAMS,
            CONFIG,
            tokens,
            lengths,
            sampling=Sampling(temperature=0, min_new_tokens=100),
            max_new_tokens=60,
            keys=KEYS,
        )
    )
    assert out.tokens.shape == out.logprobs.shape == (4, 60)  # whatever the model's positions
    assert out.lengths.tolist() == [1, 0, 5, most - 2]
    assert not out.finished.any()
    for row, length in enumerate(lengths):
        count = out.lengths[row]
        assert (out.tokens[row, count:] == CONFIG.eos_token_id).all()
        assert (out.logprobs[row, count:] == 0).all()
        assert np.isfinite(out.logprobs).all()
        text = tokens[row, :length].tolist() + out.tokens[row, :count].tolist()
        for i in range(length, len(text)):
            logits_V = next_logits(text[:i])
            logits_V[CONFIG.eos_token_id] = -np.inf
            assert text[i] == logits_V.argmax()


def test_candidates_are_separate_replies_on_one_prefix():
    candidates = run(sampling=FULL, candidates=3)
    assert candidates.tokens.shape == (4, 3, STEPS)
    assert candidates.lengths.shape == candidates.finished.shape == (4, 3)
    assert_same(jax.tree.map(lambda x: x[:, 0], candidates), run(sampling=FULL))
    assert len({tuple(reply) for reply in candidates.tokens.reshape(12, -1).tolist()}) == 12
    for row in range(4):
        for n in (1, 2):
            reply, _ = by_hand(row, FULL, candidate=n)
            assert candidates.tokens[row, n, : candidates.lengths[row, n]].tolist() == reply


def test_half_precision_runs():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    out = run(sampling=FULL, params=params)
    assert np.isfinite(out.logprobs).all()
    assert out.logprobs.dtype == np.float32
    assert ((out.lengths >= 3) & (out.lengths <= STEPS)).all()
    for row, prompt in enumerate(prompts()):  # the first token's, by the float32 model
        expected = log_softmax(next_logits(prompt).astype(np.float64))[out.tokens[row, 0]]
        assert abs(out.logprobs[row, 0] - expected) < 0.15


# Compilations.


def test_other_numbers_compile_nothing():
    run(sampling=FULL)
    per_row = {"temperature": np.array([0.5, 1, 2, 3]), "top_k": np.array([2, 9, 8, 7])}
    run(sampling=Sampling(**per_row))
    others = [
        {
            "sampling": dataclasses.replace(
                FULL, temperature=2, top_k=17, top_p=1, min_p=0, repetition_penalty=1, min_new_tokens=0
            )
        },
        {"sampling": dataclasses.replace(FULL, temperature=np.float32(0.3), top_k=60.0)},
        {"sampling": FULL, "max_new_tokens": 16},
        {"sampling": FULL, "max_new_tokens": 1},
        {"sampling": FULL, "tokens": TOKENS[:, ::-1].copy()},
        {"sampling": FULL, "tokens": np.pad(TOKENS, ((0, 0), (0, 4)))},
        {"sampling": FULL, "tokens": TOKENS.astype(np.int16).tolist()},
        {"sampling": FULL, "keys": KEYS[::-1]},
        {"sampling": Sampling(temperature=np.array([1, 2, 1, 2]), top_k=np.array([1.0, 2.0, 3.0, 4.0]))},
    ]
    KEYS[::-1]  # its own slicing is a program
    for other in others:
        keys = other.pop("keys", KEYS)
        with count_compilations() as programs:
            generate(
                PARAMS,
                CONFIG,
                other.pop("tokens", TOKENS),
                LENGTHS[::-1],
                sampling=other["sampling"],
                max_new_tokens=other.get("max_new_tokens", STEPS),
                keys=keys,
            )
        assert programs == [], other


def test_the_counter_counts():
    with count_compilations() as programs:
        jax.jit(lambda x: x * 3 + 1)(np.float32(1))
    assert len(programs) == 1


@pytest.mark.parametrize(
    ("size", "most", "bucket"),
    [(1, None, 16), (16, None, 16), (17, None, 32), (33, 48, 48), (64, None, 64), (65, 1024, 128), (0, None, 16)],
)
def test_buckets_are_powers_of_two(size, most, bucket):
    assert bucket_of(size, most) == bucket
