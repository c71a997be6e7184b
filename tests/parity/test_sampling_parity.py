"""Our choice of a token against transformers' own chain of logits processors, in its own order.

Evenly spaced uniforms go through `choose`, so that how often a token comes is its probability, to one part in `GRID`:
no chance in it. The chain is the one that `GPT2LMHeadModel.generate` builds from a `GenerationConfig`.

Letters: M rows, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding.drawing import state_of

from dialogpt_jax.decoding.logits import by_row, choose, top_k_bucket
from dialogpt_jax.decoding.sampling import Sampling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

GRID = 4096
# A token's share of the grid is its probability, give or take a point at each end of its stretch.
TOLERANCE = 2 / GRID
VOCAB, EOS, PROMPT = 40, 3, 6


def draw_logits(rows, seed, scale):
    logits_MV = scale * np.random.default_rng(seed).standard_normal((rows, VOCAB)).astype(np.float32)
    logits_MV[:, EOS] = logits_MV.max(axis=1) - 0.2
    return logits_MV


@functools.cache
def tiny_model():
    config = transformers.GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=8, n_layer=1, n_head=1, eos_token_id=EOS)
    return transformers.GPT2LMHeadModel(config)


def theirs(logits_MV, ids_MT, numbers, prompt=PROMPT):
    """Probabilities after transformers' processors; `ids_MT` is the prompt and the reply so far."""
    model = tiny_model()
    wanted = transformers.GenerationConfig(do_sample=True, eos_token_id=EOS, pad_token_id=EOS, **numbers)
    model._prepare_special_tokens(wanted, device=torch.device("cpu"))
    chain = model._get_logits_processor(
        generation_config=wanted,
        input_ids_seq_length=prompt,
        encoder_input_ids=torch.as_tensor(ids_MT),
        prefix_allowed_tokens_fn=None,
        logits_processor=transformers.LogitsProcessorList(),
    )
    scores_MV = chain(torch.as_tensor(ids_MT), torch.as_tensor(logits_MV).clone())
    return torch.softmax(scores_MV.double(), dim=-1).numpy()


@functools.partial(jax.jit, static_argnames="bucket")
def over_the_grid(logits_MV, counts_M, seen_MV, sampling, *, bucket):
    uniforms_J = (jnp.arange(GRID) + 0.5) / GRID

    def one(logits_V, count, seen_V):
        drawn_J, _ = choose(
            jnp.broadcast_to(logits_V, (GRID, VOCAB)),
            uniforms_J,
            state_of(jnp.broadcast_to(count, (GRID,)), jnp.broadcast_to(seen_V, (GRID, VOCAB)), eos=EOS),
            sampling=sampling,
            bucket=bucket,
        )
        return jnp.bincount(drawn_J, length=VOCAB)

    return jax.vmap(one)(logits_MV, counts_M, seen_MV)


def ours(logits_MV, ids_MT, numbers, prompt=PROMPT):
    rows = len(logits_MV)
    seen_MV = np.zeros((rows, VOCAB), bool)
    for row in range(rows):
        seen_MV[row, ids_MT[row]] = True
    sampling = Sampling(**{"min_new_tokens": 0, "penalty_scope": "context", **numbers})
    counts_M = np.full(rows, ids_MT.shape[1] - prompt, np.int32)
    bucket = top_k_bucket(sampling, VOCAB)
    return np.asarray(over_the_grid(logits_MV, counts_M, seen_MV, by_row(sampling, GRID), bucket=bucket)) / GRID


# transformers' default is top_k 50, so 0 turns it off there; None leaves it out here.
CASES = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 39},
    {"top_k": 200},
    {"top_p": 0.05},
    {"top_p": 0.7},
    {"top_p": 0.99},
    {"min_p": 0.1},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.7},
    {"min_new_tokens": 3},
    {"min_new_tokens": 2},
    {"typical_p": 0.3},
    {"typical_p": 0.9},
    {"epsilon_cutoff": 0.03},
    {"eta_cutoff": 0.1},
    {"eta_cutoff": 0.01, "temperature": 1.5},
    {"temperature": 2.0, "top_p": 0.6},
    {"temperature": 0.6, "top_k": 12, "top_p": 0.9},
    {"top_k": 10, "top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.2},
    {"repetition_penalty": 1.5, "top_k": 9},
    {"temperature": 1.4, "top_k": 15, "top_p": 0.85, "min_p": 0.15, "repetition_penalty": 1.3, "min_new_tokens": 4},
    {"temperature": 1.4, "top_p": 0.85, "min_p": 0.15, "repetition_penalty": 1.3, "min_new_tokens": 4},
    {"temperature": 1.4, "top_k": 20, "top_p": 0.95, "typical_p": 0.8, "epsilon_cutoff": 0.02, "eta_cutoff": 0.05},
    {"temperature": 1.4, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.8, "epsilon_cutoff": 0.02, "eta_cutoff": 0.05},
]


@pytest.mark.parametrize("numbers", CASES, ids=str)
def test_a_token_has_the_probability_that_transformers_gives_it(numbers):
    logits_MV = np.concatenate([draw_logits(3, 1, 1.0), draw_logits(3, 2, 4.0)])
    ids_MT = np.random.default_rng(3).integers(0, VOCAB, (6, PROMPT + 2))  # the reply has two tokens
    expected_MV = theirs(logits_MV, ids_MT, {"top_k": 0, **numbers})
    got_MV = ours(logits_MV, ids_MT, numbers)
    np.testing.assert_allclose(got_MV, expected_MV, atol=TOLERANCE)
    assert not got_MV[expected_MV == 0].any()
    assert got_MV[expected_MV > TOLERANCE].all()
    if numbers and numbers not in ({"top_k": 200}, {"min_new_tokens": 2}):  # that the settings do something
        plain_MV = theirs(logits_MV, ids_MT, {"top_k": 0})
        assert (expected_MV == 0).any() or np.abs(expected_MV - plain_MV).max() > 10 * TOLERANCE


def test_ties_stay_as_transformers_has_them():
    logits_MV = np.zeros((2, VOCAB), np.float32)
    logits_MV[0, [4, 8, 9, 12]] = 2.0, 1.0, 1.0, 1.0
    logits_MV[1, 5:15] = 1.0  # no more of them than the bucket of the smallest k, 16
    ids_MT = np.zeros((2, PROMPT), np.int64)
    for top_k in (1, 2, 3, 16):
        expected_MV = theirs(logits_MV, ids_MT, {"top_k": top_k})
        np.testing.assert_allclose(ours(logits_MV, ids_MT, {"top_k": top_k}), expected_MV, atol=TOLERANCE)
    for min_p in (0.3, 1.0):
        expected_MV = theirs(logits_MV, ids_MT, {"top_k": 0, "min_p": min_p})
        np.testing.assert_allclose(ours(logits_MV, ids_MT, {"min_p": min_p}), expected_MV, atol=TOLERANCE)
