"""A GPT-2 small enough to compile fast, with logits that differ enough to choose by, and prompts that are ragged."""

import dataclasses

import jax
import numpy as np
from drawn_weights import as_params, draw_tensors
from fakes import TINY

from dialogpt_jax import model

CONFIG = dataclasses.replace(TINY, n_layer=1, eos_token_id=10)
_tensors = draw_tensors(CONFIG)
# As drawn, embeddings of 0.02 make all logits near 0 and a reply near uniform.
PARAMS = as_params({name: 10 * x if ".w" in name and "te." in name else x for name, x in _tensors.items()}, CONFIG)

LENGTHS = np.array([9, 4, 12, 1])
TOKENS = np.random.default_rng(3).integers(0, CONFIG.vocab_size, (4, 12))  # what lies behind the lengths is pads
KEYS = jax.random.split(jax.random.key(21), 4)


@jax.jit
def _forward(params, tokens_BT):
    return model.forward(params, CONFIG, tokens_BT)


def next_logits(tokens, params=PARAMS):
    """Float32 logits of the token after `tokens`, by the model without a cache."""
    tokens_BT = np.zeros((1, CONFIG.n_positions), np.int32)
    tokens_BT[0, : len(tokens)] = tokens
    return np.array(_forward(params, tokens_BT)[0])[len(tokens) - 1]


def prompts(rows=range(4)):
    return [TOKENS[row, : LENGTHS[row]].tolist() for row in rows]
