"""Dialogues to contexts: what counts as turns, where EOS stands, and what is left out when it does not fit."""

import itertools
import random
import warnings

import fakes
import numpy as np
import pytest

from dialogpt_jax.text.dialogue import (
    DialogueError,
    TruncationWarning,
    as_turns,
    context_limit,
    encode,
    said_by,
    texts_of,
    why_not_a_turn,
    window_start,
)

EOS = 319


@pytest.fixture(scope="module")
def tokenizer():
    return fakes.tiny_tokenizer()


def test_a_text_texts_and_messages_are_turns():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"content": "Well?"}]
    assert as_turns("Hi") == ["Hi"]
    assert as_turns(("Hi", "Hello", "Well?")) == as_turns(messages) == ["Hi", "Hello", "Well?"]
    parts = [{"type": "text", "text": "Hi"}, {"type": "output_text", "text": "there"}, {"text": "!"}]
    assert as_turns(["Hm", {"role": "user", "content": parts}]) == ["Hm", "Hi\nthere\n!"]
    assert as_turns(["", "", "a turn before may be empty"])[0] == ""
    assert texts_of([]) == []
    assert texts_of(["Hi", ""]) == ["Hi", ""]


@pytest.mark.parametrize(
    ("dialogue", "message"),
    [
        ([], "the dialogue has no turn; give at least one text"),
        ("", "turn 1, the one to reply to, is empty"),
        (" \n\t", "turn 1, the one to reply to, is empty"),
        (["Hi", ""], "turn 2, the one to reply to, is empty"),
        ([{"role": "user", "content": None}], "content of message 1 is NoneType; expected text"),
        ([{"role": "user"}], "content of message 1 is NoneType"),
        (["Hi", {"content": [{"type": "text"}]}], "part 1 of message 2 has no text; only text can be read"),
        (
            [{"content": [{"type": "text", "text": "a"}, {"type": "image_url", "text": "b"}]}],
            "part 2 of message 1 is of ty",
        ),
        ([{"content": ["a"]}], "part 1 of message 1 is of type 'str'"),
        ([{"content": []}], "turn 1, the one to reply to, is empty"),
        (["Hi", ["Hello"]], "turn 2 is list; expected text"),
        (["Hi", 3], "turn 2 is int; expected text"),
        ([b"Hi"], "turn 1 is bytes"),
        (b"Hi", "got bytes"),
        (None, "got NoneType"),
        ({"role": "user", "content": "Hi"}, "got dict"),
        ({"Hi"}, "got set"),
        (["Hi", float("nan")], "turn 2 is float; expected text"),
        ([{"role": 1, "content": "Hi"}], "role of message 1 is int; expected text"),
        (
            ["Hi", {"role": "x", "content": "Ho"}],
            "message 2: 'x' is no role; known are user, assistant, human, gpt, chat",
        ),
    ],
)
def test_what_is_no_dialogue_is_one_line(dialogue, message):
    with pytest.raises(DialogueError, match=message) as caught:
        as_turns(dialogue)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("role", ["system", "System ", "developer", "tool"])
def test_a_message_that_nobody_said_is_one_line_that_says_what_to_do(role):
    messages = [{"role": "user", "content": "Hi"}, {"role": role, "content": "Be kind."}]
    for dialogue in (messages[::-1], messages):
        number = 1 + dialogue.index(messages[1])
        with pytest.raises(
            DialogueError, match=f"message {number}: a {role.strip()} message is no turn .*; leave it out"
        ):
            as_turns(dialogue)
    assert why_not_a_turn("user") is why_not_a_turn("Ann") is why_not_a_turn(None) is None


def test_roles_of_other_programs_are_the_user_s_and_the_assistant_s():
    roles = ("Human", "gpt", "user", "Assistant ", "human", "bard")
    said = said_by([{"role": role, "content": "Hi"} for role in roles])
    assert [speaker for _, speaker in said] == ["user", "assistant"] * 3


def test_numpy_and_pandas_values_are_turns_as_pythons_are():
    pandas = pytest.importorskip("pandas")
    turns = ["Hi", "Hello", "Well?"]
    for given in (np.array(turns), np.array(turns, object), [np.str_(turn) for turn in turns]):
        assert as_turns(given) == turns
        assert all(type(turn) is str for turn in as_turns(given))
    assert as_turns(np.array("Hi")) == as_turns(np.str_("Hi")) == ["Hi"]
    table = pandas.DataFrame({"said": turns, "by": ["user", "assistant", "user"]})
    assert as_turns(table["said"]) == as_turns(table["said"].astype("string")) == turns
    messages = table.rename(columns={"said": "content", "by": "role"}).to_dict("records")
    assert said_by(messages) == [("Hi", "user"), ("Hello", "assistant"), ("Well?", "user")]
    with pytest.raises(DialogueError, match="turn 2 is "):
        as_turns(pandas.Series(["Hi", None]))


