"""Texts that end a reply: the table of tokens against `in`, and replies of a model in every way that makes one.

Letters: M rows, R tokens.
"""

import dataclasses
import itertools

import fakes
import jax
import numpy as np
import pytest

import dialogpt_jax as dg
from dialogpt_jax.decoding.stops import automaton, said_a_stop, stops_of
from dialogpt_jax.replies.settings import DEFAULT_SAMPLING

TOKENIZER = fakes.tiny_tokenizer()
TEXTS = ["abab", "bb", "☕", "the rain", "abc"]


def test_the_automaton_finds_what_in_finds():
    texts = [b"abab", b"bb", b"abc"]
    table = automaton(texts)
    for length in range(7):
        for letters in itertools.product(b"abc", repeat=length):
            state = 0
            for byte in letters:
                state = table[state, byte]
            assert (state == 1) == any(text in bytes(letters) for text in texts)


def test_bytes_of_tokens_are_those_of_the_text():
    for text in ("Hello, how are you today? ", " the rain in the evening ☕\n\tñ", "".join(map(chr, range(1, 300)))):
        ids = TOKENIZER.encode(text)
        assert b"".join(map(TOKENIZER.token_bytes, ids)) == text.encode()
    assert TOKENIZER.token_bytes(TOKENIZER.end_of_text_id) == b""
    assert TOKENIZER.token_bytes(10**6) == b""


def test_a_text_is_found_however_it_is_cut_into_tokens():
    """Where a reply first holds a text, and not before: at every length of random replies, and of some that hold one."""
    stops = stops_of(TOKENIZER, TEXTS, 384)
    random = np.random.default_rng(0)
    letters = [TOKENIZER.encode(x)[0] for x in "abc ☕"] + [
        *TOKENIZER.encode("☕"),
        *TOKENIZER.encode(" the rain in the"),
    ]
    tokens_MR = random.choice(letters, (40, 20)).astype(np.int32)
    for row, text in enumerate(["x the rain", "no ☕ here", "xabab", "the rainy"]):
        ids = TOKENIZER.encode(text)
        tokens_MR[row, 3 : 3 + len(ids)] = ids
    tokens_MR[4, 5:13] = [
        TOKENIZER.encode(letter)[0] for letter in "the rain"
    ]  # a token a byte: as many as there can be
    found = jax.jit(lambda counts_M: said_a_stop(tokens_MR, counts_M, stops))
    for count in range(21):
        got_M = np.asarray(found(np.full(40, count, np.int32)))
        for row in range(40):
            said, before = (
                b"".join(map(TOKENIZER.token_bytes, tokens_MR[row, :n].tolist())) for n in (count, count - 1)
            )
            if count and any(text.encode() in before for text in TEXTS):
                continue  # a reply would have ended
            assert got_M[row] == any(text.encode() in said for text in TEXTS), (row, count)
    assert np.asarray(found(np.full(40, 20, np.int32))).any()


@pytest.fixture(scope="module")
def bot():
    return fakes.tiny_bot(end=0.0)


@pytest.mark.long
def test_a_reply_ends_with_its_text_in_every_way_that_makes_one(bot):
    free = bot.candidates("Hi!", n=6, max_new_tokens=24)
    stop = next(letter for letter in free[0].text[1:] if letter.isascii())
    sampling = dataclasses.replace(DEFAULT_SAMPLING, stop_strings=[stop, "zzzz"])
    found = bot.candidates("Hi!", n=6, max_new_tokens=24, sampling=sampling)
    for one, all_of_it in zip(found, free, strict=True):
        count = len(one.tokens)
        assert one.tokens.tolist() == all_of_it.tokens[:count].tolist()
        assert (stop in one.text) == (stop in all_of_it.text)
        assert stop not in bot.tokenizer.decode(one.tokens[:-1])
        assert one.finished == (stop in one.text or bool(one.tokens[-1] == bot.config.eos_token_id))
    assert found[0].finished
    assert len(found[0].tokens) < len(free[0].tokens)
    chat = bot.chat(sampling=sampling, max_new_tokens=24)
    assert chat.say("Hi!") == found[0].text == bot.replies([["Hi!"], ["no"]], sampling=sampling, max_new_tokens=24)[0]
    assert chat.finished
    stop = next(letter for letter in bot.reply("Hi!", beams=4, max_new_tokens=12) if letter.isascii())
    beams = bot.candidates("Hi!", beams=4, max_new_tokens=12, sampling=dg.Sampling(0, stop_strings=[stop]))
    assert any(stop in one.text and one.finished for one in beams)
    assert all(stop not in bot.tokenizer.decode(one.tokens[:-1]) for one in beams)


def test_a_stream_gives_no_number_of_a_function_away(bot):
    weight = jax.numpy.float32(1.5)
    function = jax.tree_util.Partial(lambda weight, logits_MV, _: logits_MV * weight, weight)
    chat = bot.chat(sampling=dg.Sampling(processors=[function], stop_strings=["zz"]), max_new_tokens=6)
    chat.say("Hi!")
    chat.say("no")
    assert float(weight) == 1.5


@pytest.mark.parametrize("wrong", ["", [""], ["a", ""], [3], 3, [b"a"]])
def test_a_text_of_nothing_is_one_clear_line(wrong):
    with pytest.raises(ValueError, match=r"stop_strings (holds a text of nothing|is .*give a list of texts)"):
        dg.Sampling(stop_strings=wrong)


def test_texts_want_a_tokenizer(bot):
    sampling = dg.Sampling(stop_strings=["a"])
    how = {"sampling": sampling, "max_new_tokens": 2, "keys": jax.random.split(jax.random.key(0), 1)}
    with pytest.raises(ValueError, match="stop_strings are texts, and there is no tokenizer here; ask a Bot"):
        dg.generate(bot.params, bot.config, [[1, 2]], [2], **how)
