"""Contrastive search on a toy chain with drawn hidden states, and on a small GPT-2 without a cache, against NumPy.

Letters: B rows, K candidates, S slots, R reply slots, D width, V vocabulary.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counter import count_compilations
from decoding.tiny import CONFIG, LENGTHS, PARAMS, TOKENS, prompts
from scipy.special import log_softmax, softmax

from dialogpt_jax import model
from dialogpt_jax.decoding import contrastive
from dialogpt_jax.decoding.contrastive import contrastive_search
from dialogpt_jax.decoding.generate import generate
from dialogpt_jax.decoding.logits import by_row
from dialogpt_jax.decoding.loop import RowSettings
from dialogpt_jax.decoding.sampling import Sampling

# float32 log-probabilities of some ten tokens.
TOLERANCE = 2e-5


def by_hand(reads, prompt, limit, *, alpha, top_k, end, forbidden=lambda reply: ()):
    """Contrastive search in NumPy. `reads(text)` gives the next token's logits, and the hidden state of each token."""
    reply = []
    while len(reply) < limit and end not in reply:
        logits_V, hidden_SD = reads([*prompt, *reply])
        logits_V = np.array(logits_V, np.float64)
        logits_V[list(forbidden(reply))] = -np.inf
        probs_V = softmax(logits_V)
        scores = {}
        for token in np.argsort(-logits_V, kind="stable")[:top_k].tolist():
            if np.isneginf(logits_V[token]):
                continue
            *before, new = reads([*prompt, *reply, token])[1]
            cosines = [float(h @ new) / np.linalg.norm(h) / np.linalg.norm(new) for h in before]
            assert len(before) == len(hidden_SD)
            scores[token] = (1 - alpha) * probs_V[token] - alpha * max(cosines)
        reply.append(max(scores, key=lambda token: scores[token]))
    return reply


# A chain on the last two tokens. The cache holds the last one: a row with another candidate's takes wrong steps.

END, VOCAB, WIDTH, SLOTS = 6, 7, 3, 8
CHAIN = np.random.default_rng(3).normal(scale=1.5, size=(VOCAB, VOCAB, VOCAB)).astype(np.float32)
CHAIN[..., END] -= 0.5
HIDDEN = np.random.default_rng(4).normal(size=(VOCAB, VOCAB, WIDTH)).astype(np.float32)
CHAIN_PROMPTS = [[1, 2, 3], [4], [2, 5, 5, 0, 1], [3, 0], [5, 5]]
LIMITS = [8, 8, 8, 2, 5]


def read_chain(text):
    pairs = list(zip([0, *text], text, strict=False))
    return CHAIN[pairs[-1]], [HIDDEN[pair] for pair in pairs]


def candidates(tokens_BK, _, last_B):
    before_BK = jnp.broadcast_to(last_B[:, None], tokens_BK.shape)
    return jnp.asarray(CHAIN)[before_BK, tokens_BK], jnp.asarray(HIDDEN)[before_BK, tokens_BK], tokens_BK


def keep(tokens_BK, chosen_B):
    return jnp.take_along_axis(tokens_BK, chosen_B[:, None], axis=1)[:, 0]


def _run_chain(logits_BV, hidden_BSD, settings, alpha_B, last_B, top_k, processors):
    how = {"slots": SLOTS, "top_k": top_k, "eos": END, "processors": processors}
    state = contrastive.begin(logits_BV, hidden_BSD, settings, alpha_B, last_B, **how)
    return contrastive.search(candidates, keep, state)


_chain_search = jax.jit(_run_chain, static_argnames="top_k")


def chain_search(texts, limits, *, alpha, top_k=3, processors=()):
    rows, width = len(texts), max(map(len, texts))
    # What lies behind a prompt is as like every candidate as can be: 1 in all directions, and huge.
    hidden_BSD = np.full((rows, width + SLOTS, WIDTH), 1e3, np.float32)
    for row, text in enumerate(texts):
        hidden_BSD[row, : len(text)] = read_chain(text)[1]
    settings = RowSettings(
        lengths_M=np.array([len(text) for text in texts]),
        limits_M=np.array(limits),
        keys_M=jax.random.split(jax.random.key(0), rows),
        sampling=by_row(Sampling(None, min_new_tokens=None), rows),
    )
    logits_BV = np.array([read_chain(text)[0] for text in texts])
    last_B = np.array([text[-1] for text in texts])
    alpha_B = np.full(rows, alpha, np.float32)
    return jax.device_get(_chain_search(logits_BV, hidden_BSD, settings, alpha_B, last_B, top_k, processors))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.6, 1.0])
def test_a_search_is_the_one_by_hand_and_rows_end_at_different_times(alpha):
    found = chain_search(CHAIN_PROMPTS, LIMITS, alpha=alpha)
    for row, (text, limit) in enumerate(zip(CHAIN_PROMPTS, LIMITS, strict=True)):
        expected = by_hand(read_chain, text, limit, alpha=alpha, top_k=3, end=END)
        count = found.counts_B[row]
        assert found.tokens_BR[row, :count].tolist() == expected
        assert (found.tokens_BR[row, count:] == END).all()
        assert (found.logprobs_BR[row, count:] == 0).all()
        assert found.finished_B[row] == (END in expected)
        logprobs = [log_softmax(read_chain(text + expected[:i])[0])[token] for i, token in enumerate(expected)]
        np.testing.assert_allclose(found.logprobs_BR[row, :count], logprobs, rtol=TOLERANCE)
    assert len(set(found.counts_B.tolist())) > 2


