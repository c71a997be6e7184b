"""A vocabulary that grows: what was there is as it was, what is new is near the mean, and no new row is like another."""

import dataclasses

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from dialogpt_jax.model import forward
from dialogpt_jax.text.tokenizer import Tokenizer
from dialogpt_jax.training.vocabulary import SPREAD, check_extends, grow_vocabulary

# The same products of the same numbers, in matrices of another height: XLA may add in another order.
TOLERANCE = 1e-5
COMPILED = jax.jit(forward, static_argnums=1)
TOKENS_BT = np.array([[3, 1, 4, 1, 5], [2, 7, 1, 0, 0]], np.int32)  # the second row is shorter


def grown(config, size, seed=0):
    params = fakes.draw_params(config)
    return params, *grow_vocabulary(params, config, size, jax.random.key(seed))


def logits(params, config):
    return np.asarray(COMPILED(params, config, jnp.asarray(TOKENS_BT)))


@pytest.mark.parametrize(("config", "size"), [(fakes.no_dropout(fakes.TINY), 200), (fakes.no_dropout(fakes.ODD), 140)])
def test_old_logits_stay_and_new_rows_lie_around_the_mean(config, size):
    """61 → 200 grows the padded table too (128 → 256); 131 → 140 only uses what was its pad; one is tied, one is not."""
    params, new, larger = grown(config, size)
    old = config.vocab_size
    assert larger == dataclasses.replace(config, vocab_size=size)
    np.testing.assert_allclose(logits(new, larger)[..., :old], logits(params, config)[..., :old], atol=TOLERANCE)
    tables = [(params["wte"]["embedding"], new["wte"]["embedding"])]
    if not config.tie_word_embeddings:
        tables.append((params["lm_head"]["kernel"], new["lm_head"]["kernel"]))
    draws: list[np.ndarray] = []
    for before, after in tables:
        assert after.shape == (larger.padded_vocab_size, config.n_embd)
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after[:old], before[:old])
        known, rows = np.asarray(before[:old]), np.asarray(after[old:size])
        far = (rows - known.mean(axis=0)) / (SPREAD * known.std(axis=0))
        draws.append(far)
        assert np.abs(far).max() < 6  # standard deviations of the draw
        assert 0.8 < far.std() < 1.2
        assert len(np.unique(rows, axis=0)) == size - old
        assert not np.any(after[size:])
    assert len(draws) == 1 or not np.allclose(*draws, atol=0.1)  # the head's rows are no copy of the embedding's


def test_a_new_token_is_about_as_likely_as_an_average_one():
    config = fakes.no_dropout(fakes.TINY)
    _, new, larger = grown(config, 200)
    found_BTV = logits(new, larger)
    mean_BT1 = found_BTV[..., : config.vocab_size].mean(axis=-1, keepdims=True)
    spread = found_BTV[..., : config.vocab_size].std()
    assert np.abs(found_BTV[..., config.vocab_size : 200] - mean_BT1).max() < 0.1 * spread
    assert np.abs(mean_BT1).max() > 2 * np.abs(found_BTV[..., config.vocab_size : 200] - mean_BT1).max()


def test_the_draw_is_the_key_s_and_the_dtype_the_model_s():
    config = fakes.no_dropout(fakes.TINY)
    one, two, other = (grown(config, 70, seed)[1]["wte"]["embedding"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one[61:70], other[61:70])
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), fakes.draw_params(config))
    assert grow_vocabulary(half, config, 70, jax.random.key(0))[0]["wte"]["embedding"].dtype == jnp.bfloat16


def test_the_same_size_changes_nothing_and_a_smaller_one_is_refused():
    config = fakes.no_dropout(fakes.TINY)
    params = fakes.draw_params(config)
    assert grow_vocabulary(params, config, 61, jax.random.key(0)) == (params, config)
    with pytest.raises(
        ValueError, match="the vocabulary would shrink from 61 to 60; take a tokenizer that holds the old"
    ):
        grow_vocabulary(params, config, 60, jax.random.key(0))


def test_an_extension_keeps_every_id():
    old = fakes.tiny_tokenizer()
    backend = tokenizers.Tokenizer.from_str(old._backend.to_str())
    backend.add_tokens(["☕☕"])
    check_extends(old, Tokenizer(backend))
    check_extends(old, old)
    with pytest.raises(ValueError, match="does not extend the model's: id 320 is '☕☕' there and nothing here"):
        check_extends(Tokenizer(backend), old)
    with pytest.raises(
        ValueError, match=r"does not extend the model's: id \d+ is .*; append tokens, or train from scratch"
    ):
        check_extends(old, fakes.tiny_tokenizer(330))
    # Two ids of the same text, such as a special token and its characters, are told apart by their names.
    renamed = Tokenizer(tokenizers.Tokenizer.from_str(old._backend.to_str().replace("<|endoftext|>", "<|other|>")))
    with pytest.raises(ValueError, match=r"id 319 is '<\|endoftext\|>' there and '<\|other\|>' here"):
        check_extends(old, renamed)
