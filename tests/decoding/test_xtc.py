"""XTC, exclude top choices: what it keeps, against a second implementation, and whose draw decides.

Letters: M rows, V vocabulary, J draws.
"""

import dataclasses

import jax
import numpy as np
import pytest
from decoding.drawing import EOS, choose_jitted, draw_logits, softmax, state_of
from decoding.tiny import CONFIG, KEYS, LENGTHS, PARAMS, TOKENS

from dialogpt_jax.decoding.generate import generate_candidates
from dialogpt_jax.decoding.logits import by_row, exclude_top_choices, xtc_now
from dialogpt_jax.decoding.sampling import Sampling


def kept_by_sorting(logits_V, threshold, end):
    """llama.cpp's loop over falling probabilities; nothing goes where the end would, as in text-generation-webui."""
    probs_V = softmax(logits_V.astype(np.float64))
    order_V = np.argsort(-probs_V, kind="stable")
    last = 0
    for place, token in enumerate(order_V):
        if probs_V[token] < threshold:
            break
        last = place
    gone = order_V[:last]
    kept_V = np.ones(len(logits_V), bool)
    kept_V[[] if end in gone else gone] = False
    return kept_V


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.2, 0.51])
def test_it_keeps_what_the_loop_over_a_sorted_vocabulary_keeps(threshold):
    logits_MV = draw_logits(60, seed=8)
    logits_MV[::2, EOS] -= 3.0  # in half the rows the end is unlikely: there more may go
    expected_MV = np.array([kept_by_sorting(logits_V, threshold, EOS) for logits_V in logits_MV])
    end_MV = np.arange(logits_MV.shape[1])[None] == EOS
    now_M = np.arange(60) % 3 > 0
    got_MV = np.isfinite(exclude_top_choices(logits_MV, threshold, now_M, end_MV))
    np.testing.assert_array_equal(got_MV, expected_MV | ~now_M[:, None])
    assert expected_MV.all() == (threshold > 0.5)
    assert (np.argmax(logits_MV, axis=1) == EOS).any()


def test_a_worked_example():
    logits_MV = np.log(np.array([[0.5, 0.3, 0.15, 0.05]] * 3, np.float32))
    ends_MV = np.arange(4)[None] == np.array([[3], [1], [2]])
    got_MV = np.isfinite(exclude_top_choices(logits_MV, 0.1, np.ones(3, bool), ends_MV))
    np.testing.assert_array_equal(got_MV, [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize("top_k", [None, 8])
def test_it_comes_last_and_as_often_as_it_is_told(top_k):
    """At a temperature that makes more tokens likely than the logits themselves do, behind a top-p that leaves three."""
    times = 4000
    logits_V = np.log(np.array([0.7, 0.2, 0.08, 0.01, 0.006, 0.004, *[1e-6] * 10], np.float32))
    sampling = Sampling(
        temperature=2.0, top_k=top_k, top_p=0.8, xtc_probability=0.25, xtc_threshold=0.2, min_new_tokens=None
    )
    keys_M, rows = jax.random.split(jax.random.key(3), times), by_row(sampling, times)
    now_M = np.asarray(xtc_now(rows, keys_M, np.ones(times, np.int32)))
    assert abs(now_M.mean() - 0.25) < 0.03
    uniforms_M = np.asarray(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys_M))
    assert abs(np.corrcoef(now_M, uniforms_M)[0, 1]) < 0.05  # not the number that draws the token
    drawn_M, _ = choose_jitted(
        np.tile(logits_V, (times, 1)),
        uniforms_M,
        state_of(np.ones(times), eos=15),
        sampling=rows,
        bucket=None if top_k is None else 16,
        xtc_now_M=now_M,
    )
    drawn_M = np.asarray(drawn_M)
    # √.7, √.2, √.08 over their sum are .53, .28, .19: with the threshold .2 the first goes, the second is the least.
    assert set(drawn_M[now_M]) == {1, 2}
    assert set(drawn_M[~now_M]) == {0, 1, 2}


XTC = Sampling(temperature=1.5, xtc_threshold=0.05, xtc_probability=0.0, min_new_tokens=4)


def test_a_row_draws_the_same_alone_and_with_others():
    def run(probability, rows=slice(None)):
        how = {"sampling": dataclasses.replace(XTC, xtc_probability=probability), "max_new_tokens": 12, "candidates": 2}
        return jax.device_get(generate_candidates(PARAMS, CONFIG, TOKENS[rows], LENGTHS[rows], keys=KEYS[rows], **how))

    probabilities = np.array([0.0, 0.5, 0.5, 0.5])
    batch, free = run(probabilities), run(0.0)
    for row in range(4):
        alone = run(float(probabilities[row]), slice(row, row + 1))
        assert alone.tokens[0].tolist() == batch.tokens[row].tolist()
    assert len(set(batch.lengths.flat)) > 1
    assert [(batch.tokens[row] == free.tokens[row]).all() for row in range(4)] == [True, False, False, False]