def test_a_forbidden_token_is_not_said_for_being_new():
    def only(logits_BV, _):
        return jnp.where(jnp.arange(VOCAB) < 2, logits_BV, -jnp.inf)

    found = chain_search([[1, 2], [3]], [4, 8], alpha=0.9, processors=(jax.tree_util.Partial(only),))
    assert found.counts_B.tolist() == [4, 8]
    for row, text in enumerate([[1, 2], [3]]):
        hand = {"alpha": 0.9, "top_k": 3, "end": END, "forbidden": lambda _: range(2, VOCAB)}
        expected = by_hand(read_chain, text, [4, 8][row], **hand)
        assert found.tokens_BR[row, : len(expected)].tolist() == expected


# With a model.

STEPS = 10


@jax.jit
def _read(params, tokens_BT):
    x_BTD, _ = model.hidden(params, CONFIG, tokens_BT, jnp.arange(tokens_BT.shape[1])[None])
    return model.logits(params, CONFIG, x_BTD)[0], x_BTD[0]


def read_model(text):
    """Without a cache, a text whole."""
    tokens_BT = np.zeros((1, CONFIG.n_positions), np.int32)
    tokens_BT[0, : len(text)] = text
    logits_TV, hidden_TD = jax.device_get(_read(PARAMS, tokens_BT))
    return logits_TV[len(text) - 1, : CONFIG.vocab_size], hidden_TD[: len(text)]


def run(rows=slice(None), tokens_BT=TOKENS, **how):
    how = {"top_k": 5, "max_new_tokens": STEPS} | how
    return jax.device_get(contrastive_search(PARAMS, CONFIG, tokens_BT[rows], LENGTHS[rows], **how))


def test_a_reply_is_the_one_without_a_cache_and_rows_and_pads_change_nothing():
    batch = run()
    for row, prompt in enumerate(prompts()):
        limit = min(STEPS, CONFIG.n_positions - len(prompt))
        forbidden = lambda reply: () if reply else (CONFIG.eos_token_id,)  # noqa: E731  (a reply is not empty)
        expected = by_hand(read_model, prompt, limit, alpha=0.6, top_k=5, end=CONFIG.eos_token_id, forbidden=forbidden)
        assert batch.tokens[row, : batch.lengths[row]].tolist() == expected
        assert batch.finished[row] == (CONFIG.eos_token_id in expected)
    assert len(set(batch.lengths.tolist())) > 1
    padded = run(tokens_BT=np.where(np.arange(12) < LENGTHS[:, None], TOKENS, -3))
    np.testing.assert_array_equal(padded.tokens, batch.tokens)
    np.testing.assert_array_equal(run(rows=slice(3, 4)).tokens[0], batch.tokens[3])


def test_without_a_penalty_it_is_greedy_with_every_processor_and_other_numbers_compile_nothing():
    keys = jax.random.split(jax.random.key(0), 4)
    blocks = Sampling(0, no_repeat_ngram=2, repetition_penalty=1.5, bad_words=[3], min_new_tokens=3)
    how = {"sampling": blocks, "max_new_tokens": STEPS}
    greedy = jax.device_get(generate(PARAMS, CONFIG, TOKENS, LENGTHS, keys=keys, **how))
    out = run(penalty_alpha=0.0, **how)
    for name in ("tokens", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(out, name), getattr(greedy, name))
    np.testing.assert_allclose(out.logprobs, greedy.logprobs, atol=TOLERANCE)
    with count_compilations() as programs:
        run(penalty_alpha=0.3, sampling=blocks, max_new_tokens=STEPS - 2)
    assert programs == []


def test_a_reply_goes_to_the_last_position():
    """A prompt that leaves three positions: three tokens, the last of which is no worse chosen for standing at the end."""
    length = CONFIG.n_positions - 3
    text = np.random.default_rng(8).integers(11, CONFIG.vocab_size, length).tolist()
    tokens_BT = np.array([text, text[:4] + [0] * (length - 4)])
    sampling = Sampling(0, suppress_tokens=[CONFIG.eos_token_id])
    how = {"top_k": 5, "max_new_tokens": 6, "sampling": sampling}
    out = jax.device_get(contrastive_search(PARAMS, CONFIG, tokens_BT, [length, 4], **how))
    assert out.lengths.tolist() == [3, 6]
    hand = {"alpha": 0.6, "top_k": 5, "end": -1, "forbidden": lambda _: (CONFIG.eos_token_id,)}
    assert out.tokens[0, :3].tolist() == by_hand(read_model, text, 3, **hand)
    assert out.tokens[1, :6].tolist() == by_hand(read_model, text[:4], 6, **hand)
    assert not out.finished.any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"penalty_alpha": -0.1}, "penalty_alpha is -0.1; it must be a finite number from 0 to 1"),
        ({"penalty_alpha": 1.5}, "penalty_alpha is 1.5"),
        ({"penalty_alpha": "0.6"}, "penalty_alpha is '0.6'"),
        ({"penalty_alpha": float("nan")}, "penalty_alpha is nan"),
        ({"top_k": 0}, "top_k is 0; it must be a whole number from 1 to 61"),
        ({"top_k": 62}, "top_k is 62"),
        ({"top_k": 2.0}, "top_k is 2.0"),
        ({"sampling": Sampling()}, "temperature is 1.0, and contrastive search draws nothing"),
    ],
    ids=str,
)
def test_a_mistake_is_one_clear_line(change, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        run(**change)
    assert "\n" not in str(caught.value)
