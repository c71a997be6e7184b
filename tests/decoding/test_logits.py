"""Logits to a token: what is drawn follows the distribution that a second implementation, with sorts, writes down.

`probabilities` is that implementation, in NumPy and float64, one row at a time. It takes its steps in a given order and
has a few mistakes to plant, so each chi-square test also shows that it would have seen them.

Letters: M rows, V vocabulary, K the best few of it, J draws of one row.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding.drawing import EOS, VOCAB, choose_all, draw_logits, softmax, state_of
from scipy.stats import chi2

from dialogpt_jax.decoding.logits import by_row, choose, draw, top_k_bucket
from dialogpt_jax.decoding.sampling import GREEDY, Sampling

# A right program fails once in 1e5 seeds; the seed is fixed, so it does not. A wrong one must be beyond 1e-12.
RIGHT, WRONG = 1e-5, 1e-12
# float32: cumulative sums and log-softmax over 50,000 ids.
TOLERANCE = 3e-6

DRAWS = 8000
LAST_UNIFORM = 1 - 2**-24  # a hair above the largest that jax.random.uniform gives, 1 − 2^-23
ORDER = ("repetition_penalty", "min_new_tokens", "temperature", "top_k", "top_p", "min_p")


LOGITS = draw_logits(3)
SEEN = np.random.default_rng(7).random((3, VOCAB)) < 0.5


def probabilities(logits_V, seen_V, count, numbers, *, order=ORDER, mistake=None):
    """The distribution of the next token, by sorting. `numbers`: the settings that are on."""
    x_V = np.asarray(logits_V, np.float64).copy()
    falling = lambda: np.argsort(-x_V, kind="stable")  # noqa: E731
    for name in order:
        number = numbers.get(name)
        if number is None:
            continue
        if name == "repetition_penalty":
            divided = np.ones(VOCAB, bool) if mistake == "always divided" else x_V > 0
            x_V = np.where(seen_V, np.where(divided, x_V / number, x_V * number), x_V)
        elif name == "min_new_tokens":
            x_V[EOS] = -np.inf if count + (mistake == "one late") < number else x_V[EOS]
        elif name == "temperature":
            x_V /= number
        elif name == "top_k":
            k = number + {"one more": 1, "one less": -1}.get(mistake, 0)
            x_V[x_V < np.sort(x_V)[-k]] = -np.inf
        elif name == "top_p":
            order_V = falling()
            before_V = np.cumsum(softmax(x_V)[order_V]) - softmax(x_V)[order_V]
            kept = int((before_V < number).sum()) + {"one more": 1, "one less": -1}.get(mistake, 0)
            x_V[order_V[kept:]] = -np.inf
        else:
            fraction = number**2 if mistake == "of the square" else number
            floor = fraction if mistake == "absolute" else fraction * softmax(x_V).max()
            x_V[softmax(x_V) < floor] = -np.inf
    return softmax(x_V)


@jax.jit
def draw_with_keys(logits_MV, seen_MV, counts_M, keys_MJ, sampling):
    """J draws for each row: one uniform a key, as a step of the loop draws it."""
    times = keys_MJ.shape[1]
    sampling = jax.tree.map(lambda x: jnp.repeat(x, times), sampling)
    drawn_N, _ = choose(
        jnp.repeat(logits_MV, times, axis=0),
        jax.vmap(jax.random.uniform)(keys_MJ.reshape(-1)),
        state_of(jnp.repeat(counts_M, times), jnp.repeat(seen_MV, times, axis=0)),
        sampling=sampling,
        bucket=None if sampling.top_k is None else 16,
    )
    return jax.vmap(lambda drawn_J: jnp.bincount(drawn_J, length=logits_MV.shape[1]))(drawn_N.reshape(-1, times))


def misfit(counts_V, probs_V):
    """How far counts are from a distribution: the chi-square statistic over its bound at `RIGHT`, and at `WRONG`."""
    if counts_V[probs_V == 0].any():
        return np.inf, np.inf
    expected_V = probs_V[probs_V > 0] * counts_V.sum()
    observed_V, rare_V = counts_V[probs_V > 0], expected_V < 5
    if rare_V.any():  # pooled, as the statistic's distribution wants
        observed_V = np.append(observed_V[~rare_V], observed_V[rare_V].sum())
        expected_V = np.append(expected_V[~rare_V], expected_V[rare_V].sum())
    statistic, free = ((observed_V - expected_V) ** 2 / expected_V).sum(), max(len(expected_V) - 1, 1)
    return statistic / chi2.isf(RIGHT, free), statistic / chi2.isf(WRONG, free)


SWAPPED = [("temperature", "top_k"), ("temperature", "top_p"), ("top_k", "top_p"), ("temperature", "min_p")]
SWAPPED += [("repetition_penalty", "temperature"), ("top_p", "min_p")]


def swap(first, second):
    return tuple({first: second, second: first}.get(name, name) for name in ORDER)


# What is on, and which mistakes in it must show (an exchange of two steps, or one of `probabilities`).
CASES = {
    "nothing": ({}, []),
    "cold": ({"temperature": 0.6}, []),
    "hot": ({"temperature": 1.7}, []),
    "top-k": ({"top_k": 5}, ["one more", "one less"]),
    "top-p": ({"top_p": 0.8}, ["one more", "one less"]),
    "min-p": ({"min_p": 0.15}, ["of the square", "absolute"]),
    "penalty": ({"repetition_penalty": 1.6}, ["always divided"]),
    "reward": ({"repetition_penalty": 0.6}, ["always divided"]),
    "early": ({"min_new_tokens": 3}, ["one late"]),
    "hot top-p": ({"temperature": 2.0, "top_p": 0.7}, [("temperature", "top_p"), "one more", "one less"]),
    "hot min-p": ({"temperature": 2.0, "min_p": 0.3}, [("temperature", "min_p"), "of the square"]),
    "top-k and top-p": ({"top_k": 7, "top_p": 0.85}, [("top_k", "top_p")]),
    "early top-k": ({"min_new_tokens": 3, "top_k": 3}, [("min_new_tokens", "top_k"), "one more"]),
    "penalty and top-p": ({"repetition_penalty": 1.6, "top_p": 0.7}, [("repetition_penalty", "top_p")]),
    "all": (
        {"temperature": 1.5, "top_k": 8, "top_p": 0.8, "min_p": 0.3, "repetition_penalty": 1.3, "min_new_tokens": 3},
        [("top_k", "top_p"), ("temperature", "min_p"), ("temperature", "top_p"), ("repetition_penalty", "top_k")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_distribution(case):
    numbers, mistakes = CASES[case]
    sampling = by_row(Sampling(**{"min_new_tokens": None, "penalty_scope": "context", **numbers}), 3)
    keys_MJ = jax.random.split(jax.random.key(11), (3, DRAWS))
    counts_M = np.array([2, 2, 2], np.int32)
    drawn_MV = np.asarray(draw_with_keys(LOGITS, SEEN, counts_M, keys_MJ, sampling))
    assert (drawn_MV.sum(axis=1) == DRAWS).all()

    def misfits(**planted):
        probs_MV = [probabilities(LOGITS[m], SEEN[m], counts_M[m], numbers, **planted) for m in range(3)]
        return np.array([misfit(drawn_MV[m], probs_MV[m]) for m in range(3)])

    assert (misfits()[:, 0] < 1).all(), misfits()
    for mistake in mistakes:
        planted = {"mistake": mistake} if isinstance(mistake, str) else {"order": swap(*mistake)}
        assert (misfits(**planted)[:, 1] > 1).any(), mistake
    if case != "nothing":
        plain_MV = [probabilities(LOGITS[m], SEEN[m], 2, {}) for m in range(3)]
        assert all(misfit(drawn_MV[m], plain_MV[m])[1] > 1 for m in range(3)), "the setting changes nothing here"


def test_each_row_has_its_own_numbers():
    numbers = [
        {"temperature": 0.5, "top_k": 8, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.0, "min_new_tokens": 3},
        {"temperature": 1.0, "top_k": 3, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.5, "min_new_tokens": 0},
        {"temperature": 2.0, "top_k": 15, "top_p": 0.6, "min_p": 0.1, "repetition_penalty": 0.8, "min_new_tokens": 2},
    ]
    each = {name: np.array([row[name] for row in numbers]) for name in numbers[0]}
    sampling = Sampling(penalty_scope="context", **each)
    keys_MJ = jax.random.split(jax.random.key(12), (3, DRAWS))
    drawn_MV = np.asarray(draw_with_keys(LOGITS, SEEN, np.full(3, 2, np.int32), keys_MJ, by_row(sampling, 3)))
    for m in range(3):
        assert misfit(drawn_MV[m], probabilities(LOGITS[m], SEEN[m], 2, numbers[m]))[0] < 1
        other = numbers[(m + 1) % 3]
        assert misfit(drawn_MV[m], probabilities(LOGITS[m], SEEN[m], 2, other))[1] > 1


# The draw.


def test_a_draw_is_the_inverse_of_the_cumulative_sum():
    probs_V = np.array([0.0, 0.25, 0.0, 0.5, 0.125, 0.125, 0.0])
    uniforms_M = np.array([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.8749, 0.875, 0.9999, LAST_UNIFORM], np.float32)
    with np.errstate(divide="ignore"):
        logits_MV = np.tile(np.log(probs_V).astype(np.float32), (len(uniforms_M), 1))
    np.testing.assert_array_equal(draw(logits_MV, uniforms_M), [1, 1, 3, 3, 4, 4, 5, 5, 5])


@pytest.mark.parametrize("vocab", [7, 1000, 50304])
def test_what_has_no_probability_is_never_drawn(vocab):
    random = np.random.default_rng(vocab)
    uniforms_M = np.array([0.0, 2**-24, 0.5, 1 - 2**-23, LAST_UNIFORM] * 4, np.float32)
    logits_MV = random.normal(size=(len(uniforms_M), vocab)).astype(np.float32)
    possible_MV = random.random(logits_MV.shape) < np.repeat([0.5, 0.01, 0.99, 0.0], 5)[:, None]
    possible_MV[:, [0, -1]] = False  # the two that a cumulative sum's ends would take
    possible_MV[np.arange(len(possible_MV)), random.integers(1, vocab - 1, len(possible_MV))] = True
    logits_MV[~possible_MV] = -np.inf
    drawn_M = np.asarray(jax.jit(draw)(logits_MV, uniforms_M))
    assert np.take_along_axis(possible_MV, drawn_M[:, None], 1).all()


def test_where_the_cumulative_sum_rounds_up_nothing_impossible_is_drawn():
    """A sum in blocks may rise by rounding at an index of probability 0; the uniforms here aim at each such place."""
    random, vocab, rows = np.random.default_rng(13), 1000, 3
    logits_MV = random.normal(size=(rows, vocab)).astype(np.float32)
    impossible_MJ = np.array([random.choice(vocab, vocab // 2, replace=False) for _ in range(rows)])
    np.put_along_axis(logits_MV, impossible_MJ, -np.inf, axis=1)
    upto_MV = np.array([np.cumsum(softmax(row.astype(np.float64))) for row in logits_MV])
    grid_MJ = np.round(np.take_along_axis(upto_MV, impossible_MJ, axis=1) * 2**24)
    around_MN = (grid_MJ[..., None] + np.arange(-4, 5)).reshape(rows, -1) / 2**24
    uniforms_MN = np.clip(around_MN, 0, LAST_UNIFORM).astype(np.float32)

    @jax.jit
    def draw_all(logits_MV, uniforms_MN):
        times = uniforms_MN.shape[1]
        return draw(jnp.repeat(logits_MV, times, axis=0), uniforms_MN.reshape(-1)).reshape(-1, times)

    drawn_MN = np.asarray(draw_all(logits_MV, uniforms_MN))
    assert np.isfinite(np.take_along_axis(logits_MV, drawn_MN, axis=1)).all()


@pytest.mark.parametrize("vocab", [1000, 50304])
def test_the_ends_of_a_distribution_can_be_drawn(vocab):
    logits_MV = 0.5 * draw_logits(40, vocab=vocab, seed=6)  # the sums of 40 rows round to either side of 1
    ends = np.repeat(
        np.array([0.0, 1 - 2**-23], np.float32), 20
    )  # the least and the most that jax.random.uniform gives
    np.testing.assert_array_equal(jax.jit(draw)(logits_MV, ends), np.repeat([0, vocab - 1], 20))


@pytest.mark.parametrize(
    "numbers",
    [{}, {"top_p": 0.9999}, {"min_p": 0.0}, {"top_k": 1000}, {"top_k": 61, "top_p": 1.0, "repetition_penalty": 5.0}],
)
def test_the_pad_of_the_vocabulary_is_never_drawn(numbers):
    logits_V = np.full(128, -np.inf, np.float32)
    logits_V[:61] = draw_logits(1, vocab=61, seed=8)
    sampling = Sampling(temperature=1e4, **numbers)
    uniforms_J = np.append(np.arange(512, dtype=np.float32) / 512, np.float32(LAST_UNIFORM))
    drawn_J = choose_all(
        logits_V, uniforms_J, sampling=sampling, bucket=top_k_bucket(sampling, 61), seen_V=np.arange(128) % 2 == 0
    )
    assert set(drawn_J.tolist()) == set(range(61))  # so hot that every id is reached, and no other


UNIFORMS = np.array([0.0, 0.3, 0.7, LAST_UNIFORM], np.float32)


@pytest.mark.parametrize(
    "numbers",
    [
        {"top_k": 1},
        {"top_k": 1, "temperature": 50.0, "top_p": 1.0},
        {"top_p": 1e-6},
        {"top_p": 1e-38},
        {"top_p": 1e-6, "top_k": 9},
        {"min_p": 1.0},
        {"temperature": 0},
        {"temperature": np.float32(0)},
        {"temperature": np.zeros(4)},
        {"temperature": 1e-6},
        {"temperature": 1e-45},
        {"temperature": 5e-324, "top_k": 9, "top_p": 0.9, "min_p": 0.1},
    ],
    ids=str,
)
def test_limits_are_greedy(numbers):
    sampling = Sampling(**numbers)
    for logits_V in (*draw_logits(3, seed=9), *draw_logits(2, seed=10, scale=1000.0)):
        drawn_J = choose_all(logits_V, UNIFORMS, sampling=sampling, bucket=top_k_bucket(sampling, VOCAB))
        np.testing.assert_array_equal(drawn_J, np.full(4, logits_V.argmax()))


def test_greedy_looks_at_no_uniform_and_takes_the_first_of_equals():
    logits_V = np.zeros(VOCAB, np.float32)
    logits_V[[9, 4]] = 1.0
    np.testing.assert_array_equal(choose_all(logits_V, UNIFORMS, sampling=GREEDY), np.full(4, 4))


def test_greedy_has_the_processors_too():
    logits_V = np.zeros(VOCAB, np.float32)
    logits_V[[EOS, 4, 9]] = 3.0, 2.0, 1.5
    seen_V = np.arange(VOCAB) == 4
    sampling = Sampling(temperature=0, repetition_penalty=2.0, min_new_tokens=2)
    assert choose_all(logits_V, UNIFORMS, sampling=sampling, seen_V=seen_V, count=1)[0] == 9
    assert choose_all(logits_V, UNIFORMS, sampling=sampling, seen_V=seen_V, count=2)[0] == EOS
