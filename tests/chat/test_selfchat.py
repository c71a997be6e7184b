"""Two bots in one batch: each reply is the one that its bot gives to the same turns, whoever talks beside it."""

import dataclasses
import json
from pathlib import Path

import fakes
import numpy as np
import pytest

import dialogpt_jax as dg
from dialogpt_jax.chat.openings import OPENINGS
from dialogpt_jax.chat.selfchat import Conversations, grow_conversations
from dialogpt_jax.replies.settings import DEFAULT_SAMPLING

OPEN = ["Hello", ["how are you", "no"], "reading the news", "☕", ["a", "b", "And the evening?"]]
# One program for all tests of this file but one.
HOW = {"seed": 2**40 + 3, "max_new_tokens": 6, "batch_size": 4}


@pytest.fixture(scope="module")
def bots():
    """Two models whose tokenizers cut text in other ways, of one config, and so of one program."""
    bot, other = fakes.tiny_bot(n_positions=64), fakes.tiny_bot(1, n_positions=64)
    tokenizer = dg.Tokenizer.train([sentence[::-1] for sentence in fakes.SENTENCES], 320)
    assert tokenizer.end_of_text_id == bot.tokenizer.end_of_text_id
    assert tokenizer.encode("evening") != bot.tokenizer.encode("evening")
    return bot, dg.Bot(other.params, other.config, tokenizer)


@pytest.fixture(scope="module")
def talks(bots):
    return dg.self_chat(*bots, openings=OPEN, turns=4, **HOW)


def texts(talks):
    return [talk.turns for talk in talks]


def test_every_reply_is_what_its_bot_says_to_these_turns(bots, talks):
    assert [talk.opening for talk in talks] == [[one] if isinstance(one, str) else one for one in OPEN]
    for turn in range(4):
        before = [[*talk.opening, *(answer.text for answer in talk.answers[:turn])] for talk in talks]
        found = bots[turn % 2].answers(before, **HOW)
        assert [talk.answers[turn].text for talk in talks] == [answer.text for answer in found]
        assert [talk.answers[turn].finished for talk in talks] == [answer.finished for answer in found]
    assert len({len(talk.answers[0].tokens) for talk in talks}) > 1  # rows that end at different times
    assert talks[1].speakers == ["bot", "other", "bot", "other", "bot", "other"]


def test_a_conversation_is_the_same_alone_and_among_others(bots, talks):
    for i in (0, 3):
        alone = dg.self_chat(*bots, openings=[OPEN[i]], turns=4, first=i, **HOW)
        assert texts(alone) == texts(talks[i : i + 1])
    assert texts(dg.self_chat(*bots, openings=OPEN[3:], turns=4, first=3, **HOW)) == texts(talks[3:])
    # Its number draws, so the same opening twice is two conversations.
    assert len(set(map(str, texts(dg.self_chat(*bots, openings=["Hello"] * 4, turns=1, **HOW))))) > 1
    shorter = dg.self_chat(*bots, openings=OPEN, turns=2, **HOW)
    assert texts(shorter) == [turns[: len(talk.opening) + 2] for turns, talk in zip(texts(talks), talks, strict=True)]


def test_where_a_bot_says_nothing_the_conversation_ends_and_the_others_go_on(bots):
    top_k = np.array([40, 50, 60, 50, 40])  # numbers of its own, which stay with each conversation
    silent = dataclasses.replace(DEFAULT_SAMPLING, temperature=3.0, min_new_tokens=0, top_k=top_k)
    talks = dg.self_chat(*bots, openings=OPEN, turns=6, sampling=silent, **HOW)
    counts = [len(talk.answers) for talk in talks]
    assert min(counts) < max(counts)
    assert all(answer.text.strip() for talk in talks for answer in talk.answers)
    longest = int(np.argmax(counts))
    silent = dataclasses.replace(silent, top_k=top_k[[longest]])
    alone = dg.self_chat(*bots, openings=[OPEN[longest]], turns=6, first=longest, sampling=silent, **HOW)
    assert texts(alone) == [talks[longest].turns]


