"""A prompt that is read some columns at a time is in the cache as if it had been read at once.

Letters: B rows, T tokens, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import ODD, draw_params

from dialogpt_jax.cache import cache_dtype, init_cache
from dialogpt_jax.decoding import prefill
from dialogpt_jax.quantization import quantize

PARAMS = draw_params(ODD)
LENGTHS = np.array([24, 1, 7, 12, 13])  # to the end of the last, the first and between, and one past it
STARTS = np.array([0, 3, 1, 0, 2])
TOLERANCE = 2e-5


def read(params, monkeypatch, at_once):
    """Logits, cache and the compiled text; `at_once` tokens go through the model together."""
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", at_once)
    monkeypatch.setattr(prefill, "FEWEST", 1)
    tokens_BT = np.random.default_rng(0).integers(0, ODD.vocab_size, (5, 24)).astype(np.int32)
    cache = init_cache(ODD, 5, 32, cache_dtype(params))
    run = jax.jit(lambda *args: prefill.prefill(params, ODD, *args))
    args = jnp.asarray(tokens_BT), jnp.asarray(LENGTHS), cache, jnp.asarray(STARTS)
    return *run(*args), run.lower(*args).compile().as_text()


def tokens_that_are_held(cache):
    """Each leaf as (B, H, S, …), 0 behind a row's last token, where a pad's lies; and how far apart two may be."""
    held_BS = np.arange(32) < (STARTS + LENGTHS)[:, None]
    for leaf in jax.tree.leaves(cache):
        apart = (
            1 if leaf.dtype == jnp.int8 else TOLERANCE
        )  # a value of 8 bits may be rounded otherwise; its scale is not
        leaf = np.asarray(leaf, np.float32).reshape(5, -1, 32, leaf.shape[-1])
        yield np.where(held_BS[:, None, :, None], leaf, 0), apart


@pytest.mark.parametrize("change", [lambda params: params, quantize], ids=["float32", "int8"])
def test_columns_are_read_as_all_at_once(change, monkeypatch):
    params = change(PARAMS)
    expected, whole, text = read(params, monkeypatch, 1000)
    found, cache, text_by_columns = read(params, monkeypatch, 5 * 6)
    assert " while(" in text_by_columns
    assert " while(" not in text
    real = slice(ODD.vocab_size)
    np.testing.assert_allclose(found[:, real], expected[:, real], atol=TOLERANCE if params is PARAMS else 0.02)
    for (one, apart), (other, _) in zip(*map(tokens_that_are_held, (cache, whole)), strict=True):
        np.testing.assert_allclose(one, other, atol=apart)


@pytest.mark.parametrize(
    ("rows", "width", "columns"),
    [(8, 1024, 128), (8, 100, 100), (1, 1024, 1024), (4, 600, 150), (999, 64, 32), (64, 33, 33)],
)
def test_columns_at_once(rows, width, columns):
    assert prefill.columns_at_once(rows, width) == columns
