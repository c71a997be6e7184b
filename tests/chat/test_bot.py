"""The bot: what it takes as turns, that a call repeats, and that a row is the same alone, in a batch and streamed.

Tokens are compared exactly: in float32 two batch shapes differ by rounding only, and a draw by one uniform changes only
where it falls into such a difference.
"""

import dataclasses
import json
import logging
import re

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counter import count_compilations

import dialogpt_jax as dg
from dialogpt_jax.chat.batched import checked_rows
from dialogpt_jax.chat.session import Chat
from dialogpt_jax.replies.keys import row_keys
from dialogpt_jax.replies.settings import DEFAULT_SAMPLING
from dialogpt_jax.text.dialogue import TruncationWarning

WORDS = ("Hello", "how are you", "reading the news", "☕", "do you like rain?", "no", "And the evening?")


@pytest.fixture(scope="module")
def bot():
    return fakes.tiny_bot()


def drawn_dialogues(count, most=3):
    rng = np.random.default_rng(count)
    return [[f"{WORDS[rng.integers(7)]} {i}" for _ in range(rng.integers(1, most + 1))] for i in range(count)]


def test_the_fake_is_worth_testing_with(bot):
    found = [bot.candidates(turns, n=1, seed=i)[0] for i, turns in enumerate(drawn_dialogues(20))]
    lengths = {len(c.tokens) for c in found}
    assert len(lengths) > 4
    assert sum(c.finished for c in found) > 10
    assert len({c.text for c in found}) > 15
    assert any("\ufffd" in c.text for c in found)  # bytes that are no character are there too


def test_a_text_a_list_and_messages_are_the_same_dialogue(bot):
    messages = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
    assert bot.reply("Hi!") == bot.reply(["Hi!"]) == bot.reply(messages[:1])
    assert bot.reply(messages) == bot.reply(["Hi!", "Hello."])
    assert "".join(bot.stream(messages)) == bot.reply(messages)
    assert bot.replies([messages, ["Hi!"]]) == bot.replies([["Hi!", "Hello."], messages[:1]])


def test_a_reply_depends_on_every_turn_of_its_context(bot):
    turns = ["Hello", "how are you", "reading the news"]
    others = [["Hallo", *turns[1:]], [turns[0], "how are we", turns[2]], [*turns[:2], "reading the rain"], turns[2:]]
    assert bot.reply(turns, seed=4) not in [bot.reply(other, seed=4) for other in others]


def test_a_call_repeats_and_another_seed_does_not(bot):
    assert bot.reply("Hi!") == bot.reply("Hi!", seed=0)
    assert len({bot.reply("Hi!", seed=seed) for seed in range(8)}) > 4
    assert bot.reply("Hi!", seed=2**63 - 1) != bot.reply("Hi!", seed=2**31 - 1)
    # Both halves of a long seed count.
    keys = [np.asarray(jax.random.key_data(row_keys(seed, [0], [1]))).tolist() for seed in (1, 2**32, 2**32 + 1, 2**33)]
    assert len({json.dumps(key) for key in keys}) == 4


def test_keys_are_jax_s_own_and_take_no_program():
    seed, *rows = 5 + (7 << 32), (0, 3, 2**32 - 1), (1, 4, 9), (0, 2, 2**31)
    with count_compilations() as programs:
        keys_B = row_keys(seed, *rows)
    assert programs == []
    for key, folded in zip(keys_B, zip(*rows, strict=True), strict=True):
        wanted = jax.random.fold_in(jax.random.key(5), 7)
        for data in folded:
            wanted = jax.random.fold_in(wanted, np.uint32(data))
        assert (jax.random.key_data(key) == jax.random.key_data(wanted)).all()


