"""Dialogues to examples: every turn after the first is a target once, its EOS too, and nothing is longer than allowed."""

import random

import fakes
import numpy as np
import pytest

from dialogpt_jax.data.examples import (
    dialogue_examples,
    examples,
    joined_dialogues,
    order_and_weigh,
    windows,
)
from dialogpt_jax.data.formats import Dialogue
from dialogpt_jax.data.in_memory import make_examples

EOS = 0


def as_lists(found):
    return [(e.tokens_T.tolist(), e.weights_T.tolist()) for e in found]


def drawn_dialogue(rng):
    """Every token is another number, so that it can be found again."""
    turns, token = [], 1
    for _ in range(rng.randint(1, 9)):
        length = rng.randint(0, 7)
        turns.append(list(range(token, token + length)))
        token += length
    return turns


def test_the_worked_example():
    assert as_lists(windows([[5, 6], [7], [8, 9]], eos=0, max_length=8)) == [
        ([5, 6, 0, 7, 0, 8, 9, 0], [0, 0, 0, 1, 1, 1, 1, 1])
    ]
    assert as_lists(windows([[5, 6], [7], [8, 9]], eos=0, max_length=6)) == [
        ([5, 6, 0, 7, 0], [0, 0, 0, 1, 1]),
        ([7, 0, 8, 9, 0], [0, 0, 1, 1, 1]),
    ]


def test_one_turn_has_no_target():
    assert list(windows([[5, 6]], eos=0, max_length=8)) == []
    assert list(windows([], eos=0, max_length=8)) == []


@pytest.mark.parametrize("context", [0, 6, 12])
def test_each_turn_is_a_target_once_with_its_end(context):
    rng = random.Random(1)
    several = 0
    for _ in range(200):
        turns = drawn_dialogue(rng)
        max_length = rng.randint(16, 40)  # two turns of at most 8 tokens always fit
        found = list(windows(turns, eos=EOS, max_length=max_length, context=context))
        several += len(found) > 1
        whole = [token for turn in turns for token in [*turn, EOS]]
        targets = []
        for tokens_T, weights_T, segments in found:
            assert segments is None
            assert tokens_T.dtype == np.int32
            assert weights_T.dtype == np.float32
            assert len(tokens_T) == len(weights_T) <= max_length
            assert set(weights_T.tolist()) <= {0.0, 1.0}
            assert weights_T[0] == 0
            first = int(weights_T.argmax())
            assert weights_T[first:].all()  # context, then targets: no hole
            assert tokens_T[first - 1] == EOS  # the context is whole turns
            targets += tokens_T[first:].tolist()
        assert targets == whole[len(turns[0]) + 1 :]
        joined = [e.tokens_T.tolist() for e in found]
        assert all(any(whole[i : i + len(t)] == t for i in range(len(whole))) for t in joined)
    assert several > 40


def test_a_later_window_begins_with_the_turn_before_or_as_many_as_its_context_holds():
    turns = [[i] * 3 for i in range(1, 9)]  # four tokens each
    lone = list(windows(turns, eos=EOS, max_length=12, context=0))
    assert [int((e.weights_T == 0).sum()) for e in lone] == [4, 4, 4, 4]
    wide = list(windows(turns, eos=EOS, max_length=16, context=8))
    assert [int((e.weights_T == 0).sum()) for e in wide] == [4, 8, 8]
    assert wide[1].tokens_T.tolist()[:4] == [3, 3, 3, EOS]


def test_what_is_too_long_is_cut_context_from_its_start_target_from_its_end():
    context, target = list(range(1, 21)), list(range(31, 36))
    (example,) = windows([context, target], eos=EOS, max_length=10)
    assert example.tokens_T.tolist() == [18, 19, 20, EOS, 31, 32, 33, 34, 35, EOS]
    assert example.weights_T.sum() == 6
    (example,) = windows([[1, 2], list(range(10, 40))], eos=EOS, max_length=8)
    assert example.tokens_T.tolist() == [EOS, 10, 11, 12, 13, 14, 15, 16]
    assert example.weights_T.tolist() == [0, 1, 1, 1, 1, 1, 1, 1]


