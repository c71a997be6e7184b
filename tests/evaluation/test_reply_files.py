"""Every layout is read as it is; every file that does not fit is one error with file and line. And cleaning."""

import pytest

from dialogpt_jax.evaluation.cleaning import clean
from dialogpt_jax.evaluation.reply_files import (
    Lines,
    References,
    TextFileError,
    align,
    read_hypotheses,
    read_references,
    read_texts,
    repeat_references,
)

MULTI = "how are you ?\t12|fine\t3|i am ok | really\t-1|human one\nhi\thello\thuman two\n"


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_only_a_newline_ends_a_line(write):
    path = write("a", "one\u2028still one\r\ntwo\x85\n\nfo\rur\n")
    assert read_texts(path) == ["one\u2028still one", "two\x85", "", "fo\rur"]
    assert read_texts(write("b", b"\xef\xbb\xbfno mark\nno end")) == ["no mark", "no end"]


def test_one_reference_a_line_in_each_file(write):
    first, second = write("r0", "a b\nc\nd\n"), write("r1", "x\n\n y \n")
    assert read_references([first, second]).texts == [["a b", "x"], ["c"], ["d", " y "]]
    assert read_references([first]).texts == [["a b"], ["c"], ["d"]]


def test_all_references_of_a_key_without_the_human_reply(write):
    """The last is the human reply of the 6k test; only a score before the text is taken off, not a bar inside it."""
    path = write("refs", MULTI)
    found = read_references([path])
    assert found.keys == ["how are you ?", "hi"]
    assert found.texts == [["fine", "i am ok | really"], ["hello"]]
    assert read_references([path], human=None).texts == [
        ["fine", "i am ok | really", "human one"],
        ["hello", "human two"],
    ]
    assert read_references([path], human=0).texts == [["i am ok | really", "human one"], ["human two"]]
    assert read_references([path], human=2).texts == [["fine", "i am ok | really"], ["hello", "human two"]]


def test_references_are_repeated_as_dstc7_does():
    letters = list("abcdefgh")
    assert repeat_references(letters[:4], 5, human=1) == list("accda")
    assert repeat_references(letters, 6, human=1) == list("accdef")
    assert repeat_references(letters[:2], 3, human=1) == list("aaa")
    assert repeat_references(letters[:2], 3) == list("aba")
    assert repeat_references(["a", "", "b"], None, human=2) == ["a"]


def test_replies_find_their_references_by_key(write):
    replies = read_hypotheses(write("h", "hi\tx\tgood day\nother\tx\tunused\nhow are you ?\tx\tbad\n"))
    assert replies == Lines(replies.path, ["hi", "other", "how are you ?"], ["good day", "unused", "bad"])
    references = read_references([write("r", MULTI)])
    assert align(replies, references) == (["bad", "good day"], references.texts)
    assert align(replies, references, keys=["hi"]) == (["good day"], references.texts[1:])


def test_replies_without_keys_go_by_line(write):
    replies = read_hypotheses(write("h", "one\n\n"))
    assert replies.texts == ["one", ""]
    references = read_references([write("r", MULTI)])
    assert align(replies, references) == (["one", ""], references.texts)
    assert align(replies, references, keys=["hi"]) == ([""], references.texts[1:])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([b""], "r0, line 1: the file is empty"),
        ([b"good\nb\xe9d\n"], r"r0, line 2: byte 2 \(0xe9\) is not UTF-8"),
        ([b"a\nb\n", b"a\n"], "r0, line 2: no partner; .*r1 has 1 line, .*r0 has 2"),
        ([b"a\n", b"a\nb\nc\n"], "r1, line 2: no partner; .*r1 has 3 lines, .*r0 has 1"),
        ([b"a\n\n", b"b\n \n"], "r0, line 2: no reference, here or in the other files"),
        ([b"a\n\nb\n"], "r0, line 2: no reference"),
        ([b"a\nb\tc\n"], "r0, line 2: a tab in a file of one reference a line"),
        ([b"a\n", b"b\tc\n"], "r1, line 1: a tab in a file of one reference a line"),
        ([b"key\ta\tb\nkey only\n"], "r0, line 2: no reference behind the key; see --human"),
        ([b"key\ta\tb\nkey\t5|me\n"], r"r0, line 2: no reference but the human reply \(5\|me\); see --human"),
    ],
)
def test_errors_of_references_name_file_and_line(write, files, message):
    paths = [write(f"r{i}", content) for i, content in enumerate(files)]
    with pytest.raises(TextFileError, match=message) as caught:
        read_references(paths)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "h, line 1: the file is empty"),
        (b"a\n\xff\n", r"h, line 2: byte 1 \(0xff\)"),
        (b"a\nb\tc\n", "h, line 2: a tab, but line 1 has none"),
        (b"k\ta\nb\n", "h, line 2: no tab, but line 1 has one"),
    ],
)
def test_errors_of_replies_name_file_and_line(write, content, message):
    with pytest.raises(TextFileError, match=message):
        read_hypotheses(write("h", content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read_references([tmp_path / "none"])
    assert caught.value.filename == str(tmp_path / "none")


@pytest.mark.parametrize(
    ("replies", "keys", "message"),
    [
        (Lines("h", None, ["a"]), None, "r, line 2: no partner; h has 1 line, r has 2"),
        (Lines("h", None, ["a", "b", "c"]), None, "h, line 3: no partner; h has 3 lines, r has 2"),
        (Lines("h", ["k", "k"], ["a", "b"]), None, "h, line 2: a second reply for the key 'k'"),
        (Lines("h", ["k"], ["a"]), None, "r, line 2: h has no reply for the key 'm'"),
        (Lines("h", ["k"], ["a"]), ["k", "z"], "key 2 of the list, 'z', is not in r"),
    ],
)
def test_replies_that_do_not_fit(replies, keys, message):
    with pytest.raises(TextFileError, match=message):
        align(replies, References(("r",), ["k", "m"], [["x"], ["y"]]), keys=keys)


def test_keys_need_keys():
    with pytest.raises(TextFileError, match="no keys"):
        align(Lines("h", None, ["a"]), References(("r",), None, [["x"]]), keys=["k"])


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("I don't know:). how about this?https://a.b", "i do n't know :) . how about this ? __url__"),
        ("try [ GitHub ] ( https://github.com )", "try github"),
        ("We can't, won't; it's y'all's & <b>", "we can n't , will n't it 's y'all 's b"),
        ("Wow!!!!!! 3.5 at 10:30 ... ok....", "wow ! ! ! 3.5 at 10:30 ... ok ..."),
        ("naïve #tag @me 50% _x_", "na ve tag me 50 x"),
        ("(really) \"quoted\" 'single' 'em", "( really ) \" quoted \" ' single ' ' em"),
        ("a\0b URL __url__", "a b url __url__"),
        ("", ""),
    ],
)
def test_cleaning(text, cleaned):
    assert clean(text) == cleaned
