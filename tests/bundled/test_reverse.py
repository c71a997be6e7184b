"""The bundled backward model: small, of the same tokens, and better than chance at telling what was said."""

import numpy as np
import pytest

import dialogpt_jax as dg
from dialogpt_jax.chat.loading import bundled_directory
from dialogpt_jax.weights.directory import SAFETENSORS_FILE

REVERSE = bundled_directory().with_name("reverse")
SAID = (
    ("Good morning! How did you sleep?", "I slept very well, thank you."),
    ("What kind of movies do you like?", "I like comedies and action movies."),
    ("Do you have any pets?", "Yes, I have a dog and two cats."),
    ("What are you cooking for dinner?", "I am making soup with some bread."),
    ("Who is your favourite singer?", "I love the songs of the Beatles."),
    ("Do you play any sports?", "I play basketball with my friends."),
)


@pytest.fixture(scope="module")
def bots():
    return dg.load(), dg.load(REVERSE)


def test_it_is_small_and_shares_the_tokenizer(bots):
    forward, backward = bots
    assert backward.tokenizer.to_json() == forward.tokenizer.to_json()
    sizes = [(folder / SAFETENSORS_FILE).stat().st_size for folder in (bundled_directory(), REVERSE)]
    assert sizes[1] < 0.7 * sizes[0]
    assert sum(sizes) < 40e6


def test_it_tells_what_was_said_before_a_reply(bots):
    _, bot = bots
    replies = [reply for _, reply in SAID]
    logp_RS = np.array([[_log_prob(bot, [reply, said]) for said, _ in SAID] for reply in replies])
    prior_S = np.array([_log_prob(bot, ["", said]) for said, _ in SAID])
    right = (logp_RS - prior_S).argmax(-1) == np.arange(len(SAID))
    assert right.sum() >= 4, logp_RS - prior_S  # chance is 1 of 6


def test_it_is_the_one_that_reads_backwards(bots):
    """What was said is likelier to it than to the forward model, which is twice its size; the reply is less so."""
    backward, forward = (
        [sum(_log_prob(bot, turns) for turns in order) for order in (SAID, [pair[::-1] for pair in SAID])]
        for bot in reversed(bots)
    )
    assert backward[1] > forward[1]
    assert backward[0] < forward[0]


def _log_prob(bot, turns):
    """log p(last turn and its EOS | the turn before)."""
    eos = bot.config.eos_token_id
    before, last = ([*bot.tokenizer.encode(turn), eos] for turn in turns)
    tokens = np.zeros((1, 48), np.int32)
    tokens[0, : len(before) + len(last)] = before + last
    return float(dg.score(bot.params, bot.config, tokens, [len(before)], [len(before) + len(last)]).total[0])
