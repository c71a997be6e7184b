"""Beam search against transformers': the same replies and scores, on drawn weights.

Letters: B rows, N beams.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from drawn_weights import as_params, draw_tensors

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.beam_search import beam_search
from dialogpt_jax.decoding.sampling import Sampling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

# Sums of some twenty float32 log-probabilities, each known to about 1e-6 of logits some 10 wide.
TOLERANCE = 5e-5
NEAR_TIES = 0.01  # of all rows, those in which one such difference decided

NEW, ROWS, EOS = 20, 10, 17
CONFIG = GPT2Config(
    vocab_size=200, n_positions=64, n_embd=32, n_layer=2, n_head=4, eos_token_id=EOS, tie_word_embeddings=False
)


def draw_weights():
    """Drawn weights whose replies end: the first channel of the last norm is constant, and only EOS reads it.

    The head is 25 times as wide as drawn, or all logits were near 0 and every beam as good as every other.
    """
    tensors = draw_tensors(CONFIG, scale=10.0)
    norm, head_VD = "transformer.ln_f", 25 * tensors["lm_head.weight"]
    tensors[f"{norm}.weight"][0], tensors[f"{norm}.bias"][0] = 0.0, 1.0
    head_VD[:, 0] = 0.0
    head_VD[EOS, 0] = 4.0
    return {**tensors, "lm_head.weight": head_VD}


TENSORS = draw_weights()
PARAMS = as_params(TENSORS, CONFIG)
LENGTHS = (3, 7, 12, 20, 31)  # five batches of prompts of one length, for theirs want pads on the left
PROMPTS = {
    length: np.random.default_rng(length).integers(0, 200, (ROWS, length)).astype(np.int32) for length in LENGTHS
}
PROCESSORS = {
    "plain": ({}, {}),
    "processed": (
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_new_tokens": 4, "bad_words_ids": [[5], [9, 8]]},
        {"no_repeat_ngram": 2, "ngram_scope": "context", "repetition_penalty": 1.3, "penalty_scope": "context",
         "min_new_tokens": 4, "bad_words": [5, (9, 8)]},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    theirs = transformers.GPT2Config(**CONFIG.to_hf(), attn_implementation="eager")
    network = transformers.GPT2LMHeadModel(theirs)
    torch.set_num_threads(1)
    network.load_state_dict({name: torch.from_numpy(x) for name, x in TENSORS.items()}, strict=False)
    network.generation_config.pad_token_id = EOS
    return network.eval()


def of_transformers(network, prompts, beams, penalty, stopping, options):
    ids = torch.from_numpy(prompts).long()
    how = {"do_sample": False, "max_new_tokens": NEW, "num_return_sequences": beams, "eos_token_id": EOS}
    if beams > 1:
        how |= {"length_penalty": penalty, "early_stopping": stopping}
    out = network.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=beams,
        output_scores=True,
        return_dict_in_generate=True,
        **how,
        **options,
    )
    tokens = np.full((len(prompts), beams, NEW), EOS)
    found = out.sequences[:, prompts.shape[1] :].numpy().reshape(len(prompts), beams, -1)
    tokens[..., : found.shape[2]] = found
    return tokens, None if beams == 1 else out.sequences_scores.numpy().reshape(len(prompts), beams)


@pytest.mark.parametrize("processors", PROCESSORS)
@pytest.mark.parametrize("beams", [1, 4, 10])
def test_replies_and_scores_are_transformers(network, beams, processors):
    their, our = PROCESSORS[processors]
    sampling = Sampling(temperature=None, **{"min_new_tokens": None, **our})
    tied = rows = 0
    ends, cut = set(), 0
    for penalty, stopping in itertools.product((0.6, 1.0, 1.4), (False, True, "never")):
        if beams == 1 and (penalty, stopping) != (1.0, False):
            continue
        for length, prompts in PROMPTS.items():
            expected, scores = of_transformers(network, prompts, beams, penalty, stopping, their)
            out = beam_search(
                PARAMS,
                CONFIG,
                np.pad(prompts, ((0, 0), (0, 32 - length)), constant_values=3),
                np.full(ROWS, length),
                beams=beams,
                n_best=beams,
                length_penalty=penalty,
                early_stopping=stopping,
                max_new_tokens=NEW,
                sampling=sampling,
            )
            out = jax.device_get(out)
            same_B = (out.tokens == expected).all(axis=(1, 2))
            rows, tied = rows + ROWS, tied + (~same_B).sum()
            ends |= set(out.lengths.reshape(-1).tolist())
            cut += (~out.finished).sum()
            if scores is not None:
                np.testing.assert_allclose(out.scores[same_B], scores[same_B], rtol=TOLERANCE)
                assert (np.diff(out.scores, axis=1) <= 0).all()
    print(f"{rows} rows, {tied} of them decided by a near tie, lengths {sorted(ends)}, {cut} cut")
    assert tied <= NEAR_TIES * rows
    assert len(ends) >= 6
    assert cut


def test_prompts_of_different_lengths_in_one_batch():
    """Rows are independent: a batch of all lengths gives each what it gets among its like."""
    texts = [PROMPTS[length][row] for row in range(2) for length in LENGTHS]
    tokens_BT = np.zeros((len(texts), 32), np.int32)
    for row, text in enumerate(texts):
        tokens_BT[row, : len(text)] = text
    lengths_B = np.array([len(text) for text in texts])
    how = {"beams": 4, "n_best": 4, "max_new_tokens": NEW}
    batch = jax.device_get(beam_search(PARAMS, CONFIG, tokens_BT, lengths_B, **how))
    for row, text in enumerate(texts):
        alone = jax.device_get(beam_search(PARAMS, CONFIG, text[None], [len(text)], **how))
        np.testing.assert_array_equal(batch.tokens[row], alone.tokens[0])
        np.testing.assert_allclose(batch.scores[row], alone.scores[0], rtol=TOLERANCE)


def test_one_beam_is_greedy():
    from dialogpt_jax.decoding.generate import generate
    from dialogpt_jax.decoding.sampling import GREEDY

    prompts, lengths_B = PROMPTS[12], np.full(ROWS, 12)
    sampling = dataclasses.replace(GREEDY, no_repeat_ngram=3)
    how = {"sampling": sampling, "max_new_tokens": NEW}
    keys = jax.random.split(jax.random.key(0), ROWS)
    greedy = jax.device_get(generate(PARAMS, CONFIG, prompts, lengths_B, keys=keys, **how))
    beam = jax.device_get(beam_search(PARAMS, CONFIG, prompts, lengths_B, beams=1, **how))
    np.testing.assert_array_equal(beam.tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(beam.lengths[:, 0], greedy.lengths)
    np.testing.assert_array_equal(beam.finished[:, 0], greedy.finished)
    np.testing.assert_allclose(beam.logprobs[:, 0], greedy.logprobs, atol=TOLERANCE)
