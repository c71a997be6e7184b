"""The loop: on toy Markov chains with a known best path, then on a small GPT-2 against the same model without a cache.

Letters: B rows, N candidates of a row, M = B·N, T prompt tokens, R reply slots, V vocabulary.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counter import count_compilations
from decoding.tiny import CONFIG, KEYS, LENGTHS, PARAMS, TOKENS, next_logits, prompts
from scipy.special import log_softmax
from scipy.stats import chi2

from dialogpt_jax.chat.settings import row_keys
from dialogpt_jax.decoding.generate import bucket_of, generate, generate_candidates, seen_tokens
from dialogpt_jax.decoding.logits import GREEDY, Sampling, as_arrays, choose, top_k_bucket
from dialogpt_jax.decoding.loop import advance, begin, decode

# float32 log-probabilities of logits about 1 wide: sums over other numbers of slots round differently.
TOLERANCE = 2e-5

FULL = Sampling(
    temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.3, penalize_context=True, min_new_tokens=3
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


# Toy chains: no model. The cache keeps a diary of what each step fed.

END = 5
BEST = np.array([1, 2, 3, END, 4, END])  # the best token after each; 4 goes on for ever


def chain_logits(tokens_M):
    return 5.0 * jax.nn.one_hot(jnp.asarray(BEST)[tokens_M], 6)


def chain_step(tokens_M, positions_M, diary):
    steps = diary["steps"]
    diary = {
        "steps": steps + 1,
        "tokens": diary["tokens"].at[steps].set(tokens_M),
        "positions": diary["positions"].at[steps].set(positions_M),
    }
    return chain_logits(tokens_M), diary


def blank_diary(rows):
    return {"steps": jnp.int32(0), **{k: jnp.full((30, rows), -1, jnp.int32) for k in ("tokens", "positions")}}


def chain_begin(starts, limits, *, slots=16, sampling=GREEDY, keys=None, logits=chain_logits):
    """States of replies that continue the tokens `starts`, and how to go on."""
    rows = len(starts)
    keys = jax.random.split(jax.random.key(0), rows) if keys is None else keys
    how = {"sampling": as_arrays(sampling), "bucket": None, "eos": END}
    limits_M = jnp.asarray(limits, jnp.int32)
    return begin(logits(jnp.asarray(starts)), limits_M, keys, blank_diary(rows), slots=slots, **how), keys, how


PROMPT_LENGTHS = np.array([7, 1, 3, 9, 2])


def test_each_row_takes_its_best_path_to_its_own_end():
    state, keys, how = chain_begin([0, 2, 4, 1, 3], [16] * 4 + [1])
    state = jax.jit(lambda state: decode(chain_step, state, PROMPT_LENGTHS, keys, **how))(state)
    e = END
    expected = [[1, 2, 3, e], [3, e], [4] * 16, [2, 3, e]]
    for row, path in enumerate(expected):
        assert state.tokens_MR[row].tolist() == path + [e] * (16 - len(path))
    # min_new_tokens is 1: the last row may not end at once, so it takes the first of the others, and is cut.
    assert state.tokens_MR[4].tolist() == [0] + [e] * 15
    assert state.counts_M.tolist() == [4, 2, 16, 3, 1]
    assert state.finished_M.tolist() == [True, True, False, True, False]
    usual = 5 - np.log(np.exp(5) + 5)
    np.testing.assert_allclose(state.logprobs_MR[0], [usual] * 4 + [0] * 12, atol=TOLERANCE)
    np.testing.assert_allclose(state.logprobs_MR[4, 0], -np.log(np.exp(5) + 5), atol=TOLERANCE)
    assert int(state.cache["steps"]) == 15  # the first of 16 tokens comes from the prefill


@pytest.mark.parametrize("limits", [[3, 5, 2, 4, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
def test_the_loop_stops_when_all_are_done(limits):
    state, keys, how = chain_begin([4] * 5, limits)  # a chain that never ends by itself
    state = jax.jit(lambda state: decode(chain_step, state, PROMPT_LENGTHS, keys, **how))(state)
    assert state.counts_M.tolist() == limits
    assert not state.finished_M.any()
    assert int(state.cache["steps"]) == max(max(limits) - 1, 0)
    for row, limit in enumerate(limits):
        assert state.tokens_MR[row].tolist() == [4] * limit + [END] * (16 - limit)


def test_it_stops_when_all_have_ended_by_themselves():
    state, keys, how = chain_begin([0, 2], [16, 16])
    state = jax.jit(lambda state: decode(chain_step, state, np.array([3, 4]), keys, **how))(state)
    assert int(state.cache["steps"]) == 3  # 1 2 3 END: the first of the four is the prefill's


def test_a_limit_over_the_slots_is_the_slots():
    state, keys, how = chain_begin([4, 0], [99, 99], slots=4)
    state = jax.jit(lambda state: decode(chain_step, state, np.array([3, 4]), keys, **how))(state)
    assert state.counts_M.tolist() == [4, 4]


def test_each_step_feeds_the_last_token_at_its_position():
    state, keys, how = chain_begin([0, 2, 4, 1, 3], [16, 16, 6, 16, 1])
    state = jax.jit(lambda state: decode(chain_step, state, PROMPT_LENGTHS, keys, **how))(state)
    steps, counts_M = int(state.cache["steps"]), state.counts_M
    for row in range(5):
        last = int(counts_M[row]) - 1  # a row that is done feeds its last token again, to the same place
        fed = [min(step, last) for step in range(steps)]
        assert state.cache["positions"][:steps, row].tolist() == [PROMPT_LENGTHS[row] + i for i in fed]
        assert state.cache["tokens"][:steps, row].tolist() == [int(state.tokens_MR[row, i]) for i in fed]


def test_a_row_that_is_done_stands_still():
    sampling = Sampling(repetition_penalty=1.0)
    state, keys, how = chain_begin([0, 2, 4, 1, 3], [16, 16, 3, 16, 1], sampling=sampling)
    step = jax.jit(lambda state: advance(chain_step, state, PROMPT_LENGTHS, keys, **how))

    def shown(state, row):
        names = ("tokens_MR", "logprobs_MR", "counts_M", "finished_M", "last_M", "seen_MV")
        return {name: np.asarray(getattr(state, name)[row]).tolist() for name in names}

    stood = 0
    for _ in range(12):
        after = step(state)
        for row in np.flatnonzero(state.done_M):
            assert shown(after, row) == shown(state, row)
            stood += 1
        for row in np.flatnonzero(~state.done_M):
            assert int(after.counts_M[row]) == int(state.counts_M[row]) + 1
        state = after
    assert stood > 20


def test_seen_tokens_are_those_of_the_reply():
    state, keys, how = chain_begin([0, 4], [3, 3], sampling=Sampling(temperature=0, repetition_penalty=1.0))
    state = jax.jit(lambda state: decode(chain_step, state, np.array([3, 4]), keys, **how))(state)
    assert [np.flatnonzero(row).tolist() for row in state.seen_MV] == [[1, 2, 3], [4]]


def test_a_context_s_seen_tokens_leave_its_pads_out():
    tokens_BT = jnp.array([[3, 1, 1, 0, 5], [2, 0, 4, 4, 1]])
    got_BV = seen_tokens(tokens_BT, jnp.array([3, 2]), 6)
    assert [np.flatnonzero(row).tolist() for row in got_BV] == [[1, 3], [0, 2]]


RANDOM_CHAIN = 1.5 * np.random.default_rng(5).standard_normal((6, 6)).astype(np.float32)
RANDOM_CHAIN[:, END] = -1.0


def random_chain(tokens_M):
    return jnp.asarray(RANDOM_CHAIN)[tokens_M]


def bits_of(counts, probs):
    expected = probs * counts.sum()
    return ((counts - expected) ** 2 / expected).sum() / chi2.isf(1e-5, counts.size - 1)


def test_steps_draw_independently():
    """Three tokens together follow the chain: one key for all steps, or a step that forgets its row, shows here."""
    rows = 20_000
    how_to_draw = Sampling(min_new_tokens=3)
    keys = jax.random.split(jax.random.key(2), rows)

    @jax.jit
    def draw_replies(keys):
        state, _, how = chain_begin([0] * rows, [3] * rows, sampling=how_to_draw, keys=keys, logits=random_chain)

        def step(tokens_M, _, diary):
            return random_chain(tokens_M), diary

        return decode(step, state, jnp.ones(rows, jnp.int32), keys, **how).tokens_MR[:, :3]

    tokens_M3 = np.asarray(draw_replies(keys))
    assert tokens_M3.max() < END
    counts = np.zeros((5, 5, 5))
    np.add.at(counts, tuple(tokens_M3.T), 1)
    table = np.exp(RANDOM_CHAIN[:, :5].astype(np.float64))
    table /= table.sum(axis=1, keepdims=True)
    probs = table[0][:, None, None] * table[:5, :, None] * table[None, :5]
    assert bits_of(counts, probs) < 1
    assert bits_of(counts, table[0][:, None, None] * table[0][None, :, None] * table[None, :5]) > 10


def test_a_draw_counts_the_reply_s_tokens_and_not_the_steps():
    """Rows that are at different places of their replies, as after a resumed stream, draw what they draw alone."""
    states, expected = [], []
    for row, taken in enumerate((1, 4, 2)):
        state, keys, how = chain_begin(
            [0], [12], sampling=Sampling(min_new_tokens=12), keys=KEYS[row : row + 1], logits=random_chain
        )
        advance_one = jax.jit(functools.partial(_advance_random, **{k: how[k] for k in ("bucket", "eos")}))
        state = state.replace(cache=None)
        for step in range(10):
            if step == taken:
                states.append(state)
            state = advance_one(state, keys, how["sampling"])
        expected.append(np.asarray(state.tokens_MR[0]))
    together = jax.tree.map(lambda *x: jnp.concatenate(x), *states)
    for _ in range(10):
        together = advance_one(together, KEYS[:3], how["sampling"])
    for row in range(3):
        np.testing.assert_array_equal(together.tokens_MR[row, :11], expected[row][:11])


def _advance_random(state, keys, sampling, *, bucket, eos):
    def step(tokens_M, _, cache):
        return random_chain(tokens_M), cache

    ones_M = jnp.ones_like(state.counts_M)
    return advance(step, state, ones_M, keys, sampling=sampling, bucket=bucket, eos=eos)


# The GPT-2, against a loop in Python that runs the whole text through the model for each token.


def by_hand(row, sampling, steps=STEPS, candidate=0):
    """A reply and its log-probabilities: no cache, no batch, no shared prefix, no compiled loop."""
    prompt, key = prompts()[row], jax.random.fold_in(KEYS[row], candidate)
    reply, logprobs = [], []
    bucket = top_k_bucket(sampling, CONFIG.vocab_size)
    while len(reply) < min(steps, CONFIG.n_positions - len(prompt)):
        logits_V = next_logits(prompt + reply)
        seen_V = np.zeros(CONFIG.vocab_size, bool)
        seen_V[reply + (prompt if sampling.penalize_context else [])] = True
        uniform = jax.random.uniform(jax.random.fold_in(key, len(reply)))
        drawn = choose_jitted(
            logits_V[None],
            uniform[None],
            np.array([len(reply)], np.int32),
            seen_V[None],
            sampling=as_arrays(sampling),
            bucket=bucket,
            eos=CONFIG.eos_token_id,
        )
        reply.append(int(drawn[0]))
        logprobs.append(float(log_softmax(logits_V.astype(np.float64))[reply[-1]]))
        if reply[-1] == CONFIG.eos_token_id:
            break
    return reply, logprobs


choose_jitted = jax.jit(choose, static_argnames=("bucket", "eos"))


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
        {"sampling": FULL.replace(temperature=2, top_k=17, top_p=1, min_p=0, repetition_penalty=1, min_new_tokens=0)},
        {"sampling": FULL.replace(temperature=np.float32(0.3), top_k=60.0)},
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


# Bad input.

GOOD = {"tokens": TOKENS, "lengths": LENGTHS, "max_new_tokens": 4, "keys": KEYS, "sampling": GREEDY, "candidates": 1}
LONG = np.zeros((4, 60), int)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": TOKENS[0]}, "shape (12,)"),
        ({"tokens": TOKENS[:0], "lengths": LENGTHS[:0]}, "(0, 12)"),
        ({"tokens": TOKENS[:, :0]}, "(4, 0)"),
        ({"tokens": TOKENS.astype(float)}, "float64"),
        ({"lengths": LENGTHS.astype(np.float32)}, "float32"),
        ({"lengths": LENGTHS[:3]}, "(3,)"),
        ({"lengths": LENGTHS - 1}, "from 0 to 11"),
        ({"lengths": LENGTHS + 1}, "from 2 to 13; each must be 1 to 12"),
        ({"tokens": LONG, "lengths": np.array([1, 49, 48, 2])}, "49 tokens; n_positions is 48"),
        ({"tokens": np.where(TOKENS[0, 0] == TOKENS, 61, TOKENS)}, "61 is outside the vocabulary of 61"),
        ({"tokens": np.where(TOKENS[0, 0] == TOKENS, -1, TOKENS)}, "-1 is outside"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": -2}, "-2"),
        ({"max_new_tokens": 2.5}, "2.5"),
        ({"max_new_tokens": True}, "True"),
        ({"max_new_tokens": "3"}, "'3'"),
        ({"candidates": 0}, "candidates is 0"),
        ({"candidates": 1.5}, "1.5"),
        ({"keys": KEYS[:3]}, "(3,)"),
        ({"keys": KEYS[0]}, "shape ()"),
        ({"keys": jax.random.PRNGKey(0)}, "uint32"),
        ({"keys": np.arange(4)}, "int64"),
        ({"keys": None}, "NoneType"),
        ({"sampling": Sampling(temperature=np.array([0.5, 1.0]))}, "temperature has the shape (2,)"),
        ({"sampling": Sampling(top_k=np.ones((4, 1)))}, "top_k has the shape (4, 1)"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line(change, said):
    given = {**GOOD, **change}
    tokens, lengths = given.pop("tokens"), given.pop("lengths")
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        generate_candidates(PARAMS, CONFIG, tokens, lengths, **given)
    assert "\n" not in str(caught.value)


# Whose key is whose.


def test_keys_differ_by_seed_place_turn_and_attempt():
    settings = [(seed, place, turn, attempt) for seed in (0, 1, 2**32, 2**63 - 1) for place in (0, 1, 2)
                for turn in (1, 2, 3) for attempt in (0, 1, 2)]  # fmt: skip
    data = [jax.random.key_data(row_keys(s, [p], [t], [a]))[0].tolist() for s, p, t, a in settings]
    assert len({tuple(words) for words in data}) == len(settings)


def test_a_row_s_key_is_the_same_alone_and_in_a_batch():
    batch = jax.random.key_data(row_keys(7, [5, 0, 9], [1, 2, 3]))
    for row, (place, turn) in enumerate([(5, 1), (0, 2), (9, 3)]):
        np.testing.assert_array_equal(batch[row], jax.random.key_data(row_keys(7, [place], [turn]))[0])
        np.testing.assert_array_equal(batch[row], jax.random.key_data(row_keys(7, [place], [turn], [0]))[0])
