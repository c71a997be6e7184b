"""What a person reads steers no terminal, and letters of every script stay."""

import errno
import os

import pytest

from dialogpt_jax.errors import counted, escape_controls, naming, one_line


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J\x7f\x00\r\t", r"\x9b2J\x7f\x00\r\t"),  # C1's one-byte CSI; DEL
        ("admin\u202egnp.exe", r"admin\u202egnp.exe"),
        ("one\u2028two\u2029three", r"one\u2028two\u2029three"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_its_escape(text, seen):
    assert escape_controls(text) == seen


@pytest.mark.parametrize(
    "text", ["", "two\nlines", "naïve 東京 עברית", "👩\u200d👩\u200d👧 ☕️", "non\u00a0breaking", "C:\\x1b"]
)
def test_letters_emoji_and_line_ends_stay(text):
    assert escape_controls(text) == text


def test_a_line_end_goes_where_one_line_is_wanted():
    assert escape_controls("a\nb\tc", keep="") == r"a\nb\tc"
    assert escape_controls("a\nb\tc", keep="\n\t") == "a\nb\tc"


def test_errors_are_escaped():
    assert one_line(ValueError("tensor \x1b[2J")) == r"tensor \x1b[2J"
    assert one_line(FileNotFoundError(2, "No such file", "a\x1bb")) == r"a\x1bb: No such file"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_full_disk_names_the_file():
    with pytest.raises(OSError, match="No space left") as caught, naming("replies.jsonl"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert one_line(caught.value) == "replies.jsonl: No space left on device"
    with pytest.raises(BrokenPipeError), naming("replies.jsonl"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    with pytest.raises(FileNotFoundError) as caught, naming("replies.jsonl"):
        os.stat("/no/such/file")
    assert caught.value.filename == "/no/such/file"


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 replies differ"), (1, "1 reply differs"), (2, "2 replies differ"), (1000, "1,000 replies differ")],
)
def test_one_of_a_thing_is_no_plural(number, said):
    assert counted(number, "replies", ("differs", "differ")) == said
    assert counted(number, "replies") == said.rsplit(" ", 1)[0]
