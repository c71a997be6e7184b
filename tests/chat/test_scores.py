"""`bot.score` and `bot.scores`: what the decoding reported, what `dg.score` says of a text alone; batches, pads, pandas."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counter import count_compilations

import dialogpt_jax as dg
from dialogpt_jax.decoding import score, score_batches

# Of a token's log-probability in float32, computed in another shape; a reply has up to 16 of them.
TOLERANCE = 1e-4
DIALOGUES = [["Hello."], ["What are you doing this evening?", "Nothing much.", "Do you like the rain?"]]
REPLIES = [["I am fine.", "No.", "The rain is not for me."], ["Reading the news.", "Hello, how are you?", "No."]]


@pytest.fixture(scope="module")
def bot():
    return fakes.tiny_bot()


@pytest.fixture(scope="module")
def found(bot):
    return bot.scores(DIALOGUES, REPLIES)


def alone(bot, context, reply):
    """The log-probabilities of a reply's ids after a context's, by `dg.score`."""
    row_BT = np.zeros((1, bot.config.n_positions), np.int32)
    row_BT[0, : len(context) + len(reply)] = [*context, *reply]
    scores = dg.score(bot.params, bot.config, row_BT, [len(context)], [len(context) + len(reply)])
    return np.asarray(scores.logprobs[0, len(context) : len(context) + len(reply)])


def assert_same(ones, others, tolerance=TOLERANCE):
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert one.text == other.text
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=tolerance)
        np.testing.assert_allclose(one.pmi, other.pmi, atol=20 * tolerance)


def test_each_is_what_dg_score_says_of_it_alone(bot, found):
    eos = bot.config.eos_token_id
    for turns, texts, own in zip(DIALOGUES, REPLIES, found, strict=True):
        assert [each.text for each in own] == texts
        for text, each in zip(texts, own, strict=True):
            ids = [*bot.tokenizer.encode(text), eos]
            logprobs, without = alone(bot, bot.encode(turns), ids), alone(bot, [eos], ids)
            assert (each.tokens.tolist(), each.finished, each.logprobs.dtype) == (ids, True, np.float32)
            np.testing.assert_allclose(each.logprobs, logprobs, atol=TOLERANCE)
            np.testing.assert_allclose(each.logprob, logprobs.sum(), atol=20 * TOLERANCE)
            np.testing.assert_allclose(each.mean, logprobs.mean(), atol=TOLERANCE)
            np.testing.assert_allclose(each.perplexity, np.exp(-logprobs.mean()), rtol=2 * TOLERANCE)
            np.testing.assert_allclose(each.pmi, logprobs.sum() - without.sum(), atol=40 * TOLERANCE)
    assert len({len(each.tokens) for own in found for each in own}) > 3


def test_what_was_drawn_is_scored_as_it_was_drawn(bot):
    """By its own ids, which need not be those of its text, and without EOS where it was cut."""
    drawn = bot.candidates(DIALOGUES[1], n=4, sampling=dg.Sampling(temperature=1.5), max_new_tokens=12)
    assert len({each.finished for each in drawn}) == 2
    assert any(bot.tokenizer.encode(each.text) != each.tokens.tolist() for each in drawn)
    for each, own in zip(drawn, bot.score(DIALOGUES[1], drawn), strict=True):
        assert (each.text, each.finished, each.tokens.tolist()) == (own.text, own.finished, own.tokens.tolist())
        np.testing.assert_allclose(each.logprobs, own.logprobs, atol=TOLERANCE)
        np.testing.assert_allclose(each.perplexity, own.perplexity, rtol=2 * TOLERANCE)
        assert each.pmi is None


def test_neither_the_batch_nor_the_order_nor_how_it_is_cut_changes_a_score(bot, found, monkeypatch):
    for turns, texts, own in zip(DIALOGUES, REPLIES, found, strict=True):
        assert_same(bot.score(turns, texts), own)
        assert_same(bot.score(turns, texts[::-1]), own[::-1])
    one_each = bot.scores([*DIALOGUES, DIALOGUES[0]], [REPLIES[0][1], REPLIES[1][0], REPLIES[0][2]])
    assert_same(one_each, [found[0][1], found[1][0], found[0][2]])
    seen = []
    monkeypatch.setattr(score_batches, "TOKENS", 64)  # pieces of four replies, a context a batch
    many = [text for text in REPLIES[0] for _ in range(3)]
    cut = bot.scores([DIALOGUES[0], DIALOGUES[1]], [many, REPLIES[1]], progress=lambda *at: seen.append(at))
    assert_same(cut[0], [each for each in found[0] for _ in range(3)])
    assert_same(cut[1], found[1])
    assert len(seen) > 4
    assert seen == sorted(seen)
    assert seen[-1] == (12 + 5, 12 + 5)  # five different ones, whose P(r) is needed


def test_many_lengths_compile_few_programs(bot, found):
    word = "rain "
    texts = [word * n for n in range(1, 5)]
    lengths = [(turns, many) for turns in (1, 2, 3) for many in range(5, 9)]
    with count_compilations() as programs:
        for turns, many in lengths:
            assert len(bot.score(["No."] * turns, (texts * 2)[:many])) == many
    assert len(programs) <= 2  # contexts of up to 64 tokens, 8 replies of up to 16; and their 4 different ones


def test_a_context_loses_whole_turns_and_a_reply_must_fit_behind_it(bot):
    turns = ["Nothing much, reading the news."] * 9
    context = bot.encode(turns)
    assert len(context) < sum(len(bot.tokenizer.encode(turn)) + 1 for turn in turns)
    [each] = bot.score(turns, ["No."])
    np.testing.assert_allclose(each.logprobs, alone(bot, context, each.tokens.tolist()), atol=TOLERANCE)
    long = "z" * (96 - len(context))
    with pytest.raises(dg.DialogueError, match=rf"replies\[1\] has {len(long) + 1} tokens and its context") as caught:
        bot.score(turns, ["No.", long])
    assert "96 together at most; shorten it, or give a larger max_new_tokens" in str(caught.value)
    [each] = bot.score(turns, [long[:-1]])
    assert len(each.tokens) + len(context) == 96
    assert bot.score(turns, []) == bot.scores([], []) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_of_fewer_bits(bot, kind):
    params = dg.quantize(bot.params) if kind == "int8" else jax.tree.map(lambda x: x.astype(jnp.bfloat16), bot.params)
    small = dg.Bot(params, bot.config, bot.tokenizer)
    tolerance = 1e-3 if kind == "int8" else 0.3  # as wide as bfloat16 rounds logits of about 30
    for each in small.score(DIALOGUES[1], REPLIES[1]):
        context = small.encode(DIALOGUES[1])
        np.testing.assert_allclose(each.logprobs, alone(small, context, each.tokens.tolist()), atol=tolerance)


def test_damaged_weights_score_nothing(bot):
    params = bot.params | {"ln_f": {"scale": bot.params["ln_f"]["scale"] * np.nan, "bias": bot.params["ln_f"]["bias"]}}
    with pytest.raises(dg.NonFiniteLogits):
        dg.Bot(params, bot.config, bot.tokenizer).score(DIALOGUES[1], REPLIES[1])


def test_memory_does_not_grow_with_replies_times_vocabulary(bot):
    config = dg.GPT2Config(vocab_size=50_257, n_positions=64, n_embd=8, n_layer=1, n_head=1, n_inner=8)
    params = jax.eval_shape(lambda: dg.init_params(config, jax.random.key(0)))
    shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, 64), (1,), (1, 200, 16), (1, 200))]
    used = score._score_candidates.lower(params, config, *shapes).compile().memory_analysis()
    if used is None:
        pytest.skip("this platform does not say what memory a program takes")
    assert used.temp_size_in_bytes < 200 * 16 * config.padded_vocab_size * 4 / 4


def test_pandas_takes_and_gives_them(bot, found):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(bot.score(DIALOGUES[0], pandas.Series(REPLIES[0])))
    assert list(frame) == [
        "text",
        "tokens",
        "logprobs",
        "logprob",
        "finished",
        "pmi",
        "pieces",
        "forwards",
        "accepted",
        "sense",
        "mean",
        "perplexity",
    ]
    assert frame["text"].tolist() == REPLIES[0]
    np.testing.assert_allclose(frame["pmi"], [each.pmi for each in found[0]], atol=20 * TOLERANCE)
    table = pandas.DataFrame({"turns": DIALOGUES, "reply": [own[0] for own in REPLIES]})
    assert_same(bot.scores(table["turns"], table["reply"]), [own[0] for own in found])
    assert "<th>PMI</th>" in found[0]._repr_html_()
    assert ", pmi " in repr(found[0])
