"""Greedy decoding against transformers' `generate`: ours right-padded in one call, theirs row by row.

Two numbers that are nearly equal may be ordered either way by rounding, and from there on the texts differ: so a row is
compared up to its first near tie, and most steps must have been compared. A row that repeats itself would prove little:
the weights are drawn so that each row says at least thirty different tokens.

Letters: B rows, T tokens, R tokens of a reply.
"""

import dataclasses
from collections import Counter
from typing import NamedTuple

import jax
import numpy as np
import pytest
from drawn_weights import as_params, draw_tensors

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.decoding.generate import generate
from dialogpt_jax.decoding.sampling import GREEDY

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

# Logits reach about 1 here and both programs know them to about 1e-6; a smaller lead than this is a near tie.
NEAR_TIE = 1e-5

NEW = 200
LENGTHS = (1, 3, 7, 12, 20, 29, 33, 40)
CONFIG = GPT2Config(vocab_size=500, n_positions=256, n_embd=64, n_layer=4, n_head=4, eos_token_id=499)
TENSORS = draw_tensors(CONFIG, scale=12.0)
PROMPTS = [np.random.default_rng(length).integers(0, 499, length).astype(np.int32) for length in LENGTHS]


class Reply(NamedTuple):
    tokens_R: np.ndarray
    sure: int  # how many come before the first near tie


@pytest.fixture(scope="module")
def network():
    theirs = transformers.GPT2Config(**CONFIG.to_hf(), attn_implementation="eager")
    network = transformers.GPT2LMHeadModel(theirs)
    torch.set_num_threads(1)  # one row of a small model: more threads only wait for each other
    network.load_state_dict({name: torch.from_numpy(x) for name, x in TENSORS.items()}, strict=False)
    return network.eval()


def reply_of(network, prompt, eos=None) -> Reply:
    """transformers, one row."""
    network.generation_config.eos_token_id = eos
    network.generation_config.pad_token_id = 0
    ids_T = torch.from_numpy(prompt).long()[None]
    options = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": 1}
    out = network.generate(
        ids_T, attention_mask=torch.ones_like(ids_T), output_logits=True, return_dict_in_generate=True, **options
    )
    best_R2 = torch.stack(out.logits)[:, 0].topk(2).values
    close = ((best_R2[:, 0] - best_R2[:, 1]) < NEAR_TIE).nonzero()
    return Reply(out.sequences[0, len(prompt) :].numpy(), int(close[0]) if len(close) else len(best_R2))


def replies_of_ours(eos):
    """Ours, all rows in one call, with arbitrary ids as pads."""
    tokens_BT = np.random.default_rng(0).integers(0, 499, (len(PROMPTS), max(LENGTHS))).astype(np.int32)
    for row, prompt in enumerate(PROMPTS):
        tokens_BT[row, : len(prompt)] = prompt
    config = dataclasses.replace(CONFIG, eos_token_id=eos)
    return generate(
        as_params(TENSORS, CONFIG),
        config,
        tokens_BT,
        np.array(LENGTHS, np.int32),
        sampling=GREEDY,
        max_new_tokens=NEW,
        keys=jax.random.split(jax.random.key(0), len(PROMPTS)),
    )


@pytest.fixture(scope="module")
def free_running(network):
    """Their replies where nothing ends one."""
    return [reply_of(network, prompt) for prompt in PROMPTS]


def test_two_hundred_greedy_tokens(free_running):
    said = set(np.concatenate([reply.tokens_R for reply in free_running]).tolist())
    unsaid = next(token for token in range(CONFIG.vocab_size) if token not in said)
    out = replies_of_ours(eos=unsaid)
    assert out.tokens.shape == (8, NEW)
    assert not out.finished.any()
    assert (out.lengths == NEW).all()
    for row, reply in enumerate(free_running):
        assert len(set(reply.tokens_R.tolist())) >= 30, row
        np.testing.assert_array_equal(out.tokens[row, : reply.sure], reply.tokens_R[: reply.sure], err_msg=str(row))
    compared = sum(reply.sure for reply in free_running)
    print(f"compared {compared} of {8 * NEW} steps")
    assert compared > 0.8 * 8 * NEW


def test_rows_end_at_different_steps(network, free_running):
    eos = end_that_they_say(free_running)
    expected = [reply_of(network, prompt, eos) for prompt in PROMPTS]
    ends = {len(reply.tokens_R) for reply in expected}
    assert len(ends) >= 4, ends
    out = replies_of_ours(eos)
    for row, reply in enumerate(expected):
        count = len(reply.tokens_R)
        if reply.sure < count:
            np.testing.assert_array_equal(out.tokens[row, : reply.sure], reply.tokens_R[: reply.sure])
            continue
        assert out.lengths[row] == count
        assert out.finished[row] == (reply.tokens_R[-1] == eos)
        np.testing.assert_array_equal(out.tokens[row, :count], reply.tokens_R)
        np.testing.assert_array_equal(out.tokens[row, count:], eos)
    assert sum(reply.sure == len(reply.tokens_R) for reply in expected) >= 6


def end_that_they_say(replies):
    """The id that ends the most rows, each at a step of its own; not one that begins a reply (a reply is not empty)."""
    steps = Counter()
    for token in range(CONFIG.vocab_size):
        firsts = [list(reply.tokens_R).index(token) for reply in replies if token in reply.tokens_R]
        if 0 not in firsts:
            steps[token] = len(set(firsts))
    return steps.most_common(1)[0][0]