def test_examples_are_the_windows_of_all_dialogues_in_order():
    dialogues = [[[1], [2]], [[3]], [[4], [5], [6]]]
    found = examples(dialogues, eos=EOS, max_length=32)
    assert [e.tokens_T.tolist() for e in found] == [[1, 0, 2, 0], [4, 0, 5, 0, 6, 0]]


def test_a_turns_weight_is_that_of_its_tokens_and_its_end():
    turns = [[5, 6], [7], [8, 9], [4]]
    assert as_lists(windows(turns, eos=EOS, max_length=16, weights=[9, 0.25, 0, 2])) == [
        ([5, 6, 0, 7, 0, 8, 9, 0, 4, 0], [0, 0, 0, 0.25, 0.25, 0, 0, 0, 2, 2])
    ]
    (example,) = windows(turns[:2], eos=EOS, max_length=16, weights=[1, 0.3])
    assert example.weights_T.tolist() == [0, 0, 0, np.float32(0.3), np.float32(0.3)]


def test_what_weighs_nothing_at_the_end_is_left_out_and_so_is_an_example_without_a_target():
    turns = [[1, 1], [2, 2], [3, 3], [4, 4], [5, 5]]  # three tokens each; windows of 6 hold two turns
    assert as_lists(windows(turns, eos=EOS, max_length=6, weights=[1, 1, 0, 1, 0])) == [
        ([1, 1, 0, 2, 2, 0], [0, 0, 0, 1, 1, 1]),
        ([3, 3, 0, 4, 4, 0], [0, 0, 0, 1, 1, 1]),
    ]
    assert list(windows(turns, eos=EOS, max_length=32, weights=[1, 0, 0, 0, 0])) == []
    assert list(windows(turns, eos=EOS, max_length=6, weights=[0] * 5)) == []


def test_weights_of_one_are_no_weights():
    rng = random.Random(3)
    for _ in range(50):
        turns, longest = drawn_dialogue(rng), rng.randint(4, 30)
        plain = as_lists(windows(turns, eos=EOS, max_length=longest))
        assert as_lists(windows(turns, eos=EOS, max_length=longest, weights=[1.0] * len(turns))) == plain


def test_each_weighed_token_is_a_target_once_whatever_the_weights():
    """Without a weight of 0 at an end, all windows together hold each turn's weight once for each of its tokens."""
    rng = random.Random(2)
    split = 0
    for _ in range(200):
        turns = drawn_dialogue(rng)
        weights = [rng.choice([0, 0.5, 1, 3]) for _ in turns]
        found = dialogue_examples(turns, weights, eos=EOS, max_length=16)
        split += len(found) > 1
        seen = [(int(t), float(w)) for e in found for t, w in zip(e.tokens_T, e.weights_T, strict=True) if w]
        expected = [(t, w) for turn, w in zip(turns[1:], weights[1:], strict=True) if w for t in [*turn, EOS]]
        assert seen == expected
        assert all(e.weights_T[0] == 0 and len(e.tokens_T) <= 16 and e.weights_T[-1] > 0 for e in found)
    assert split > 40


THREE = Dialogue(("Hi!", "Hello.", "Bye."), ("Ann", "Bob", "Bob"), (0.5, 0.3, 2.0))


@pytest.mark.parametrize(
    ("train_on", "reverse", "turns", "weights"),
    [
        ("all", False, "Hi! Hello. Bye.", (0, 0.3, 2)),
        ("last", False, "Hi! Hello. Bye.", (0, 0, 2)),
        ("Bob", False, "Hi! Hello. Bye.", (0, 0.3, 2)),
        ("Ann", False, "Hi! Hello. Bye.", (0, 0, 0)),  # not the first: nothing comes before it
        ("Joe", False, "Hi! Hello. Bye.", (0, 0, 0)),
        ("all", True, "Bye. Hello. Hi!", (0, 0.3, 0.5)),
        ("last", True, "Bye. Hello. Hi!", (0, 0, 0.5)),
        ("Bob", True, "Bye. Hello. Hi!", (0, 0.3, 0)),
        ("Ann", True, "Bye. Hello. Hi!", (0, 0, 0.5)),
    ],
)
def test_what_is_trained_in_which_order(train_on, reverse, turns, weights):
    found = order_and_weigh(THREE, train_on=train_on, reverse=reverse)
    assert (" ".join(found.turns), found.weights) == (turns, weights)
    assert found.speakers == (THREE.speakers[::-1] if reverse else THREE.speakers)
    nameless = order_and_weigh(Dialogue(THREE.turns), train_on=train_on, reverse=reverse)
    assert [bool(w) for w in nameless.weights] == [bool(w) and train_on in ("all", "last") for w in weights]


