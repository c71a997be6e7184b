"""What releases are judged by: the list is whole, the corpus does not hold it, and a mark belongs to one reply."""

import collections

import pytest
from fakes import tiny_bot

from dialogpt_jax.bundled.prompts import (
    LOOKED_AT,
    MARKS,
    Exchange,
    answer_prompts,
    count_marks,
    hold_chats,
    read_marks,
    read_prompts,
)
from dialogpt_jax.data.formats import read_dialogues
from dialogpt_jax.decoding.sampling import GREEDY


def test_forty_prompts_ten_of_a_kind_five_chats_and_a_rule_for_each_mark():
    kinds, prompts, chats, rule = read_prompts()
    assert set(rule) == set(MARKS)
    assert set(collections.Counter(kinds).values()) == {10}
    assert len(set(prompts)) == 40
    assert [len(turns) for turns in prompts] == [1] * 30 + [3] * 10
    assert [len(said) for said in chats] == [max(LOOKED_AT)] * 5


def test_every_mark_is_one_of_the_rule():
    assert set(read_marks().values()) <= set(MARKS)


def test_no_turn_of_the_corpus_is_a_prompt(shared):
    said = {_plain(turn) for turns in read_prompts().prompts for turn in turns}
    for path in sorted((shared / "corpus").glob("*.jsonl.gz")):
        for turns in read_dialogues(path):
            assert not said & {_plain(turn) for turn in turns}, path


@pytest.mark.long
def test_prompts_and_chats_are_answered_with_all_that_was_said_before():
    bot = tiny_bot()
    prompts = [("Hello",), ("Hello", "I am fine", "What is this")]
    found = answer_prompts(bot, prompts, GREEDY)
    assert [exchange.turns for exchange in found] == prompts
    assert [exchange.reply for exchange in found] == bot.replies([list(turns) for turns in prompts], sampling=GREEDY)
    ((first, second),) = hold_chats(bot, [("Hello", "How are you")], GREEDY)
    assert first == Exchange(("Hello",), bot.reply("Hello", sampling=GREEDY))
    assert second.turns == ("Hello", first.reply, "How are you")


def test_marks_are_counted_for_the_very_reply():
    one, other = Exchange(("Hi",), "Hello."), Exchange(("Hi",), "Hello!")
    marks = {one: "sensible"}
    assert count_marks([one, other], marks) == {"sensible": 1, "passable": 0, "nonsense": 0, "not marked": 1}


def _plain(turn: str) -> str:
    return " ".join("".join(c for c in turn.lower() if c.isalnum() or c == " ").split())
