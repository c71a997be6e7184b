"""Processors against transformers' of the same name: one by one on random logits, all together in its own order.

Letters: M rows, V vocabulary.
"""

import dataclasses

import jax
import numpy as np
import pytest
from decoding.tiny import CONFIG

from dialogpt_jax.decoding.logits import by_row
from dialogpt_jax.decoding.processor_arrays import history_of, scopes_of, token_lists
from dialogpt_jax.decoding.processors import ReplyState, process
from dialogpt_jax.decoding.sampling import Sampling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from transformers import generation  # noqa: E402

pytestmark = pytest.mark.parity

TOLERANCE = 2e-6  # float32, relative: the same few operations
EOS, VOCAB, PROMPT, SLOTS = 3, 12, 9, 8
CONFIG = dataclasses.replace(CONFIG, vocab_size=VOCAB, eos_token_id=EOS)

# Their way to say it, and ours.
BIASES = {(4,): 2.0, (5, 6): -1.5, (1, 2, 7): 3.0}
CASES = {
    "bias": ({"sequence_bias": BIASES}, {"logit_bias": BIASES}),
    "repetition": ({"repetition_penalty": 1.8}, {"repetition_penalty": 1.8}),
    "reward": ({"repetition_penalty": 0.7}, {"repetition_penalty": 0.7}),
    **{f"{n}-gram": ({"no_repeat_ngram_size": n}, {"no_repeat_ngram": n}) for n in (1, 2, 3, 4)},
    "bad words": ({"bad_words_ids": [[5], [1, 6], [2, 2, 8]]}, {"bad_words": [5, (1, 6), (2, 2, 8)]}),
    "early": ({"min_new_tokens": 5}, {"min_new_tokens": 5}),
    "forced end": ({"forced_eos_token_id": EOS, "max_length": PROMPT + 5}, {"forced_end": True}),
    "decay": ({"exponential_decay_length_penalty": (2, 1.3)}, {"decay_start": 2, "decay_factor": 1.3}),
    "suppressed": ({"suppress_tokens": [0, 7]}, {"suppress_tokens": [0, 7]}),
    "begin": ({"begin_suppress_tokens": [0, 7]}, {"begin_suppress_tokens": [0, 7]}),
}  # fmt: skip


def theirs(logits_MV, ids_MT, **named):
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**CONFIG.to_hf()))
    wanted = generation.GenerationConfig(do_sample=False, eos_token_id=EOS, pad_token_id=EOS, **named)
    model._prepare_special_tokens(wanted, device=torch.device("cpu"))
    chain = model._get_logits_processor(
        generation_config=wanted, input_ids_seq_length=PROMPT, logits_processor=generation.LogitsProcessorList()
    )
    return chain(torch.as_tensor(ids_MT), torch.as_tensor(logits_MV).clone()).numpy()


@jax.jit
def run(logits_MV, state, sampling):
    return process(logits_MV, state, sampling=sampling)


def ours(logits_MV, ids_MT, **settings):
    rows, count = len(ids_MT), ids_MT.shape[1] - PROMPT
    scopes = {"penalty_scope": "context", "ngram_scope": "context", "min_new_tokens": None}
    sampling = Sampling(**{**scopes, **settings})
    lengths_B = np.full(rows, PROMPT, np.int32)
    state = ReplyState(
        tokens_MR=np.pad(ids_MT[:, PROMPT:], ((0, 0), (0, SLOTS - count)), constant_values=5).astype(np.int32),
        counts_M=np.full(rows, count, np.int32),
        limits_M=np.full(rows, 5, np.int32),
        history={s: history_of(s, ids_MT[:, :PROMPT], lengths_B, 16, EOS) for s in scopes_of(sampling)},
        lists=token_lists(sampling, rows, CONFIG),
        eos=EOS,
    )
    return np.asarray(run(logits_MV, state, by_row(sampling, rows)))


def drawn(count, seed):
    """Logits of six rows, and their ids: a vocabulary so small that much comes again; the prompt ends in EOS."""
    random = np.random.default_rng([seed, count])
    ids_MT = random.integers(0, VOCAB, (6, PROMPT + count))
    ids_MT[:, PROMPT - 1] = EOS
    return random.normal(scale=3, size=(6, VOCAB)).astype(np.float32), ids_MT


@pytest.mark.parametrize("case", CASES)
def test_a_processor_is_transformers(case):
    their, our = CASES[case]
    changed = 0
    for count in (0, 1, 2, 4, 7):
        for seed in range(4):
            logits_MV, ids_MT = drawn(count, seed)
            expected_MV = theirs(logits_MV, ids_MT, **their)
            np.testing.assert_allclose(ours(logits_MV, ids_MT, **our), expected_MV, rtol=TOLERANCE)
            changed += (expected_MV != logits_MV).any()
    assert changed


def test_all_together_come_in_transformers_order():
    their, our = ({k: v for pair in CASES.values() for k, v in pair[side].items()} for side in (0, 1))
    for count in (0, 1, 3, 4, 6):
        logits_MV, ids_MT = drawn(count, 9)
        their |= {"no_repeat_ngram_size": 2, "repetition_penalty": 1.5}
        our |= {"no_repeat_ngram": 2, "repetition_penalty": 1.5}
        np.testing.assert_allclose(ours(logits_MV, ids_MT, **our), theirs(logits_MV, ids_MT, **their), rtol=TOLERANCE)
