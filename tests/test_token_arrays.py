"""Tokens and lengths as callers give them: what is taken, and the one line that each public function says of the rest.

Letters: B rows, T tokens.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding.tiny import CONFIG, KEYS, PARAMS

import dialogpt_jax as dg
from dialogpt_jax.decoding.score import score_candidates
from dialogpt_jax.likelihood import token_losses
from dialogpt_jax.token_arrays import as_integers, as_lengths, as_tokens

TOKENS = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (4, 6))
STARTS, LENGTHS = np.array([1, 3, 2, 6]), np.array([5, 3, 6, 6])
REPLIES, COUNTS = TOKENS.reshape(4, 2, 3), np.array([[3, 1], [0, 2], [1, 1], [3, 3]])
TOO_LONG = np.zeros((4, CONFIG.n_positions + 1), int)


class Frame:
    """As pandas' objects are: no array, but something that NumPy makes one of."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


FORMS = [
    np.asarray,
    jnp.asarray,
    np.ndarray.tolist,
    lambda x: x.astype(np.uint8),
    lambda x: x.astype(np.int64),
    Frame,
    lambda x: Frame(np.array([*x.tolist(), None], object)[:-1]),  # a Series of lists is an array of objects
    lambda x: tuple(map(tuple, x.tolist())) if x.ndim > 1 else tuple(x.tolist()),
]


def test_tokens_and_lengths_are_taken_in_any_form():
    for form in FORMS:
        np.testing.assert_array_equal(as_tokens(CONFIG, form(TOKENS)), TOKENS)
        assert as_lengths("lengths", form(LENGTHS), 4, least=1, most=6).dtype == np.int32


def forward(tokens=TOKENS):
    return dg.forward(PARAMS, CONFIG, tokens)


def losses(tokens=TOKENS):
    return token_losses(PARAMS, CONFIG, tokens)


def score(tokens=TOKENS, starts=STARTS, lengths=LENGTHS):
    return dg.score(PARAMS, CONFIG, tokens, starts, lengths)


def generate(tokens=TOKENS, lengths=LENGTHS):
    return dg.generate(PARAMS, CONFIG, tokens, lengths, sampling=dg.GREEDY, max_new_tokens=3, keys=KEYS)


def candidates(tokens=TOKENS, lengths=LENGTHS, replies=REPLIES, counts=COUNTS):
    return score_candidates(PARAMS, CONFIG, tokens, lengths, replies, counts)


def test_every_function_takes_lists():
    for function in (forward, losses):
        np.testing.assert_array_equal(function(TOKENS.tolist()), function())
    lists = {"starts": STARTS.tolist(), "lengths": LENGTHS.tolist()}
    np.testing.assert_array_equal(score(TOKENS.tolist(), **lists).logprobs, score().logprobs)
    np.testing.assert_array_equal(generate(TOKENS.tolist(), LENGTHS.tolist()).tokens, generate().tokens)
    given = (TOKENS.tolist(), LENGTHS.tolist(), REPLIES.tolist(), COUNTS.tolist())
    np.testing.assert_array_equal(candidates(*given).total, candidates().total)


EVERY = (forward, losses, score, generate, candidates)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (TOKENS[0], "shape (6,); expected (rows, tokens)"),
        (TOKENS[:, :0], "shape (4, 0)"),
        ([], "shape (0,)"),
        (TOKENS.astype(float), "are float64; expected integers"),
        (TOKENS > 3, "are bool; expected integers"),
        ([["Hi!"]] * 4, "expected integers"),
        ([[1, 2], [1], [1], [2]], "lists of one length, padded on the right"),
        (None, "shape ()"),
        (TOKENS + 2**40, "must fit int32"),
        (np.where(TOKENS[0, 0] == TOKENS, 61, TOKENS), "token id 61 is outside the vocabulary of 61"),
        (np.where(TOKENS[0, 0] == TOKENS, -1, TOKENS).tolist(), "token id -1 is outside"),
        (jnp.asarray(TOKENS).at[0, 0].set(10**6), "token id 1000000 is outside"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:40],  # the same in every process
)
@pytest.mark.parametrize("function", EVERY)
def test_wrong_tokens_are_one_clear_line_everywhere(function, tokens, said):
    refused(said, function, tokens)


