"""The loop on toy Markov chains with a known best path: no model.

Letters: M rows, T tokens of a step, R reply slots, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from dialogpt_jax.decoding.logits import by_row
from dialogpt_jax.decoding.loop import RowSettings, advance, begin, decode
from dialogpt_jax.decoding.sampling import GREEDY, Sampling
from dialogpt_jax.decoding.soundness import FORBIDDEN, NonFiniteLogits, check_logprobs

# float32 log-probabilities of logits about 1 wide: sums over other numbers of slots round differently.
TOLERANCE = 2e-5

# The cache keeps a diary of what each step fed.

END = 5
BEST = np.array([1, 2, 3, END, 4, END])  # the best token after each; 4 goes on for ever


def chain_logits(tokens_M):
    return 5.0 * jax.nn.one_hot(jnp.asarray(BEST)[tokens_M], 6)


def chain_step(tokens_MT, positions_MT, diary):
    assert tokens_MT.shape == positions_MT.shape == (diary["tokens"].shape[1], 1)
    steps = diary["steps"]
    diary = {
        "steps": steps + 1,
        "tokens": diary["tokens"].at[steps].set(tokens_MT[:, 0]),
        "positions": diary["positions"].at[steps].set(positions_MT[:, 0]),
    }
    return chain_logits(tokens_MT), diary


def blank_diary(rows):
    return {"steps": jnp.int32(0), **{k: jnp.full((30, rows), -1, jnp.int32) for k in ("tokens", "positions")}}


PROMPT_LENGTHS = np.array([7, 1, 3, 9, 2])


def chain_begin(starts, limits, *, slots=16, sampling=GREEDY, keys=None, logits=chain_logits, processors=()):
    """The state of replies that continue the tokens `starts`, each of a context of its own length."""
    rows = len(starts)
    settings = RowSettings(
        lengths_M=jnp.asarray(np.resize(PROMPT_LENGTHS, rows)),
        limits_M=jnp.asarray(limits, jnp.int32),
        keys_M=jax.random.split(jax.random.key(0), rows) if keys is None else keys,
        sampling=by_row(sampling, rows),
    )
    how = {"slots": slots, "bucket": None, "eos": END, "processors": processors}
    return begin(logits(jnp.asarray(starts)), settings, blank_diary(rows), **how)


decode_chain = jax.jit(lambda state: decode(chain_step, state))


def test_each_row_takes_its_best_path_to_its_own_end():
    state = decode_chain(chain_begin([0, 2, 4, 1, 3], [16] * 4 + [1]))
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
    state = decode_chain(chain_begin([4] * 5, limits))  # a chain that never ends by itself
    assert state.counts_M.tolist() == limits
    assert not state.finished_M.any()
    assert int(state.cache["steps"]) == max(max(limits) - 1, 0)
    for row, limit in enumerate(limits):
        assert state.tokens_MR[row].tolist() == [4] * limit + [END] * (16 - limit)


def test_it_stops_when_all_have_ended_by_themselves():
    state = decode_chain(chain_begin([0, 2], [16, 16]))
    assert int(state.cache["steps"]) == 3  # 1 2 3 END: the first of the four is the prefill's


def test_a_limit_over_the_slots_is_the_slots():
    state = decode_chain(chain_begin([4, 0], [99, 99], slots=4))
    assert state.counts_M.tolist() == [4, 4]


def test_each_step_feeds_the_last_token_at_its_position():
    state = decode_chain(chain_begin([0, 2, 4, 1, 3], [16, 16, 6, 16, 1]))
    steps, counts_M = int(state.cache["steps"]), state.counts_M
    for row in range(5):
        last = int(counts_M[row]) - 1  # a row that is done feeds its last token again, to the same place
        fed = [min(step, last) for step in range(steps)]
        assert state.cache["positions"][:steps, row].tolist() == [PROMPT_LENGTHS[row] + i for i in fed]
        assert state.cache["tokens"][:steps, row].tolist() == [int(state.tokens_MR[row, i]) for i in fed]


def test_a_row_that_is_done_stands_still():
    sampling = Sampling(repetition_penalty=1.0)
    state = chain_begin([0, 2, 4, 1, 3], [16, 16, 3, 16, 1], sampling=sampling)
    step = jax.jit(lambda state: advance(chain_step, state))

    def shown(state, row):
        names = ("tokens_MR", "logprobs_MR", "counts_M", "finished_M", "last_M")
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
        state = chain_begin([0] * rows, [3] * rows, sampling=how_to_draw, keys=keys, logits=random_chain)
        return decode(random_step, dataclasses.replace(state, cache=None)).tokens_MR[:, :3]

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
    keys = jax.random.split(jax.random.key(21), 3)
    for row, taken in enumerate((1, 4, 2)):
        sampling = Sampling(min_new_tokens=12, temperature=0.5 + row)
        state = chain_begin([0], [12], sampling=sampling, keys=keys[row : row + 1], logits=random_chain)
        state = dataclasses.replace(state, cache=None)
        for step in range(10):
            if step == taken:
                states.append(state)
            state = advance_random(state)
        expected.append(np.asarray(state.tokens_MR[0]))
    together = jax.tree.map(lambda *x: jnp.concatenate(x), *states)
    for _ in range(10):
        together = advance_random(together)
    for row in range(3):
        np.testing.assert_array_equal(together.tokens_MR[row, :11], expected[row][:11])


def test_a_row_of_the_state_can_be_exchanged():
    """Everything that belongs to a row stands in the state: another row in its place replies as it does alone."""
    keys = jax.random.split(jax.random.key(22), 4)
    numbers = {"temperature": np.array([0.5, 1.0, 2.0, 0.7]), "repetition_penalty": np.array([1.0, 1.5, 1.2, 2.0])}

    def begin_rows(rows):
        sampling = Sampling(min_new_tokens=12, **{name: x[rows] for name, x in numbers.items()})
        state = chain_begin(rows, [12 - row for row in rows], sampling=sampling, keys=keys[rows], logits=random_chain)
        return dataclasses.replace(state, cache=None)

    expected = decode_random(begin_rows(np.array([0, 3, 2])))
    state = begin_rows(np.array([0, 1, 2]))
    for _ in range(4):
        state = advance_random(state)
    new = begin_rows(np.array([3]))
    state = decode_random(jax.tree.map(lambda x, one: x.at[1].set(one[0]), state, new))
    np.testing.assert_array_equal(state.tokens_MR, expected.tokens_MR)
    assert state.counts_M.tolist() == expected.counts_M.tolist() == [12, 9, 10]


def random_step(tokens_MT, _, cache):
    return random_chain(tokens_MT), cache


advance_random = jax.jit(lambda state: advance(random_step, state))
decode_random = jax.jit(lambda state: decode(random_step, state))


def test_where_no_token_is_possible_the_log_probability_says_so():
    """Row 0 says "1", and then the function leaves nothing; row 1 is free; row 2 gets a NaN. Row 3's model is broken."""

    def function(logits_MV, state):
        none_M1 = (state.counts_M == 1)[:, None] & (jnp.arange(4) == 0)[:, None]
        nan_MV = (jnp.arange(4) == 2)[:, None] & (jnp.arange(6) == 4)[None]
        return jnp.where(nan_MV, jnp.nan, jnp.where(none_M1, -jnp.inf, logits_MV))

    def broken(tokens_M):
        return chain_logits(tokens_M).at[3, 1].set(jnp.nan)

    how = {"slots": 4, "sampling": Sampling(temperature=1.0), "logits": broken, "processors": (function,)}
    logprobs_MR = jax.jit(lambda: advance(chain_step, chain_begin([0, 0, 0, 0], [4] * 4, **how)).logprobs_MR)()
    got_M2 = np.asarray(logprobs_MR)[:, :2]
    assert np.isfinite(got_M2[0, 0])
    assert got_M2[0, 1] == FORBIDDEN
    assert np.isfinite(got_M2[1]).all()
    assert got_M2[2, 0] == FORBIDDEN
    assert np.isnan(got_M2[3, 0])


def test_log_probabilities_that_are_no_numbers_are_one_of_two_errors():
    check_logprobs(np.array([-1.0, -2.0]))
    with pytest.raises(NonFiniteLogits):
        check_logprobs(np.array([-1.0, np.nan]))
    with pytest.raises(
        ValueError, match=r"^no reply is possible: the sampling's processors forbid every token"
    ) as raised:
        check_logprobs(np.array([-1.0, FORBIDDEN, np.nan]))
    assert type(raised.value) is ValueError
