"""The list of prompts that releases are judged by: it is whole, and the corpus does not hold it."""

import collections

from dialogpt_jax.bundled.prompts import MARKS, read_prompts
from dialogpt_jax.data.formats import read_dialogues


def test_forty_prompts_ten_of_a_kind_and_a_rule_for_each_mark():
    prompts, rule = read_prompts()
    assert set(rule) == set(MARKS)
    assert set(collections.Counter(prompt.kind for prompt in prompts).values()) == {10}
    assert len({prompt.turns for prompt in prompts}) == 40
    assert [len(prompt.turns) for prompt in prompts] == [1] * 30 + [3] * 10


def test_no_turn_of_the_corpus_is_one_of_them(shared):
    said = {_plain(turn) for prompt in read_prompts()[0] for turn in prompt.turns}
    for path in sorted((shared / "corpus").glob("*.jsonl.gz")):
        for turns in read_dialogues(path):
            assert not said & {_plain(turn) for turn in turns}, path


def _plain(turn: str) -> str:
    return " ".join("".join(c for c in turn.lower() if c.isalnum() or c == " ").split())