def test_beams_give_the_best_of_their_replies(bot):
    turns = ["Hello", "how are you", "no"]
    found = bot.candidates(turns, beams=4, max_new_tokens=12)
    assert len(found) == 4
    assert len({tuple(one.tokens) for one in found}) == 4
    assert bot.reply(turns, beams=4, max_new_tokens=12) == found[0].text
    assert [one.text for one in bot.candidates(turns, 2, beams=4, max_new_tokens=12)] == [one.text for one in found[:2]]
    means = [one.logprob / len(one.tokens) for one in found]
    assert means == sorted(means, reverse=True)
    assert all(one.finished == (one.tokens[-1] == bot.config.eos_token_id) for one in found)
    assert bot.reply(turns, beams=1, max_new_tokens=12) == bot.reply(turns, sampling=dg.GREEDY, max_new_tokens=12)
    shorter = bot.reply(turns, beams=4, max_new_tokens=12, length_penalty=-4.0)
    assert len(bot.tokenizer.encode(shorter)) <= len(found[0].tokens)
    blocked = dg.Sampling(0, bad_words=[int(found[0].tokens[0])])
    assert found[0].tokens[0] not in bot.candidates(turns, 1, beams=4, max_new_tokens=12, sampling=blocked)[0].tokens
    drawn = {bot.reply(turns, beams=2, sampling=dg.Sampling(2.0), seed=seed, max_new_tokens=12) for seed in range(4)}
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"beams": 0}, "beams is 0; it must be a whole number"),
        ({"beams": 2, "n": 3}, "n_best is 3, and there are 2 beams"),
        ({"beams": 161}, "beams is 161; a vocabulary of 320 has room for 160"),
        ({"beams": 2, "early_stopping": "soon"}, "early_stopping is 'soon'; give True, False or 'never'"),
        ({"beams": 2, "sampling": dg.Sampling(0, suppress_tokens=list(range(320)))}, "no reply is possible"),
    ],
    ids=str,
)
def test_wrong_beams_are_one_line(bot, how, said):
    with pytest.raises(ValueError, match=said):
        bot.candidates("Hi!", max_new_tokens=3, **how)


def test_greedy_does_not_look_at_the_seed_and_top_k_1_is_greedy(bot):
    turns = ["Hello", "how are you"]
    greedy = bot.reply(turns, sampling=dg.GREEDY)
    assert greedy == bot.reply(turns, sampling=dg.GREEDY, seed=9)
    assert greedy == bot.reply(turns, sampling=dg.Sampling(top_k=1), seed=3)
    assert greedy != bot.reply(turns, sampling=dg.PAPER, seed=3)


def test_no_seed_draws_one_logs_it_and_can_be_repeated(bot, caplog):
    with caplog.at_level(logging.WARNING, logger="dialogpt_jax"):
        reply = bot.reply("Hi!", seed=None)
        streamed = "".join(bot.stream("Hi!", seed=None))
        several = bot.replies([["Hi!"], ["Hello"]], seed=None)
        chat = bot.chat(seed=None)
    seeds = [int(re.search(r"drew seed (\d+);", record.getMessage())[1]) for record in caplog.records]
    assert len(set(seeds)) == 4
    assert bot.reply("Hi!", seed=seeds[0]) == reply
    assert bot.reply("Hi!", seed=seeds[1]) == streamed
    assert bot.replies([["Hi!"], ["Hello"]], seed=seeds[2]) == several
    assert chat.seed == seeds[3]


@pytest.mark.parametrize(
    ("max_new_tokens", "sampling"),
    [(1, DEFAULT_SAMPLING), (12, DEFAULT_SAMPLING), (40, DEFAULT_SAMPLING), (12, dg.GREEDY)],
)
def test_pieces_join_to_the_reply_and_are_whole_characters(bot, max_new_tokens, sampling):
    for i, turns in enumerate(drawn_dialogues(6, most=2)):
        how = {"sampling": sampling, "seed": i, "max_new_tokens": max_new_tokens}
        pieces = list(bot.stream(turns, **how))
        assert "".join(pieces) == bot.reply(turns, **how)
        assert all(pieces)


def test_a_cup_comes_in_one_piece(bot, monkeypatch):
    cup, smile = bot.tokenizer.encode("☕"), bot.tokenizer.encode("😀")
    assert (len(cup), len(smile)) == (3, 4)
    said = [*bot.tokenizer.encode("a"), *cup, *smile, *cup[:2], *bot.tokenizer.encode("b"), *cup[:1]]
    monkeypatch.setattr(Chat, "_tokens", lambda self, context, keys_B: iter([*said, bot.config.eos_token_id]))
    assert list(bot.stream("Hi!")) == ["a", "☕", "😀", "\ufffdb", "\ufffd"]