@pytest.mark.parametrize("function", [forward, losses, score])
def test_more_tokens_than_positions_are_an_error_though_traced(function):
    for call in (function, jax.jit(function)):
        refused("the rows have 49 tokens; n_positions is 48", call, TOO_LONG)
    if function is forward:
        assert function(TOO_LONG[:, 1:]).shape == (4, 48, 61)  # as many as there are positions


@pytest.mark.parametrize(
    ("function", "given", "said"),
    [
        (score, {"starts": LENGTHS + 1}, "starts run from 4 to 7; that of row 0 is 6, it must be 0 to 5"),
        (score, {"starts": STARTS - 2}, "row 0 is -1, it must be 0 to 5"),
        (score, {"starts": STARTS[:3]}, "4 rows of tokens, and starts of shape (3,)"),
        (score, {"starts": 2}, "starts have the shape ()"),
        (score, {"starts": STARTS + 0.5}, "starts are float64"),
        (score, {"lengths": LENGTHS + 1}, "row 2 is 7, it must be 1 to 6"),
        (score, {"lengths": LENGTHS * 0}, "row 0 is 0, it must be 1 to 6"),
        (generate, {"lengths": LENGTHS[:, None]}, "lengths have the shape (4, 1)"),
        (generate, {"lengths": "6666"}, "lengths have the shape ()"),
        (candidates, {"counts": COUNTS + 1}, "row 0 is 4, it must be 0 to 3"),
        (candidates, {"counts": COUNTS[:, :1]}, "replies of shape (4, 2, 3) and counts of shape (4, 1)"),
        (candidates, {"replies": REPLIES[:, 0]}, "expected (rows, candidates, tokens)"),
        (candidates, {"replies": np.where(REPLIES < 60, 99, 99)}, "token id 99 is outside"),
        (candidates, {"tokens": TOO_LONG, "lengths": np.array([48, 2, 2, 2])}, "row 0 is 3, it must be 0 to 0"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:40],  # the same in every process
)
def test_what_does_not_fit_is_one_clear_line(function, given, said):
    refused(said, function, **given)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (dataclasses.replace(CONFIG, n_layer=2), "the parameters have 1 block; the config's n_layer is 2"),
        (
            dataclasses.replace(CONFIG, n_head=8),
            "h_0/attn/c_attn/bias has the shape (3, 4, 8); this config needs (3, 8, 4)",
        ),
        (
            dataclasses.replace(CONFIG, n_positions=32),
            "wpe/embedding has the shape (48, 32); this config needs (32, 32)",
        ),
        (dataclasses.replace(CONFIG, vocab_size=200), "wte/embedding has the shape (128, 32)"),
        (dataclasses.replace(CONFIG, tie_word_embeddings=False), "the parameters have no lm_head/kernel"),
        (dg.GPT2Config.small(), "1 block; the config's n_layer is 12"),
    ],
    ids=lambda x: x if isinstance(x, str) else "config",
)
def test_a_config_that_does_not_fit_the_parameters_is_one_clear_line(config, said):
    refused(said, dg.forward, PARAMS, config, TOKENS)
    refused(said, jax.jit(dg.forward, static_argnums=1), PARAMS, config, TOKENS)
    refused(said, dg.score, PARAMS, config, TOKENS, STARTS, LENGTHS)
    how = {"sampling": dg.GREEDY, "max_new_tokens": 3, "keys": KEYS}
    refused(said, dg.generate, PARAMS, config, TOKENS, LENGTHS, **how)


def test_arguments_in_the_wrong_place_are_one_clear_line():
    with pytest.raises(TypeError, match=r"config is .*; give the GPT2Config"):
        dg.forward(CONFIG, PARAMS, TOKENS)
    with pytest.raises(TypeError, match="params are None; give the tree"):
        dg.forward(None, CONFIG, TOKENS)


def test_more_axes_than_expected_are_named():
    refused(
        "replies have the shape (4, 6); expected (rows, candidates, tokens)", as_integers, "replies", TOKENS, ndim=3
    )


def refused(said, call, *given, **named):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        call(*given, **named)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
