"""What must not be said is not said, drawn, ranked, batched or streamed; and the reasons are tags, never part of a text."""

import dataclasses
import re

import numpy as np
import pytest
from fakes import tiny_bot

import dialogpt_jax as dg
from dialogpt_jax.chat.pieces import pieces_of
from dialogpt_jax.cli.main import main
from dialogpt_jax.ranking.safety import whole_sentences

HOW = {"max_new_tokens": 12, "seed": 2}
TURNS = ["Hello, how are you today?"]


@pytest.fixture(scope="module")
def bot():
    return tiny_bot(end=4.0)


def shouts(text):
    return text.isupper()


def test_what_is_found():
    safety = dg.Safety(words=["darn", "holy  cow", "c++"], patterns=[r"h[e3]ck\d"], classifiers=[shouts])
    assert safety.why_not("DARN!") == "word 'DARN'"
    assert safety.why_not("a Holy\ncow.") == "word 'Holy\\ncow'"
    assert safety.why_not("C++?") == "word 'C++'"
    assert safety.why_not("What the H3CK9") == r"pattern 'h[e3]ck\\d'"
    assert safety.why_not("NO WAY") == "shouts"
    for text in ("darning a sock", "holy a cow", "hick", "Fine.", ""):
        assert safety.why_not(text) is None
    assert dg.Safety().why_not("anything") is None


def test_a_file_of_words_and_patterns(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("# mine\n darn \n\n/h[e3]ck/\nholy cow\n/\n", encoding="utf-8")
    safety = dg.Safety.read(file, default="Hm.")
    assert (safety.words, safety.patterns, safety.default) == (("darn", "holy cow", "/"), ("h[e3]ck",), "Hm.")
    file.write_text("/h[/\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"words.txt: the regular expression 'h\[' does not compile"):
        dg.Safety.read(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"words.txt: not UTF-8"):
        dg.Safety.read(file)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"words": "darn"}, "words is 'darn'; give a list of texts"),
        ({"words": ["a", " "]}, "words is .*; give a list of texts, none of them empty"),
        ({"patterns": [3]}, "patterns is .*; give a list of texts"),
        ({"patterns": ["("]}, r"the regular expression '\(' does not compile: missing \), unterminated"),
        ({"classifiers": ["no"]}, "classifiers is .*; give a list of functions"),
        ({"default": ""}, "default is ''; give the text that is said"),
    ],
)
def test_what_is_no_safety_is_one_line(given, said):
    with pytest.raises(ValueError, match=said):
        dg.Safety(**given)


def safe(bot, *texts, **rest):
    """The bot that must not say these."""
    return dataclasses.replace(bot, safety=dg.Safety(classifiers=[lambda text: text in texts], default="Hm.", **rest))


def test_another_candidate_is_given_and_the_default_where_none_is_left(bot):
    texts = [c.text for c in bot.candidates(TURNS, **HOW)]
    second = next(text for text in texts if text != texts[0])
    assert safe(bot).reply(TURNS, **HOW) == texts[0] == bot.reply(TURNS, **HOW)
    assert safe(bot, texts[0]).reply(TURNS, **HOW) == second
    assert safe(bot, *texts).reply(TURNS, **HOW) == "Hm."
    dialogues = [["no"], TURNS, ["Do you like the rain?"]]
    replies = bot.replies(dialogues, **HOW)
    assert safe(bot, replies[1]).replies(dialogues, **HOW) == [replies[0], "Hm.", replies[2]]


def test_a_ranking_gives_what_is_safe_and_tags_the_rest(bot):
    rank = dg.Rank("likelihood", hypotheses=6)
    plain = bot.rank(TURNS, rank, **HOW)
    found = safe(bot, plain[0].text).rank(TURNS, rank, **HOW)
    assert found[0].text == plain[1].text == found.reply
    assert found[-1].text == plain[0].text
    assert found[-1].why.endswith("unsafe: <lambda>")
    nothing = safe(bot, *(h.text for h in plain))
    assert nothing.reply(TURNS, rank=rank, **HOW) == "Hm."
    assert nothing.rank(TURNS, rank, **HOW)[0].why.startswith("not given (")
    with pytest.raises(TypeError, match=r"safety is \['darn'\]; give a Safety"):
        dataclasses.replace(bot, safety=["darn"])


def test_sentences():
    assert whole_sentences("I see. Well, no! And") == "I see. Well, no!"
    assert whole_sentences("I see.") == ""  # another full stop may still come
    assert whole_sentences('He said "no." Then') == 'He said "no."'
    assert whole_sentences("3.5 or 4") == ""


def told(bot, text, safety):
    ids = []
    return list(pieces_of(bot.tokenizer.encode(text), bot.tokenizer, ids=ids, safety=safety)), len(ids)


def test_a_stream_shows_whole_sentences_and_ends_before_one_that_is_not_safe(bot):
    safety = dg.Safety(words=["rain", "you I"], default="Hm.")
    text = "Fine. And you? I like the rain today. Bye."
    pieces, tokens = told(bot, text, None)
    assert "".join(pieces) == text
    assert len(pieces) > 8
    assert told(bot, "Fine, thanks. And you?", safety)[0] == ["Fine, thanks.", " And you?"]
    pieces, before = told(bot, text, safety)
    assert pieces == ["Fine.", " And you?"]
    assert before < tokens  # the rest is not even made
    assert told(bot, "The rain.", safety)[0] == ["Hm."]
    assert told(bot, "Fine. The rain", safety)[0] == ["Fine."]


def test_a_chat_remembers_what_it_said(bot):
    reply = bot.chat(seed=2, max_new_tokens=12).say(TURNS[0])
    chat = safe(bot, reply).chat(seed=2, max_new_tokens=12)
    assert chat.say(TURNS[0]) == "Hm."
    assert (chat.turns, chat.finished) == ([TURNS[0], "Hm."], True)
    assert chat.say("no") == bot.reply([TURNS[0], "Hm.", "no"], seed=2, max_new_tokens=12)


def test_a_file_of_the_command_line(bot, tmp_path, capsys):
    bot.save(tmp_path / "model")
    reply = bot.reply(TURNS, **HOW)
    (tmp_path / "words.txt").write_text(f"/{re.escape(reply)}/\n", encoding="utf-8")
    words = ["reply", *TURNS, "--model", str(tmp_path / "model"), "--max-new-tokens", "12", "--seed", "2"]
    assert main([*words, "--block", str(tmp_path / "words.txt")]) == 0
    assert capsys.readouterr().out.rstrip("\n") not in ("", reply)
    assert main([*words, "--block", str(tmp_path / "none.txt")]) == 1
    assert "none.txt" in capsys.readouterr().err
    assert main([*words, "--block", "words.txt", "--json"]) == 2
    assert "--block gives one reply" in capsys.readouterr().err


def test_a_classifier_that_gives_an_array_is_named():
    def several(text):
        return np.zeros(2)

    with pytest.raises(ValueError, match=r"several of classifiers gave .*; it must give one truth value"):
        dg.Safety(classifiers=[several]).why_not("Hi")