def test_candidates_share_a_prefix_and_the_first_is_the_reply(bot):
    turns = ["Hello", "how are you", "reading"]
    few, many = bot.candidates(turns, n=3, seed=5), bot.candidates(turns, n=8, seed=5)
    assert [c.text for c in few] == [c.text for c in many[:3]]
    assert few[0].text == bot.reply(turns, seed=5)
    assert len({c.text for c in many}) > 4
    for c in many:
        assert isinstance(c, dg.Candidate)
        assert c.tokens.dtype == np.int32
        assert c.logprobs.dtype == np.float32
        assert len(c.tokens) == len(c.logprobs) >= 1
        assert c.finished == (c.tokens[-1] == bot.config.eos_token_id)
        assert c.text == bot.tokenizer.decode(c.tokens)
        assert c.logprob == pytest.approx(float(c.logprobs.sum()))
    assert bot.config.eos_token_id not in np.concatenate([c.tokens[:-1] for c in many])


def test_a_candidates_logprobs_are_those_of_the_plain_model(bot):
    context = bot.encode(["Hello", "how are you"])
    found = bot.candidates(["Hello", "how are you"], n=3)
    tokens_BT = np.zeros((3, 64), np.int32)
    for row, c in enumerate(found):
        tokens_BT[row, : len(context) + len(c.tokens)] = [*context, *c.tokens]
    logits_BTV = jax.jit(dg.forward, static_argnums=1)(bot.params, bot.config, tokens_BT)
    logprobs_BTV = np.asarray(jax.nn.log_softmax(logits_BTV, axis=-1))
    for row, c in enumerate(found):
        at = np.arange(len(c.tokens)) + len(context) - 1
        # Float32: sums over 320 logits in another order.
        np.testing.assert_allclose(c.logprobs, logprobs_BTV[row, at, c.tokens], rtol=2e-4, atol=2e-4)


def test_replies_are_in_order_and_the_same_in_any_batch(bot):
    dialogues = drawn_dialogues(45, most=2)
    whole = bot.replies(dialogues, seed=1)
    assert whole[0] == bot.reply(dialogues[0], seed=1)  # `reply` is place 0
    assert sorted(map(len, map(bot.encode, dialogues))) != list(map(len, map(bot.encode, dialogues)))
    for batch_size in (1, 7):
        assert bot.replies(dialogues, seed=1, batch_size=batch_size) == whole
    assert bot.replies(dialogues[:20], seed=1) == whole[:20]
    # The seed and the place are what draws: the same dialogue at two places differs.
    assert len(set(bot.replies([["Hello"]] * 7, seed=1, batch_size=7))) > 3
    greedy = [bot.reply(turns, sampling=dg.GREEDY) for turns in dialogues[:20]]
    assert bot.replies(dialogues[:20], sampling=dg.GREEDY, batch_size=7) == greedy


@pytest.mark.long
def test_value_i_of_a_sampling_is_for_dialogue_i(bot):
    """Every other dialogue is in a longer bucket, so batches are in another order than the caller's."""
    dialogues = [[f"{WORDS[i % 7]} {i}", "€" * 24 if i % 2 else "no"] for i in range(9)]
    how = {"seed": 1, "max_new_tokens": 12}
    assert [len(bot.encode(turns, max_new_tokens=12)) > 64 for turns in dialogues] == [i % 2 == 1 for i in range(9)]
    top_k = np.where(np.arange(9) % 3 == 0, 1, 10)
    each = dg.Sampling(temperature=np.linspace(0.5, 1.5, 9), top_k=top_k)
    found = bot.replies(dialogues, sampling=each, batch_size=4, **how)
    # A row's key is of its place, so the reply of dialogue i with its own values is that of a call with them for all.
    for i in range(9):
        alone = dg.Sampling(temperature=each.temperature[i], top_k=int(top_k[i]))
        assert found[i] == bot.replies(dialogues, sampling=alone, batch_size=4, **how)[i]
    greedy = bot.replies(dialogues, sampling=dg.GREEDY, batch_size=4, **how)
    assert [found[i] == greedy[i] for i in range(9)] == (top_k == 1).tolist()
    for batch_size in (1, None):
        assert bot.replies(dialogues, sampling=each, batch_size=batch_size, **how) == found


