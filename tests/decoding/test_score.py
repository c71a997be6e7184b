"""Scores of replies: what `generate` reported for them, and what the plain model says of the whole text.

Letters: B rows, T tokens.
"""

import jax
import numpy as np
import pytest
from decoding.tiny import CONFIG, KEYS, LENGTHS, PARAMS, TOKENS, next_logits, prompts
from scipy.special import log_softmax

from dialogpt_jax.decoding.generate import generate
from dialogpt_jax.decoding.sampling import Sampling
from dialogpt_jax.decoding.score import score, score_candidates

# float32 log-probabilities of logits about 1 wide; a reply's sum adds up to 14 of them.
TOLERANCE = 2e-5
SUM_TOLERANCE = 2e-4

WIDTH = 28  # the longest prompt and the longest reply, and two pads
SAMPLING = Sampling(temperature=1.4, top_p=0.95, repetition_penalty=1.3, min_new_tokens=2)


@pytest.fixture(scope="module")
def replies():
    """Texts that were generated: (tokens_BT, starts_B, lengths_B) and what came with them."""
    out = generate(PARAMS, CONFIG, TOKENS, LENGTHS, sampling=SAMPLING, max_new_tokens=14, keys=KEYS)
    out = jax.device_get(out)
    tokens_BT = np.full((4, WIDTH), 3, np.int32)
    for row, prompt in enumerate(prompts()):
        text = prompt + out.tokens[row, : out.lengths[row]].tolist()
        tokens_BT[row, : len(text)] = text
    starts_B = LENGTHS.astype(np.int32)
    return tokens_BT, starts_B, starts_B + out.lengths, out


def test_scores_are_the_logprobs_of_generate(replies):
    tokens_BT, starts_B, lengths_B, out = replies
    scores = score(PARAMS, CONFIG, tokens_BT, starts_B, lengths_B)
    assert (scores.logprobs.shape, scores.logprobs.dtype) == ((4, WIDTH), np.float32)
    for row in range(4):
        count = out.lengths[row]
        got_T = np.asarray(scores.logprobs[row])
        np.testing.assert_allclose(got_T[starts_B[row] : lengths_B[row]], out.logprobs[row, :count], atol=TOLERANCE)
        assert (np.delete(got_T, np.s_[starts_B[row] : lengths_B[row]]) == 0).all()
        np.testing.assert_allclose(scores.total[row], out.logprobs[row].sum(), atol=SUM_TOLERANCE)
        np.testing.assert_allclose(scores.mean[row], out.logprobs[row].sum() / count, atol=TOLERANCE)
    assert len(set(out.lengths.tolist())) > 1


def test_scores_are_the_plain_model_s(replies):
    tokens_BT, starts_B, lengths_B, _ = replies
    scores = score(PARAMS, CONFIG, tokens_BT, starts_B, lengths_B)
    for row in range(4):
        text = tokens_BT[row].tolist()
        for i in range(starts_B[row], lengths_B[row]):
            expected = log_softmax(next_logits(text[:i]).astype(np.float64))[text[i]]
            assert abs(scores.logprobs[row, i] - expected) < TOLERANCE


def test_pads_and_the_rows_around_change_nothing(replies):
    tokens_BT, starts_B, lengths_B, _ = replies
    first = score(PARAMS, CONFIG, tokens_BT, starts_B, lengths_B)
    for pad in (0, CONFIG.eos_token_id, CONFIG.vocab_size, 10**6, -1):
        other_BT = np.where(np.arange(WIDTH)[None] < lengths_B[:, None], tokens_BT, pad)
        other = score(PARAMS, CONFIG, other_BT, starts_B, lengths_B)
        np.testing.assert_array_equal(other.logprobs, first.logprobs)
    alone = score(PARAMS, CONFIG, tokens_BT[2:3], starts_B[2:3], lengths_B[2:3])
    np.testing.assert_allclose(alone.logprobs[0], first.logprobs[2], atol=TOLERANCE)


def test_the_first_token_and_an_empty_reply_have_no_score(replies):
    tokens_BT, _, lengths_B, _ = replies
    whole = score(PARAMS, CONFIG, tokens_BT, np.zeros(4, np.int32), lengths_B)
    behind_the_first = score(PARAMS, CONFIG, tokens_BT, np.ones(4, np.int32), lengths_B)
    np.testing.assert_array_equal(whole.logprobs, behind_the_first.logprobs)
    np.testing.assert_array_equal(whole.mean, behind_the_first.mean)
    empty = score(PARAMS, CONFIG, tokens_BT, lengths_B, lengths_B)
    assert not np.asarray(empty.total).any()
    assert not np.asarray(empty.mean).any()


def test_candidates_score_as_whole_texts():
    """On a shared context, with replies of 0 to 6 tokens and pads that no embedding has."""
    random = np.random.default_rng(9)
    counts_BN = np.array([[6, 1, 0], [3, 6, 2], [1, 1, 5], [4, 0, 6]], np.int32)
    replies_BNR = random.integers(0, CONFIG.vocab_size, (4, 3, 6)).astype(np.int32)
    replies_BNR[np.arange(6) >= counts_BN[..., None]] = 10**6
    context_BT = np.where(np.arange(12)[None] < LENGTHS[:, None], TOKENS, -5).astype(np.int32)
    lengths_B = LENGTHS.astype(np.int32)
    got = score_candidates(PARAMS, CONFIG, context_BT, lengths_B, replies_BNR, counts_BN)
    assert (got.logprobs.shape, got.total.shape, got.mean.shape) == ((4, 3, 6), (4, 3), (4, 3))
    for row, prompt in enumerate(prompts()):
        for n, count in enumerate(counts_BN[row]):
            reply = replies_BNR[row, n, :count].tolist()
            logits_RV = [next_logits(prompt + reply[:i]).astype(np.float64) for i in range(count)]
            expected = [log_softmax(logits_V)[token] for logits_V, token in zip(logits_RV, reply, strict=True)]
            np.testing.assert_allclose(got.logprobs[row, n, :count], expected, atol=TOLERANCE)
            assert not np.asarray(got.logprobs[row, n, count:]).any()
            np.testing.assert_allclose(got.total[row, n], sum(expected), atol=SUM_TOLERANCE)
            np.testing.assert_allclose(got.mean[row, n], sum(expected) / max(count, 1), atol=TOLERANCE)
