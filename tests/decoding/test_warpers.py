"""What each step from logits to a token keeps, exactly.

Letters: M rows, V vocabulary, K the best few of it, J draws of one row.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding.drawing import EOS, VOCAB, choose_all, draw_logits, softmax

from dialogpt_jax.decoding import logits as warpers
from dialogpt_jax.decoding.logits import top_k_bucket
from dialogpt_jax.decoding.processors import NO_TOKEN, forbid_early_end, penalize
from dialogpt_jax.decoding.sampling import Sampling

# float32: cumulative sums and log-softmax over 50,000 ids.
TOLERANCE = 3e-6


def kept(x):
    return np.isfinite(np.asarray(x))


@pytest.mark.parametrize("k", [1, 2, 7, 23, 24, 1000])
def test_top_k_keeps_the_k_best(k):
    falling_MK = -np.sort(-draw_logits(3, seed=1), axis=1)
    np.testing.assert_array_equal(kept(warpers.keep_top_k(falling_MK, k)).sum(axis=1), [min(k, VOCAB)] * 3)


def test_top_k_keeps_ties_with_the_last():
    falling_MK = jnp.array([[3.0, 2.0, 2.0, 2.0, 1.0], [3.0, 3.0, 2.0, 1.0, 0.0]])
    got_MK = kept(warpers.keep_top_k(falling_MK, jnp.array([2.0, 1.0])))
    np.testing.assert_array_equal(got_MK, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])


@pytest.mark.parametrize("top_k", [16, 64])
def test_ties_with_the_last_are_seen_where_k_is_a_bucket(top_k):
    logits_MV = np.zeros((2, 300), np.float32)
    logits_MV[:, :top_k] = 1.0
    logits_MV[1, top_k] = 1.0  # in this row one more is as good
    sampling = Sampling(top_k=top_k)
    bucket = top_k_bucket(sampling, 300)
    for row, best in ((0, top_k), (1, top_k + 1)):
        uniforms_J = (np.arange(4 * best, dtype=np.float32) + 0.5) / (4 * best)
        drawn_J = choose_all(logits_MV[row], uniforms_J, sampling=sampling, bucket=bucket)
        assert set(drawn_J.tolist()) == set(range(best))


@pytest.mark.parametrize(
    ("top_k", "bucket"),
    [
        (1, 16),
        (15, 16),
        (16, 64),
        (63, 64),
        (64, 256),
        (256, 1024),
        (1024, 1024),
        (np.array([3, 70]), 256),
        (None, None),
    ],
)
def test_a_bucket_is_above_k(top_k, bucket):
    assert top_k_bucket(Sampling(top_k=top_k), 50304) == bucket
    assert top_k_bucket(Sampling(top_k=top_k), 10) == (None if bucket is None else 10)
    assert top_k_bucket(Sampling(temperature=0, top_k=top_k), 50304) is None


def nucleus_by_sorting(logits_V, top_p):
    order_V = np.argsort(-logits_V, kind="stable")
    probs_V = softmax(logits_V.astype(np.float64))[order_V]
    kept_V = np.zeros(len(logits_V), bool)
    kept_V[order_V[: int((np.cumsum(probs_V) - probs_V < top_p).sum())]] = True
    return kept_V


@pytest.mark.parametrize("top_p", [1e-9, 0.05, 0.3, 0.5, 0.9, 0.99])
def test_nucleus_is_the_smallest_set_that_holds_p(top_p):
    logits_MV = draw_logits(40, seed=2)
    expected_MV = np.array([nucleus_by_sorting(row, top_p) for row in logits_MV])
    np.testing.assert_array_equal(kept(warpers.keep_nucleus(logits_MV, top_p)), expected_MV)
    order_MV = np.argsort(-logits_MV, axis=1, kind="stable")
    got_MK = kept(warpers.keep_nucleus_sorted(np.take_along_axis(logits_MV, order_MV, 1), top_p))
    np.testing.assert_array_equal(got_MK, np.take_along_axis(expected_MV, order_MV, 1))


@pytest.mark.parametrize("top_p", [1, 1.0])
def test_a_nucleus_of_one_keeps_everything(top_p):
    logits_MV = draw_logits(3, seed=3, scale=30.0)  # probabilities down to 1e-50, which no sum notices
    for keep in (warpers.keep_nucleus, warpers.keep_nucleus_sorted):
        assert kept(keep(-np.sort(-logits_MV, axis=1), top_p)).all()


def test_a_set_that_holds_exactly_p_is_enough():
    probs_MV = np.array([[0.5, 0.25, 0.125, 0.125], [0.25, 0.5, 0.125, 0.125]], np.float32)
    got_MV = kept(warpers.keep_nucleus(np.log(probs_MV), 0.5))
    np.testing.assert_array_equal(got_MV, [[1, 0, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(kept(warpers.keep_nucleus_sorted(np.log(probs_MV[:1]), 0.5)), [[1, 0, 0, 0]])


def peaked_logits(rows, vocab=50304, real=50257):
    """As a language model's: a few likely ids, a long tail by Zipf's law, in any order; the pad −inf."""
    random = np.random.default_rng(4)
    logits_MV = np.full((rows, vocab), -np.inf, np.float32)
    for m in range(rows):
        tail_V = -1.4 * np.log(np.arange(1, real + 1)) + 0.5 * random.standard_normal(real)
        logits_MV[m, :real] = random.permutation(tail_V) - 30 * m  # wherever the logits lie
    return logits_MV


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.99])
def test_nucleus_over_a_whole_vocabulary(top_p):
    logits_MV = peaked_logits(3)
    got_MV = kept(jax.jit(warpers.keep_nucleus)(logits_MV, jnp.float32(top_p)))
    sizes = []
    for logits_V, got_V in zip(logits_MV, got_MV, strict=True):
        probs_V = softmax(logits_V.astype(np.float64))
        assert probs_V[got_V].min() > probs_V[~got_V].max(), "a better one is left out"
        assert probs_V[got_V].sum() >= top_p - TOLERANCE
        assert probs_V[got_V].sum() - probs_V[got_V].min() < top_p + TOLERANCE
        sizes.append(int(got_V.sum()))
    assert max(sizes) < 45_000
    if top_p >= 0.9:
        assert min(sizes) > 50  # more than a handful: the bisection had something to find


def test_min_p_keeps_those_near_the_best():
    probs_MV = np.array([[0.5, 0.26, 0.2, 0.04], [0.1, 0.7, 0.15, 0.05]], np.float32)
    got_MV = kept(warpers.keep_min_p(np.log(probs_MV), jnp.array([0.5, 0.1])))
    np.testing.assert_array_equal(got_MV, [[1, 1, 0, 0], [1, 1, 1, 0]])
    assert kept(warpers.keep_min_p(np.log(probs_MV), 0.0)).all()
    np.testing.assert_array_equal(kept(warpers.keep_min_p(np.log(probs_MV), 1.0)).sum(axis=1), [1, 1])


def typical_by_sorting(logits_V, mass):
    probs_V = softmax(logits_V.astype(np.float64))
    surprise_V = -np.log(probs_V)
    order_V = np.argsort(np.abs(surprise_V - (probs_V * surprise_V).sum()), kind="stable")
    held_V = np.cumsum(probs_V[order_V])
    kept_V = np.zeros(len(logits_V), bool)
    kept_V[order_V[: int((held_V < mass).sum()) + 1]] = True
    return kept_V


@pytest.mark.parametrize("mass", [0.01, 0.2, 0.5, 0.9, 0.99])
def test_typical_keeps_those_of_usual_surprise(mass):
    logits_MV = draw_logits(40, seed=3)
    expected_MV = np.array([typical_by_sorting(row, mass) for row in logits_MV])
    np.testing.assert_array_equal(kept(warpers.keep_typical(logits_MV, mass)), expected_MV)
    if mass == 0.2:
        assert not expected_MV[np.arange(40), logits_MV.argmax(axis=1)].all()  # the best may go
    half_MV = np.where(
        np.arange(VOCAB) % 2 == 0, logits_MV, -np.inf
    )  # what was forbidden stays so, and counts for nothing
    expected_MV = np.array([typical_by_sorting(row[::2], mass) for row in half_MV])
    np.testing.assert_array_equal(kept(warpers.keep_typical(half_MV, mass))[:, ::2], expected_MV)


@pytest.mark.parametrize("vocab", [VOCAB, 50257])
def test_the_cutoffs_are_their_definitions(vocab):
    logits_MV = draw_logits(3, vocab=vocab, seed=5)
    logits_MV[:, 7] = -np.inf
    for epsilon in (1e-4, 0.02, 0.3, 0.9):
        for m, logits_V in enumerate(logits_MV):
            probs_V = softmax(logits_V.astype(np.float64))
            entropy = -(probs_V[probs_V > 0] * np.log(probs_V[probs_V > 0])).sum()
            best_V = probs_V == probs_V.max()
            eta = min(epsilon, epsilon**0.5 * np.exp(-entropy))
            np.testing.assert_array_equal(
                kept(warpers.keep_epsilon(logits_MV, epsilon))[m], (probs_V >= epsilon) | best_V
            )
            np.testing.assert_array_equal(kept(warpers.keep_eta(logits_MV, epsilon))[m], (probs_V >= eta) | best_V)
    for sigmas in (0.1, 1.0, 2.5):
        possible_MV = np.delete(logits_MV.astype(np.float64), 7, axis=1)
        floor_M1 = possible_MV.max(axis=1, keepdims=True) - sigmas * possible_MV.std(axis=1, keepdims=True)
        got_MV = kept(warpers.keep_top_n_sigma(logits_MV, sigmas))
        np.testing.assert_array_equal(got_MV, logits_MV >= floor_M1)
        cold_MV = kept(warpers.keep_top_n_sigma(logits_MV / np.float32(4), sigmas))  # whatever the temperature
        assert (cold_MV == got_MV).mean() > 0.9999


def test_a_penalty_lowers_seen_tokens_of_either_sign():
    logits_MV = jnp.array([[2.0, -2.0, 0.0, 1.0], [2.0, -2.0, 0.0, 1.0]])
    seen_MV = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)
    got_MV = penalize(logits_MV, np.where(seen_MV, np.arange(4), NO_TOKEN), 2.0)
    np.testing.assert_array_equal(got_MV, [[1.0, -4.0, 0.0, 1.0], [2.0, -2.0, 0.0, 1.0]])


def test_no_end_before_the_minimum():
    logits_MV = np.zeros((3, VOCAB), np.float32)
    got_MV = kept(forbid_early_end(logits_MV, np.array([0, 1, 2]), 2, EOS))
    assert got_MV[:, EOS].tolist() == [False, False, True]
    assert np.delete(got_MV, EOS, axis=1).all()


def nucleus_of_transformers(logits_V, top_p):
    """The support of `TopPLogitsWarper`: a rising, stable order, cut where the sum so far is at most 1 − top_p.

    Source: transformers 5, `generation/logits_process.py`. And how near to a boundary it came.
    """
    order_V = np.argsort(logits_V, kind="stable")
    upto_V = np.cumsum(softmax(logits_V.astype(np.float64))[order_V])
    kept_V = np.ones(len(logits_V), bool)
    kept_V[order_V[:-1][(upto_V <= 1 - top_p)[:-1]]] = False
    return kept_V, np.abs(upto_V - (1 - top_p)).min()


def support(logits_V, **numbers):
    """The tokens that any uniform draws."""
    sampling = Sampling(min_new_tokens=None, **numbers)
    uniforms_J = np.append((np.arange(3000, dtype=np.float32) + 0.5) / 3000, [0, 1 - 2**-23])
    drawn_J = choose_all(logits_V, uniforms_J, sampling=sampling, bucket=top_k_bucket(sampling, len(logits_V)))
    return set(drawn_J.tolist())


def test_a_set_that_holds_p_to_within_rounding_is_enough():
    logits_V = np.log(np.array([0.3, 0.1, 0.1, 0.5], np.float32))
    assert support(logits_V, top_k=4, top_p=0.8) == {0, 3}  # .5 + .3; in float32 neither sums nor .8 are exact
    assert support(logits_V, top_p=0.8) == {0, 3}
    assert support(logits_V, top_k=2, top_p=0.8) == {0, 3}  # of .625 and .375
    assert support(logits_V, top_k=2, top_p=0.6) == {3}


def test_of_equals_at_the_end_of_a_nucleus_the_last_stay():
    logits_V = np.log(np.array([0.3, 0.1, 0.1, 0.5], np.float32))
    assert support(logits_V, top_k=4, top_p=0.85) == {0, 2, 3}
    assert support(logits_V, top_p=0.85) == {0, 1, 2, 3}  # without top-k, all of them
    flat_V = np.zeros(9, np.float32)
    assert support(flat_V, top_k=9, top_p=0.5) == {4, 5, 6, 7, 8}
    two_V = np.array([1, 1, 0, 0, 0, -9], np.float32)
    assert support(two_V, top_k=5, top_p=0.3) == {1}
    assert support(two_V, top_k=5, top_p=0.7) == {0, 1, 4}


@pytest.mark.parametrize("ties", [False, True])
def test_the_nucleus_is_transformers_unless_a_boundary_is_near(ties):
    """Against its own rule, in float64, over many distributions: alone, and behind a top-k that keeps all."""
    random, compared = np.random.default_rng(17), 0
    top_p = np.array([0.1, 0.5, 0.8, 0.85, 0.9, 0.95, 0.99])
    sorted_nucleus, whole_nucleus = jax.jit(warpers.keep_nucleus_sorted), jax.jit(warpers.keep_nucleus)
    for _ in range(60):
        logits_V = random.normal(scale=random.uniform(0.2, 4.0), size=12).astype(np.float32)
        if ties:
            logits_V = np.round(logits_V)
        logits_MV = np.tile(logits_V, (len(top_p), 1))
        order_MV = np.argsort(-logits_MV, axis=1, kind="stable")  # as lax.top_k has it
        sorted_MK = kept(sorted_nucleus(np.take_along_axis(logits_MV, order_MV, 1), top_p))
        whole_MV = kept(whole_nucleus(logits_MV, top_p))
        for m, p in enumerate(top_p):
            expected_V, distance = nucleus_of_transformers(logits_V, p)
            if distance < 1e-6:
                continue
            compared += 1
            assert set(order_MV[m][sorted_MK[m]]) == set(np.flatnonzero(expected_V))
            if not ties:
                np.testing.assert_array_equal(whole_MV[m], expected_V)
    assert compared > 350


def test_ties_with_the_k_th_stay_as_far_as_the_bucket_holds_them():
    logits_V = np.zeros(40, np.float32)
    logits_V[5] = 1.0
    assert support(logits_V, top_k=3) == set(range(16))  # the bucket of 3 is 16: the best, and 15 of its 39 equals
    assert support(logits_V, top_k=20) == set(range(40))  # that of 20 is 64
