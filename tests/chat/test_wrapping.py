"""Text that is wrapped while it comes: the same words, on lines that fit, whatever the pieces."""

import random

import pytest
from rich.cells import cell_len

from dialogpt_jax.chat.wrapping import WordWrap


def wrapped(pieces, width, column=0):
    wrap = WordWrap(column)
    return "".join(wrap.feed(piece, width) for piece in pieces) + wrap.end(width)


@pytest.mark.parametrize(
    ("text", "width", "column", "lines"),
    [
        ("one two three four", 10, 0, ["one two", "three four"]),
        ("one two three four", 9, 5, ["one", "two three", "four"]),
        ("12345 1234", 10, 5, ["12345", "1234"]),
        ("12345", 10, 5, ["12345"]),
        ("123456", 10, 5, ["", "123456"]),
        ("a\n\n  b c", 4, 0, ["a", "", "  b", "c"]),
        (
            "1234567890123456789012345 ab cde",
            10,
            0,
            ["1234567890123456789012345 ab", "cde"],
        ),  # the terminal itself breaks the long word
        ("a\n 12345678", 8, 0, ["a", "12345678"]),
        ("東京東京東京", 5, 0, ["東京", "東京", "東京"]),
        ("ab  ", 3, 0, ["ab"]),
    ],
)
def test_words_stay_whole(text, width, column, lines):
    assert wrapped([text], width, column).split("\n") == lines
    assert wrapped(list(text), width, column).split("\n") == lines


@pytest.mark.parametrize("width", [8, 20, 40, 100])
def test_any_pieces_give_the_same_lines_that_fit(width):
    rng = random.Random(width)
    words = ["a", "film", "happy", "☕", "don't", "東京", "evening,", "\n"]
    text = " ".join(rng.choices(words, k=200))
    whole = wrapped([text], width, 5)
    cuts = sorted(rng.sample(range(len(text)), 60))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert wrapped(pieces, width, 5) == whole
    assert "".join(whole.split()) == "".join(text.split())
    assert [word for word in whole.split() if word.isascii()] == [word for word in text.split() if word.isascii()]
    first, *rest = whole.split("\n")
    assert cell_len(first) <= width - 5
    assert all(cell_len(line) <= width for line in rest)


def test_a_piece_is_shown_before_the_next_word_ends():
    wrap = WordWrap()
    assert [wrap.feed(piece, 40) for piece in ("Yes", ", I", " like", " films.")] == ["", "Yes,", " I", " like"]
    assert wrap.end(40) == " films."
