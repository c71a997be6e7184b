"""What the anti-language model takes off, against the same by hand, for rows that end at different times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counter import count_compilations
from fakes import tiny_bot

import dialogpt_jax as dg
from dialogpt_jax.decoding.processors import ReplyState, TokenLists

# float32 logits about 4 wide, computed for another number of tokens at once.
TOLERANCE = 2e-5
WEIGHT, TOKENS = 0.6, 4


@pytest.fixture(scope="module")
def bot():
    return tiny_bot(end=3.0)


@pytest.mark.long
def test_it_is_the_model_s_own_after_a_lone_eos(bot):
    """Rows with 0, 2, 3 and 4 tokens so far: the last has all that are changed."""
    eos, vocab = bot.config.eos_token_id, bot.config.padded_vocab_size
    replies, counts = [[], [5, 9], [7, 7, 3], [1, 2, 3, 4]], [0, 2, 3, 4]
    tokens_MR = np.array([reply + [eos] * (8 - len(reply)) for reply in replies], np.int32)
    state = ReplyState(tokens_MR, jnp.array(counts), jnp.full(4, 8), {}, TokenLists(), eos)
    logits_MV = jax.random.normal(jax.random.key(0), (4, vocab)).at[:, 11].set(-jnp.inf)
    anti = dg.anti_lm(bot.params, bot.config, weight=WEIGHT, tokens=TOKENS)
    found_MV = jax.jit(lambda *args: args[0](*args[1:]))(anti, logits_MV, state)
    for row, reply in enumerate(replies[:3]):
        ids = np.array([[eos, *reply]] * 2)
        alone_V = jax.nn.log_softmax(dg.forward(bot.params, bot.config, ids)[0, -1])
        expected_V = np.asarray(logits_MV[row, : len(alone_V)] - WEIGHT * alone_V)
        np.testing.assert_allclose(found_MV[row, : len(alone_V)], expected_V, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(found_MV[3], logits_MV[3])
    assert (found_MV[:, 11] == -jnp.inf).all()


def test_a_reply_with_it(bot):
    """Weight 0 changes nothing, another weight compiles nothing, a stream says the same, logprobs stay the model's."""

    def how(weight):
        return {
            "sampling": dg.Sampling(temperature=None, processors=[dg.anti_lm(bot.params, bot.config, weight=weight)])
        }

    dialogues = [["Hello, how are you today?"], ["no"], ["Do you like", "the rain?"]]
    plain = bot.replies(dialogues, sampling=dg.GREEDY, max_new_tokens=12)
    assert bot.replies(dialogues, **how(0.0), max_new_tokens=12) == plain
    with count_compilations() as programs:
        found = bot.answers(dialogues, **how(0.9), max_new_tokens=12)
    assert programs == []
    assert [answer.text for answer in found] != plain
    assert "".join(bot.stream(dialogues[1], **how(0.9), max_new_tokens=12)) == found[1].text
    scored = bot.score(dialogues[2], [found[2]], max_new_tokens=12)[0]
    np.testing.assert_allclose(scored.logprobs, found[2].logprobs, rtol=0, atol=1e-4)


def test_wrong_numbers_are_one_line(bot):
    with pytest.raises(ValueError, match=r"weight is 1\.5; it must be a finite number from 0 to 1"):
        dg.anti_lm(bot.params, bot.config, weight=1.5)
    with pytest.raises(ValueError, match="tokens is 0; it must be a whole number from 1"):
        dg.anti_lm(bot.params, bot.config, tokens=0)