def test_the_last_turn_alone_gets_as_many_whole_turns_of_context_as_fit():
    turns = [[1], [2, 2], [3, 3, 3], [4, 4]]  # 2, 3, 4 and 3 tokens with their ends
    for max_length, tokens in [
        (12, [1, 0, 2, 2, 0, 3, 3, 3, 0, 4, 4, 0]),
        (11, [2, 2, 0, 3, 3, 3, 0, 4, 4, 0]),
        (9, [3, 3, 3, 0, 4, 4, 0]),
        (6, [3, 3, 0, 4, 4, 0]),
        (3, [0, 4, 4]),
    ]:
        (example,) = dialogue_examples(turns, [0, 0, 0, 0.5], eos=EOS, max_length=max_length)
        assert example.tokens_T.tolist() == tokens
        kept = 2 if max_length == 3 else 3
        assert example.weights_T.tolist() == [0] * (len(tokens) - kept) + [0.5] * kept


def test_what_an_assistant_says_is_trained_unless_all_is_asked_for():
    turns = ("Hi!", "Hello.", "Bye.", "See you.")
    chat = Dialogue(turns, ("user", "assistant", "user", "assistant"))
    assert order_and_weigh(chat).weights == (0.0, 1.0, 0.0, 1.0)
    assert order_and_weigh(chat, train_on="all").weights == (0.0, 1.0, 1.0, 1.0)
    assert order_and_weigh(chat, train_on="user").weights == (0.0, 0.0, 1.0, 0.0)
    for nobody in (Dialogue(turns), Dialogue(turns, ("Ann", None, "Bob", "Ann"))):
        assert order_and_weigh(nobody).weights == (0.0, 1.0, 1.0, 1.0)
    assert order_and_weigh(chat, reverse=True).weights == (0.0, 1.0, 1.0, 1.0)  # what was said before a reply
    weighed = Dialogue(turns, chat.speakers, (1.0, 0.3, 1.0, 0.5))
    assert order_and_weigh(weighed).weights == (0.0, 0.3, 0.0, 0.5)


def test_joined_dialogues_stand_once_among_others_and_what_was_context_is():
    rng = np.random.default_rng(0)
    weights = [0.0, 1.0, 0.5]
    dialogues = [([[10 * i] * int(rng.integers(1, 5)), [10 * i + 1], [10 * i + 2, 7]], weights) for i in range(1, 50)]
    found = list(joined_dialogues(dialogues, max_length=30, rng=np.random.default_rng(1)))
    members = [[turn[0] // 10 for turn in turns[::3]] for turns, _ in found]
    everyone = [i for one in members for i in one]
    assert len(set(everyone)) == len(everyone) > 40  # a last one alone is left out
    assert {len(one) for one in members} == {2, 3, 4}  # as many as fit
    for turns, joined in found:
        assert sum(len(turn) + 1 for turn in turns) <= 30
        assert joined == weights * (len(turns) // 3)
    again = list(joined_dialogues(dialogues, max_length=30, rng=np.random.default_rng(2)))
    assert again != found  # another draw, other neighbours
    assert list(joined_dialogues(dialogues[:1], max_length=30, rng=rng)) == []
    assert list(joined_dialogues(dialogues, max_length=5, rng=rng)) == []  # no room beside another


def test_examples_in_memory_are_joined_too():
    tokenizer = fakes.tiny_tokenizer()
    pairs = [["Hi!", "Hello."], ["Who?", "I."], ["Why?", "So."]]
    alone, joined = (make_examples(pairs, tokenizer, joined=times, max_length=64) for times in (0, 2))
    assert as_lists(joined[:3]) == as_lists(alone)
    assert len(joined) > 3
    assert all(len(e.tokens_T) > max(len(e.tokens_T) for e in alone) for e in joined[3:])
    assert as_lists(make_examples(pairs, tokenizer, joined=2, max_length=64)) == as_lists(joined)
