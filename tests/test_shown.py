"""What public values show of themselves: a few lines at a prompt, never the parameters; tables in a notebook."""

import fakes
import jax
import numpy as np
import optax
import pytest

import dialogpt_jax as dg
from dialogpt_jax.replies.candidates import Candidates

GENERATED = dg.Generated(
    np.zeros((3, 400), np.int32), np.array([7, 400, 2]), np.array([True, False, True]), np.zeros((3, 400))
)
MOST_LINES, MOST_CHARACTERS = 24, 24 * 80  # a screen


def candidate(text="Hello.", tokens=3, finished=True):
    logprobs = np.full(tokens, -0.5, np.float32)
    return dg.Candidate(text, np.arange(tokens, dtype=np.int32), logprobs, float(logprobs.sum()), finished)


@pytest.fixture(scope="module")
def bot():
    return fakes.tiny_bot()


@pytest.fixture(scope="module")
def values(bot):
    state = dg.init_state(bot.params, optax.adam(1e-3), jax.random.key(0))
    history = [{"step": i, "loss": 9.0 - i, "rate": 1.0} for i in range(8)] + [{"step": 8, "valid_loss": 2.5}]
    return {
        "bot": bot,
        "tokenizer": bot.tokenizer,
        "chat": dg.Chat(bot, turns=["x" * 5000, "y\n" * 500] * 40),
        "candidate": candidate("z" * 9000),
        "candidates": Candidates(candidate("z" * 9000) for _ in range(500)),
        "fitted": dg.Fitted(bot.params, bot.config, state, history, "SIGTERM"),
        "state": state,
        "shapes of a state": jax.eval_shape(lambda: state),
        "config": bot.config,
        "sampling": dg.PAPER,
        "options": dg.TrainOptions(),
        "generated": GENERATED,
        "scores": dg.Scores(np.zeros((3, 900)), np.array([-5.0, -2.5, -9]), np.zeros(3)),
        "example": dg.Example(np.arange(5000), np.ones(5000)),
    }


def test_each_fits_a_screen(values):
    for name, value in values.items():
        shown = repr(value)
        assert shown.count("\n") < MOST_LINES, name
        assert len(shown) <= MOST_CHARACTERS, name


def test_what_they_show(values):
    shown = {name: repr(value) for name, value in values.items()}
    assert shown["bot"] == (
        "Bot(49,024 parameters in float32: 2 layers of width 32, 4 heads, 96 positions, 320 token ids)"
    )
    assert shown["tokenizer"] == "Tokenizer(320 ids, 319 ends a turn)"
    assert shown["fitted"] == "Fitted(49,024 parameters, 0 steps, loss 2, valid_loss 2.5, stopped by SIGTERM)"
    assert shown["state"] == "TrainState(step 0, 53,120 parameters, 106,241 numbers in opt_state)"
    assert repr(candidate(finished=False)) == "Candidate('Hello.', logprob -1.50, 3 tokens, cut)"
    assert shown["generated"] == "Generated(3 replies of 2 to 400 tokens, 2 finished; tokens and logprobs (3, 400))"
    assert shown["scores"] == "Scores(3 replies, log P from -9.00 to -2.50; logprobs (3, 900))"
    assert repr(jax.eval_shape(lambda: GENERATED)) == "Generated(tokens and logprobs (3, 400))"
    assert shown["candidates"].splitlines()[-1] == " … 484 more]"


def test_tables_hold_every_text_as_text():
    table = Candidates([candidate("<b>bold</b>"), candidate("Hi & bye", finished=False)])._repr_html_()
    assert "&lt;b&gt;bold&lt;/b&gt;" in table
    assert "Hi &amp; bye" in table
    assert table.count("<tr>") == 3
    assert ">cut<" in table
    assert "more" not in table
    long = Candidates([candidate()] * 20)._repr_html_()
    assert long.count("<tr>") == 17
    assert long.endswith("<p>… 4 more</p>")