def test_each_bot_has_its_sampling_and_each_conversation_its_numbers(bots, talks):
    bolder = dataclasses.replace(DEFAULT_SAMPLING, temperature=3.0)
    changed = dg.self_chat(*bots, openings=OPEN, turns=2, other_sampling=bolder, **HOW)
    assert [talk.turns[:-1] for talk in changed] == [talk.turns[:-3] for talk in talks]
    assert [talk.turns[-1] for talk in changed] != [talk.turns[-3] for talk in talks]
    said = bots[1].replies([talk.turns[:-1] for talk in changed], sampling=bolder, **HOW)
    assert [talk.turns[-1] for talk in changed] == said
    top_k = np.array([1, 50, 1, 50, 50])
    each = dg.self_chat(
        *bots, openings=OPEN, turns=1, sampling=dataclasses.replace(DEFAULT_SAMPLING, top_k=top_k), **HOW
    )
    only = dg.self_chat(*bots, openings=OPEN, turns=1, sampling=dataclasses.replace(DEFAULT_SAMPLING, top_k=1), **HOW)
    assert [each[i].turns == only[i].turns for i in (0, 2)] == [True, True]
    assert [each[i].turns == talks[i].turns[: len(each[i].turns)] for i in (1, 3, 4)] == [True] * 3


def test_it_grows_by_turns_and_tells_how_far_it_is(bots, talks):
    told = []
    grown = list(grow_conversations(*bots, openings=OPEN, turns=4, progress=lambda *now: told.append(now), **HOW))
    assert [[len(talk.answers) for talk in now] for now in grown] == [[n] * 5 for n in (1, 2, 3, 4)]
    assert texts(grown[-1]) == texts(talks)
    assert sorted(told) == told
    assert {whole for _, whole in told} == {20}
    assert told[-1] == (20, 20)


def test_a_bot_alone_talks_to_itself(bots):
    alone = dg.self_chat(bots[0], openings=OPEN[:2], turns=2, **HOW)
    assert texts(alone) == texts(dg.self_chat(bots[0], bots[0], openings=OPEN[:2], turns=2, **HOW))
    assert alone[0].answers[1].text == bots[0].replies([alone[0].turns[:2]], **HOW)[0]


def test_what_it_shows(talks):
    assert repr(Conversations(talks[:1])) == "[Conversation('Hello' and 4 replies)]"
    assert repr(Conversations(talks * 4)).splitlines()[-1] == " … 4 more]"
    assert Conversations(talks)[0]._repr_html_().count("<tr>") == 5


def test_the_openings_of_the_package_are_not_the_prompts_that_models_are_judged_by():
    judged = (Path(dg.__file__).parent / "bundled" / "prompts.json").read_text(encoding="utf-8")
    assert len(set(OPENINGS)) == 32
    assert [text for text in OPENINGS if json.dumps(text) in judged] == []


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ({"openings": "Hi!"}, ValueError, r"openings is 'Hi!'; give a list: a text or a list of turns a conversation"),
        ({"openings": []}, ValueError, "openings holds none; give at least one text"),
        ({"openings": ["Hi!", [" "]]}, ValueError, "opening 1: turn 1, the one to reply to, is empty"),
        ({"turns": 0}, ValueError, "turns is 0; it must be a whole number from 1"),
        ({"first": -1}, ValueError, "first is -1; it must be a whole number from 0"),
        ({"other": "medium"}, TypeError, "other is 'medium'; give a bot"),
        ({"progress": 3}, TypeError, "progress is 3; give a function"),
        ({"sampling": dg.Sampling(top_k=np.array([1, 2]))}, ValueError, "one for each of the 32 dialogues"),
        ({"other_sampling": 0.5}, TypeError, "sampling is 0.5; give a Sampling"),
    ],
    ids=["text", "none", "empty", "turns", "first", "other", "progress", "rows", "sampling"],
)
def test_mistakes_are_one_line(bots, how, kind, said):
    with pytest.raises(kind, match=said):
        dg.self_chat(bots[0], **how)