def test_values_for_rows_fit_the_dialogues_or_are_one_line(bot):
    def three(kind=np.array):
        return dg.Sampling(temperature=kind([0.5, 0.7, 0.9]))

    with pytest.raises(
        ValueError, match=r"temperature has values of the shape \(3,\); .* one for each of the 2 dialogues"
    ):
        bot.replies([["Hi"], ["Hello"]], sampling=three())
    with pytest.raises(ValueError, match=r"of the shape \(1,\); give one number, or one for each of the 2 dialogues"):
        bot.replies([["Hi"], ["Hello"]], sampling=dg.Sampling(temperature=np.array([0.9])))
    for call in (bot.reply, bot.candidates, bot.stream, lambda turns, sampling: bot.chat(sampling=sampling)):
        with pytest.raises(ValueError, match=r"temperature has values of the shape \(3,\); give one number, as"):
            call("Hi", sampling=three())
    one = dg.Sampling(temperature=np.array([0.9]))
    assert bot.reply("Hi", sampling=one) == bot.reply("Hi", sampling=dg.Sampling(temperature=0.9))
    assert "".join(bot.stream("Hi", sampling=one)) == bot.reply("Hi", sampling=one)
    pandas = pytest.importorskip("pandas")
    dialogues = [["Hi"], ["Hello"], ["no"]]
    assert bot.replies(dialogues, sampling=three(pandas.Series)) == bot.replies(dialogues, sampling=three())


def test_answers_are_replies_with_their_figures(bot):
    dialogues = drawn_dialogues(5)
    answers = bot.answers(dialogues, seed=1, batch_size=7)
    assert [answer.text for answer in answers] == bot.replies(dialogues, seed=1, batch_size=7)
    alone = bot.candidates(dialogues[0], n=1, seed=1)[0]
    assert answers[0].tokens.tolist() == alone.tokens.tolist()
    assert answers[0].finished == alone.finished
    np.testing.assert_allclose(
        answers[0].logprobs, alone.logprobs, rtol=2e-4, atol=2e-4
    )  # float32, another batch shape


def test_replies_of_none_and_of_an_iterator(bot):
    assert bot.replies([]) == []
    dialogues = drawn_dialogues(3)
    expected = bot.replies(dialogues, batch_size=7)
    assert bot.replies(iter(dialogues), batch_size=7) == expected
    assert bot.replies(tuple(map(tuple, dialogues)), batch_size=7) == expected


def test_progress_is_told_as_replies_end(bot):
    told = []
    bot.replies(drawn_dialogues(17), batch_size=7, progress=lambda done, all: told.append((done, all)))
    done = [number for number, _ in told]
    assert done == sorted(set(done))
    assert told[-1] == (17, 17)
    assert len(told) > 3


@pytest.mark.long
def test_a_thousand_dialogues_compile_no_more_than_128_do():
    bot = fakes.tiny_bot(n_positions=100)
    # Short ones, and ones that the whole context is needed for.
    dialogues = [[f"Hello, how are you {i}?", "reading", "the news" * (1 + 9 * (i % 3 == 0))] for i in range(1000)]
    how = {"sampling": dg.PAPER, "max_new_tokens": 5}
    jax.clear_caches()
    with count_compilations() as few:
        bot.replies(dialogues[:128], **how)
    jax.clear_caches()
    with count_compilations() as many:
        bot.replies(dialogues, **how)
    assert 1 <= len(many) <= len(few)
    assert len({len(bot.encode(turns, max_new_tokens=5)) > 64 for turns in dialogues}) == 2
    with count_compilations() as again:
        bot.replies(dialogues[300:364], **{**how, "max_new_tokens": 6, "sampling": dg.Sampling(top_k=3)})
    assert len(again) == 0


