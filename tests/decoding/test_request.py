"""A request: what callers give, found sound or refused in one line, whose key is whose, and what is put together.

Letters: B rows, T tokens, V vocabulary.
"""

import re

import jax
import numpy as np
import pytest
from decoding.tiny import CONFIG, KEYS, LENGTHS, PARAMS, TOKENS

from dialogpt_jax.decoding.generate import generate_candidates
from dialogpt_jax.decoding.request import assemble
from dialogpt_jax.decoding.sampling import GREEDY, Sampling
from dialogpt_jax.replies.keys import row_keys

# Bad input.

GOOD = {"tokens": TOKENS, "lengths": LENGTHS, "max_new_tokens": 4, "keys": KEYS, "sampling": GREEDY, "candidates": 1}
LONG = np.zeros((4, 60), int)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": TOKENS[0]}, "shape (12,)"),
        ({"tokens": TOKENS[:0], "lengths": LENGTHS[:0]}, "(0, 12)"),
        ({"tokens": TOKENS[:, :0]}, "(4, 0)"),
        ({"tokens": TOKENS.astype(float)}, "float64"),
        ({"lengths": LENGTHS.astype(np.float32)}, "float32"),
        ({"lengths": LENGTHS[:3]}, "(3,)"),
        ({"lengths": LENGTHS - 1}, "from 0 to 11"),
        ({"lengths": LENGTHS + 1}, "from 2 to 13; that of row 2 is 13, it must be 1 to 12"),
        ({"tokens": LONG, "lengths": np.array([1, 49, 48, 2])}, "49 tokens; n_positions is 48"),
        ({"tokens": np.where(TOKENS[0, 0] == TOKENS, 61, TOKENS)}, "61 is outside the vocabulary of 61"),
        ({"tokens": np.where(TOKENS[0, 0] == TOKENS, -1, TOKENS)}, "-1 is outside"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": -2}, "-2"),
        ({"max_new_tokens": 2.5}, "2.5"),
        ({"max_new_tokens": True}, "True"),
        ({"max_new_tokens": "3"}, "'3'"),
        ({"candidates": 0}, "candidates is 0"),
        ({"candidates": 1.5}, "1.5"),
        ({"keys": KEYS[:3]}, "(3,)"),
        ({"keys": KEYS[0]}, "shape ()"),
        ({"keys": jax.random.PRNGKey(0)}, "uint32"),
        ({"keys": np.arange(4)}, "int64"),
        ({"keys": None}, "NoneType"),
        ({"sampling": Sampling(temperature=np.array([0.5, 1.0]))}, "temperature has the shape (2,)"),
        ({"sampling": Sampling(top_k=np.ones((4, 1)))}, "top_k has the shape (4, 1)"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line(change, said):
    given = {**GOOD, **change}
    tokens, lengths = given.pop("tokens"), given.pop("lengths")
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        generate_candidates(PARAMS, CONFIG, tokens, lengths, **given)
    assert "\n" not in str(caught.value)


# Whose key is whose.


def test_keys_differ_by_seed_place_turn_and_attempt():
    settings = [(seed, place, turn, attempt) for seed in (0, 1, 2**32, 2**63 - 1) for place in (0, 1, 2)
                for turn in (1, 2, 3) for attempt in (0, 1, 2)]  # fmt: skip
    data = [jax.random.key_data(row_keys(s, [p], [t], [a]))[0].tolist() for s, p, t, a in settings]
    assert len({tuple(words) for words in data}) == len(settings)


def test_a_row_s_key_is_the_same_alone_and_in_a_batch():
    batch = jax.random.key_data(row_keys(7, [5, 0, 9], [1, 2, 3]))
    for row, (place, turn) in enumerate([(5, 1), (0, 2), (9, 3)]):
        np.testing.assert_array_equal(batch[row], jax.random.key_data(row_keys(7, [place], [turn]))[0])
        np.testing.assert_array_equal(batch[row], jax.random.key_data(row_keys(7, [place], [turn], [0]))[0])


# What is put together.


def test_a_request_holds_what_the_cache_does_not():
    starts_B = np.array([8, 0, 5, 0])
    how = {"sampling": Sampling(top_k=5), "max_new_tokens": np.int64(20), "keys": KEYS}
    request = assemble(CONFIG, TOKENS, LENGTHS, starts_B=starts_B, width=16, **how)
    for row, (start, length) in enumerate(zip(starts_B, LENGTHS, strict=True)):
        new = TOKENS[row, start:length].tolist()
        assert request.tokens_BT[row].tolist() == new + [0] * (16 - len(new))
    assert (request.slots, request.bucket, request.candidates, request.processors) == (32, 16, 1, ())
    assert request.settings.limits_M.tolist() == [20] * 4
    assert request.settings.sampling.top_k.tolist() == [5] * 4
    with pytest.raises(ValueError, match="starts run from 0 to 9; that of row 0 is 9, it must be 0 to 8"):
        assemble(CONFIG, TOKENS, LENGTHS, starts_B=[9, 0, 5, 0], **how)


def test_what_is_no_sampling_is_one_clear_line():
    for wrong in (None, 0.7, {"top_k": 5}):
        with pytest.raises(TypeError, match="give a Sampling, such as GREEDY"):
            assemble(CONFIG, TOKENS, LENGTHS, sampling=wrong, max_new_tokens=3, keys=KEYS)
