"""Pairs: the rows that they become, the files they come from, the dialogues they are made of."""

import gzip

import numpy as np
import pytest
from fakes import SENTENCES, tiny_tokenizer

import dialogpt_jax as dg
from dialogpt_jax.data.pairs import against_other_turns, against_own_replies, make_pairs, pair_example, read_pairs

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.vocab_size - 1
DIALOGUES = [[f"{i} {turn}" for turn in SENTENCES[: 2 + i % 5]] for i in range(8)]


def test_a_pair_is_one_row_of_two_texts_marked_at_their_ends():
    example = pair_example([5, 6, 0, 7, 0], [8], [9, 4], max_length=9)
    assert example.tokens_T.tolist() == [5, 6, 0, 7, 0, 8, 5, 6, 0, 7, 0, 9, 4]
    assert example.weights_T.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert example.segments.tolist() == [0] * 6 + [1] * 7


def test_both_texts_lose_the_same_tokens_of_their_context():
    example = pair_example([5, 6, 0, 7, 0], [8], [9, 4], max_length=4)
    assert example.tokens_T.tolist() == [7, 0, 8, 7, 0, 9, 4]
    example = pair_example([5, 6, 0], [8], [9, 4, 3, 2], max_length=3)  # a token of context stays
    assert example.tokens_T.tolist() == [0, 8, 0, 9, 4]
    assert example.weights_T.tolist() == [0, 1, 0, 0, 1]


def test_texts_are_stripped_and_turns_end_with_eos():
    pairs = [dg.Pair([" Hi! ", "Hello."], "\nI am fine.", "No"), dg.Pair(["Hi!"], "No", "Yes")]
    first, second = make_pairs(pairs, TOKENIZER)
    hi, hello, fine, no, yes = (list(TOKENIZER.encode(t)) for t in ("Hi!", "Hello.", "I am fine.", "No", "Yes"))
    context = [*hi, EOS, *hello, EOS]
    assert first.tokens_T.tolist() == [*context, *fine, *context, *no]
    assert second.tokens_T.tolist() == [*hi, EOS, *no, *hi, EOS, *yes]


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (dg.Pair([], "a", "b"), "pair 1: the dialogue has no turn"),
        (dg.Pair(["Hi!"], " ", "b"), "pair 1: better is ' '"),
        (dg.Pair(["Hi!"], "a", 3), "pair 1: worse is 3"),
        (dg.Pair(["Hi!"], "a ", " a"), "pair 1: better and worse are both 'a'"),
        ("Hi!", "pair 1: a pair is 'Hi!'"),
    ],
    ids=["no turn", "empty", "no text", "alike", "no pair"],
)
def test_what_is_no_pair_is_one_line(pair, words):
    with pytest.raises(dg.DataError) as caught:
        make_pairs([dg.Pair(["Hi!"], "a", "b"), pair], TOKENIZER)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_a_file_is_read_or_its_first_wrong_line_named(tmp_path):
    line = '{"turns": ["Hi!", "Hello."], "better": "a", "worse": "b"}\n'
    (tmp_path / "pairs.jsonl").write_text(line + "\n" + line.replace('["Hi!", "Hello."]', '"Hi!"'))
    first, second = read_pairs(tmp_path / "pairs.jsonl")
    assert first == (["Hi!", "Hello."], "a", "b")
    assert second == (["Hi!"], "a", "b")
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    assert read_pairs(tmp_path / "pairs.jsonl.gz") == [first]
    for content, words in (
        (line + "{", "line 2: not JSON"),
        (line + '{"turns": ["Hi!"], "better": "a"}', "line 2: no pair, which is {"),
        (line + "\n[1]", "line 3: no pair"),
        (line.replace('"b"', '""'), "line 1: worse is ''"),
        ("", "line 1|the file is empty"),
    ):
        (tmp_path / "pairs.jsonl").write_text(content)
        with pytest.raises(dg.DataError, match=words) as caught:
            read_pairs(tmp_path / "pairs.jsonl")
        assert str(caught.value).startswith(f"{tmp_path / 'pairs.jsonl'}")
        assert "\n" not in str(caught.value)


def test_what_was_said_is_better_than_another_dialogue_s_turn():
    pairs = against_other_turns([*DIALOGUES, ["alone"], ["Hi!", " "]], seed=3)
    assert len(pairs) == len(DIALOGUES)
    for number, pair in enumerate(pairs):
        at = len(pair.turns)
        assert [*pair.turns, pair.better] == DIALOGUES[number][: at + 1]
        assert pair.worse[0] != str(number)
    assert pairs == against_other_turns(DIALOGUES, seed=3)[:8]
    assert pairs != against_other_turns(DIALOGUES, seed=4)
    assert len({len(pair.turns) for pair in pairs}) > 1
    every = against_other_turns(DIALOGUES, per_dialogue=100)
    assert len(every) == sum(len(turns) - 1 for turns in DIALOGUES)
    with pytest.raises(dg.DataError, match="2 dialogues give no pair"):
        against_other_turns([["Hi!", "Hello."], ["alone"]])


def test_what_was_said_is_better_than_a_model_s_reply():
    asked = []

    def reply(contexts):
        asked.extend(contexts)
        return ["" if i == 0 else DIALOGUES[1][len(c)] if i == 1 else f"my {c[-1]}" for i, c in enumerate(contexts)]

    pairs = against_own_replies(DIALOGUES, reply, seed=3)
    places = [(pair.turns, pair.better) for pair in against_other_turns(DIALOGUES, seed=3)]
    assert asked == [turns for turns, _ in places]
    assert [(pair.turns, pair.better) for pair in pairs] == places[2:]  # an empty one, and the truth itself, are none
    assert [pair.worse for pair in pairs] == [f"my {turns[-1]}" for turns, _ in places[2:]]
    assert isinstance(make_pairs(pairs, TOKENIZER)[0].tokens_T, np.ndarray)