@pytest.mark.parametrize(
    "dialogues",
    [["Hi", "Hello"], "Hi", [{"role": "user", "content": "Hi"}], [["Hi"], "Hello"], ("Hi",)],
)
def test_a_plain_list_of_texts_is_refused_and_told_what_to_do(bot, dialogues):
    with pytest.raises(ValueError, match=r"a list of dialogues, each a list of turns: .*; for one dialogue use reply"):
        bot.replies(dialogues)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bot: bot.reply([]), "no turn"),
        (lambda bot: bot.reply("  "), "empty"),
        (lambda bot: bot.reply(["Hi", ""]), "turn 2, the one to reply to, is empty"),
        (lambda bot: bot.reply([{"role": "user", "content": None}]), "content of message 1 is NoneType"),
        (lambda bot: bot.reply("\ud83d"), "lone surrogate, U\\+D83D"),
        (lambda bot: list(bot.stream("\ud83d")), "lone surrogate"),
        (lambda bot: bot.reply(b"Hi"), "got bytes"),
        (lambda bot: bot.replies([["Hi"], []]), "dialogue 1: the dialogue has no turn"),
        (lambda bot: bot.replies([["Hi"], b"Hi"]), "dialogue 1: .*bytes"),
        (lambda bot: bot.replies(None), "got NoneType"),
        (lambda bot: bot.replies([["Hi"]], batch_size=0), "batch_size is 0"),
        (lambda bot: bot.candidates("Hi", n=0), "n is 0"),
        (lambda bot: bot.candidates("Hi", n=-3), "n is -3"),
        (lambda bot: bot.reply("Hi", max_new_tokens=0), "max_new_tokens is 0; it must be a whole number from 1"),
        (lambda bot: bot.reply("Hi", max_new_tokens=True), "max_new_tokens is True"),
        (lambda bot: bot.reply("Hi", max_new_tokens=2.5), "max_new_tokens is 2.5"),
        (lambda bot: bot.chat(max_new_tokens=0), "max_new_tokens is 0"),
        (lambda bot: bot.stream("Hi", max_new_tokens=0), "max_new_tokens is 0"),
        (lambda bot: bot.replies([["Hi"]], max_new_tokens=0), "max_new_tokens is 0"),
        (lambda bot: bot.reply("Hi", seed=-1), "seed is -1; it must be a whole number from 0"),
        (lambda bot: bot.reply("Hi", seed=True), "seed is True"),
        (lambda bot: bot.reply("Hi", seed=1.5), "seed is 1.5"),
        (lambda bot: bot.reply("Hi", seed=2**63), f"seed is {2**63}"),
        (lambda bot: bot.chat(seed=-1), "seed is -1"),
        (lambda bot: bot.stream("Hi", seed="7"), "seed is '7'"),
        (lambda bot: dg.Sampling(temperature=-1), "temperature is -1"),
        (lambda bot: dg.Sampling(top_k=0), "top_k is 0"),
        (lambda bot: dg.Sampling(top_p=1.5), "top_p is 1.5"),
    ],
)
def test_bad_input_is_one_line(bot, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(bot)
    assert "\n" not in str(caught.value)


def test_what_a_user_types_holds_no_end_of_turn(bot):
    context = bot.encode(["<|endoftext|>", "a <|endoftext|> b"])
    assert context.count(bot.config.eos_token_id) == 2
    assert bot.reply("<|endoftext|>") == "".join(bot.stream("<|endoftext|>"))


@pytest.mark.parametrize("length", [94, 95, 96, 97, 500])
def test_a_turn_about_as_long_as_the_model_still_gets_a_reply(bot, length):
    newest = "€" * (length // 3) + "!" * (length % 3)
    assert len(bot.tokenizer.encode(newest)) + 1 in (length, length + 1)
    with pytest.warns(TruncationWarning, match=r"the last turn has \d+ tokens; .* \(n_positions is 96\)"):
        reply = bot.reply(newest, max_new_tokens=40)
    with pytest.warns(TruncationWarning):
        assert "".join(bot.stream(newest, max_new_tokens=40)) == reply
    assert reply


@pytest.mark.parametrize("max_new_tokens", [95, 96, 97, 5000, 2**31 - 1])
def test_a_reply_longer_than_the_model_is_cut_at_its_last_position(max_new_tokens):
    bot = fakes.tiny_bot(end=-20.0)  # it never ends
    (found,) = bot.candidates("Hello", n=1, max_new_tokens=max_new_tokens)
    room = bot.config.n_positions - len(bot.encode(["Hello"]))
    assert len(found.tokens) == min(max_new_tokens, room)
    assert not found.finished
    assert "".join(bot.stream("Hello", max_new_tokens=max_new_tokens)) == found.text
    assert bot.replies([["Hello"]], max_new_tokens=max_new_tokens) == [found.text]


def test_half_precision_replies_too(bot):
    half = dataclasses.replace(bot, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), bot.params))
    assert half.reply("Hello", seed=2)
    chat = half.chat(seed=2)
    assert chat.say("Hello")
    assert chat.say("And you?")


def test_save_and_load_give_the_same_bot(bot, tmp_path):
    bot.save(tmp_path / "model")
    loaded = dg.load(tmp_path / "model")
    assert loaded.config == bot.config
    assert loaded.reply(["Hello", "☕"], seed=3) == bot.reply(["Hello", "☕"], seed=3)
    params, config = dg.load_params(tmp_path / "model")
    assert config == bot.config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, loaded.params))
    assert dg.load(str(tmp_path / "model"), dtype="bfloat16").params["wte"]["embedding"].dtype == jnp.bfloat16