def test_every_turn_is_ended_by_eos_and_only_there(tokenizer):
    turns = ["Hello, how are you today?", "<|endoftext|>", "", "☕"]
    ids = encode(tokenizer, turns, eos=EOS, n_positions=200, max_new_tokens=40)
    assert ids == [i for turn in turns for i in (*tokenizer.encode(turn), EOS)]
    assert ids.count(EOS) == 4


def test_the_worked_example_of_the_window():
    assert [window_start([4] * n, limit=13, target=8) for n in (1, 3, 5)] == [0, 0, 3]


def window_by_hand(lengths, limit, target):
    """The same conversation lived through: the kept turns as a list that grows and loses its oldest."""
    kept = list(range(len(lengths) % 2 == 0))  # an even number of turns: the bot spoke first
    for newest in range(len(kept), len(lengths), 2):
        kept = [*kept, *([newest - 1] if newest and newest - 1 not in kept else []), newest]
        if sum(lengths[i] for i in kept) > limit:
            while len(kept) > 1 and sum(lengths[i] for i in kept) > target:
                kept = kept[1:]
    return kept[0]


def test_whole_turns_go_oldest_first_down_to_the_target():
    rng = random.Random(0)
    dropped = 0
    for _ in range(300):
        lengths = [rng.randint(1, 12) for _ in range(rng.randint(1, 21))]
        limit = rng.randint(10, 40)
        target = rng.randint(5, limit)
        start = window_start(lengths, limit=limit, target=target)
        assert start == window_by_hand(lengths, limit, target)
        assert 0 <= start < len(lengths)
        assert sum(lengths[start:]) <= limit or start == len(lengths) - 1
        dropped += start > 0
    assert dropped > 100


def test_the_window_moves_once_in_many_turns():
    starts = [window_start([5] * n, limit=80, target=48) for n in range(1, 60, 2)]
    moves = sum(a != b for a, b in itertools.pairwise(starts))
    assert starts[-1] > 0
    assert moves <= len(starts) // 3
    assert starts == sorted(starts)


@pytest.mark.parametrize(("n_positions", "max_new_tokens"), [(96, 40), (96, 1), (64, 63), (64, 500), (1, 1), (2, 1)])
def test_there_is_room_for_a_reply_and_for_a_context(tokenizer, n_positions, max_new_tokens):
    limit = context_limit(n_positions, max_new_tokens)
    assert limit <= max(n_positions - max_new_tokens, n_positions // 2, 1)
    turns = ["Do you like the rain?"] * 41
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # where not even one turn fits
        ids = encode(tokenizer, turns, eos=EOS, n_positions=n_positions, max_new_tokens=max_new_tokens)
    assert 1 <= len(ids) <= limit
    assert ids[-1] == EOS


def test_a_context_begins_with_a_whole_turn(tokenizer):
    turns = [f"Hello {i}, how are you today?" for i in range(31)]
    ids = encode(tokenizer, turns, eos=EOS, n_positions=96, max_new_tokens=40)
    kept = tokenizer.decode([i if i != EOS else tokenizer.encode("\n")[0] for i in ids]).splitlines()
    assert 1 < len(kept) < 31
    assert kept == turns[-len(kept) :]


def test_a_newest_turn_that_is_too_long_loses_its_start_and_says_so(tokenizer):
    newest = "".join(chr(65 + i % 26) for i in range(300))
    ids = tokenizer.encode(newest)
    with pytest.warns(TruncationWarning) as caught:
        context = encode(tokenizer, ["Hi", "Hello", newest], eos=EOS, n_positions=96, max_new_tokens=40)
    assert context == [*ids[-55:], EOS]
    (warning,) = caught
    message = str(warning.message)
    assert "\n" not in message
    for number in (len(ids) + 1, len(ids) + 1 - 56, 96):
        assert str(number) in message


def test_a_newest_turn_that_fits_exactly_is_whole(tokenizer):
    ids = tokenizer.encode("€" * 18 + "!")  # 3 · 18 + 1 tokens and EOS: 56 = 96 − 40
    assert len(ids) == 55
    context = encode(tokenizer, ["Hi", "Hello", "€" * 18 + "!"], eos=EOS, n_positions=96, max_new_tokens=40)
    assert context == [*ids, EOS]