def test_a_tokenizer_larger_than_the_model_is_one_line(bot, tmp_path):
    bot.save(tmp_path)
    fakes.tiny_tokenizer(330).save(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer has 330 ids, the model a vocabulary of 320"):
        dg.load(tmp_path)


def test_the_bundled_model_loads_and_replies():
    bot = dg.load()
    assert bot.config.num_parameters <= 12_000_000
    assert bot.config.eos_token_id == bot.config.vocab_size - 1 == bot.tokenizer.end_of_text_id
    assert bot.reply("Does money buy happiness?").strip()


@pytest.fixture
def broken_from():
    """Makes bots whose position `first` and all later ones have an embedding that is no number."""

    def make(first, value=np.nan):
        bot = fakes.tiny_bot()
        wpe_TD = bot.params["wpe"]["embedding"].at[first:, 3].set(value)
        return dg.Bot(bot.params | {"wpe": {"embedding": wpe_TD}}, bot.config, bot.tokenizer)

    return make


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_give_an_error_and_no_reply(broken_from, tmp_path, value):
    from dialogpt_jax.evaluation.contexts import Context
    from dialogpt_jax.evaluation.harness import answer
    from dialogpt_jax.evaluation.settings import Settings

    bot, chat = broken_from(0, value), broken_from(0, value).chat()
    out = tmp_path / "out.jsonl"
    contexts = [Context(["Hi!"], "", 0), Context(["Hi!", "no", "Hello"], "", 1)]
    for ask in (
        lambda: bot.reply("Hi!"),
        lambda: bot.candidates("Hi!", n=2, sampling=dg.GREEDY),
        lambda: bot.reply("Hi!", beams=3),
        lambda: list(bot.stream("Hi!")),
        lambda: chat.say("Hi!"),
        lambda: answer(bot, contexts, Settings(max_new_tokens=4, rows=2), out=out),
    ):
        with pytest.raises(
            dg.NonFiniteLogits, match=r"^.*the model's logits are NaN or infinite, so there is no reply;"
        ):
            ask()
    with pytest.raises(dg.NonFiniteLogits, match=r"^dialogue 0: the model's"):
        bot.replies([["Hi!"], ["Hi!", "no", "Hello"]])
    assert chat.turns == []
    assert out.read_text().count("\n") == 1  # what decides the replies, and no reply
    assert bot.replies([]) == []


def test_logits_that_are_no_numbers_are_told_wherever_in_a_reply_they_come(broken_from):
    """The prompt is sound, and so is the reply until it gets to a position whose embedding is not."""
    context = len(fakes.tiny_bot().encode("Hi!"))
    bot, how = broken_from(16), {"sampling": dg.Sampling(min_new_tokens=20), "max_new_tokens": 20, "seed": 1}
    assert context < 10
    assert bot.reply("Hi!", **how | {"max_new_tokens": 16 - context}) == fakes.tiny_bot().reply(
        "Hi!", **how | {"max_new_tokens": 16 - context}
    )
    with pytest.raises(dg.NonFiniteLogits):
        bot.reply("Hi!", **how)
    chat = bot.chat(**how)
    with pytest.raises(dg.NonFiniteLogits):
        chat.say("Hi!")
    assert chat.turns == []


def test_a_sampling_that_forbids_every_token_gives_an_error_and_no_reply(bot):
    nothing = dg.Sampling(0, suppress_tokens=list(range(320)))
    chat, said = bot.chat(sampling=nothing), "no reply is possible: the sampling's processors forbid every token"
    with pytest.raises(ValueError, match=f"^{said}"):
        bot.reply("Hi!", sampling=nothing)
    with pytest.raises(ValueError, match=f"^dialogue 0: {said}"):
        bot.replies([["Hi!"], ["Hi!", "no", "Hello"]], sampling=nothing)
    with pytest.raises(ValueError, match=f"^{said}"):
        chat.say("Hi!")
    assert chat.turns == []


def test_a_batch_has_no_more_rows_than_dialogues_can_fill():
    """A batch of a billion rows for two dialogues would be a cache of a billion rows."""
    assert [checked_rows(asked, 40) for asked in (None, 1, 33, 64, 10**9)] == [None, 1, 33, 64, 64]
    assert [checked_rows(asked, 2) for asked in (8, 32, 33)] == [8, 32, 32]
    with pytest.raises(ValueError, match="batch_size is 0"):
        checked_rows(0, 2)
