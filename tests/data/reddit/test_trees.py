"""Threads to paths: shapes drawn by hand, in every order of their records."""

import itertools
import json

import pytest

from dialogpt_jax.data.reddit.records import Comment, Problem, Submission, parse_record
from dialogpt_jax.data.reddit.rules import Rules
from dialogpt_jax.data.reddit.threads import judge, read
from dialogpt_jax.data.reddit.trees import build_thread, path_to, replies

LONG = "word " * 31


def make(own, parent, body="It is so .", month="2012-01"):
    parent = "t3_s" if parent == "s" else f"t1_{parent}"
    return Comment(f"t1_{own}", parent, "t3_s", 1, "r", month, "ann", body)


def paths(records, **rules):
    """{reply: (its path as letters, why it begins there)}"""
    rules = Rules(**rules)
    thread = build_thread("t3_s", records, rules)
    found = {}
    for reply in replies(thread, rules):
        path = path_to(reply, thread, rules)
        letters = "".join(comment.id[3:] for comment in path.turns)
        found[reply.id[3:]] = ((path.title or "") + letters, path.cut)
    return found


TREE = [make("b", "s"), make("c", "b"), make("d", "c"), make("e", "b"), make("f", "s")]


def test_leaves_or_all_in_any_order():
    for records in itertools.permutations(TREE):
        assert paths(records) == {"d": ("bcd", ""), "e": ("be", ""), "f": ("f", "")}
    assert paths(TREE, all_comments=True) == {
        "b": ("b", ""), "c": ("bc", ""), "d": ("bcd", ""), "e": ("be", ""), "f": ("f", "")
    }  # fmt: skip
    assert list(paths(TREE)) == ["e", "d", "f"]  # by parent, then id


def test_titles_depths_and_orphans():
    title = Submission("t3_s", "r", "ann", "T", 5)
    assert paths([*TREE, title], titles=True) == {"d": ("Tbcd", ""), "e": ("Tbe", ""), "f": ("Tf", "")}
    assert paths([*TREE, title])["d"] == ("bcd", "")
    assert paths(TREE, titles=True)["d"] == ("bcd", "")
    assert paths([*TREE, title], titles=True, max_depth=2)["d"] == ("cd", "depth")
    assert paths([*TREE, title], titles=True, max_depth=3)["d"] == ("Tbcd", "")  # the title is no comment
    assert paths(TREE[1:])["d"] == ("cd", "orphan")


def test_a_long_turn_cuts_what_is_above_it():
    assert paths([make("b", "s"), make("c", "b", LONG), make("d", "c")]) == {"d": ("d", "long_turn")}
    assert paths([make("b", "s"), make("c", "b", LONG)]) == {"c": ("", "long_turn")}
    assert paths([make("b", "s"), make("c", "b", LONG)], without=frozenset({"long_turn"})) == {"c": ("bc", "")}


def test_circles():
    circle = [make("b", "d"), make("c", "b"), make("d", "c"), make("e", "b"), make("f", "f")]
    assert paths(circle) == {"e": ("cdbe", "cycle")}
    assert paths(circle, faithful=frozenset({"cycles"})) == {"e": ("bcdbe", "depth")}
    every = paths(circle, all_comments=True)
    assert every["f"] == ("f", "cycle")
    assert every["b"] == ("cdb", "cycle")
    assert paths(circle, faithful=frozenset({"cycles"}), all_comments=True)["f"] == ("fffff", "depth")


def test_of_one_id_the_last_record_counts():
    first, last = make("b", "s", "old text"), make("b", "s", "new text")
    thread = build_thread("t3_s", [first, make("c", "b"), last], Rules())
    assert (thread.comments["t1_b"].body, thread.duplicates) == ("new text", 1)


def test_a_huge_thread_is_cut_and_told():
    records = [make(f"x{number}", "s") for number in range(10)] + [Submission("t3_s", "r", "ann", "T", 10)]
    thread = build_thread("t3_s", records, Rules(max_thread=4))
    assert (list(thread.comments), thread.dropped, thread.submission.title) == (
        [f"t1_x{number}" for number in range(4)], 6, "T"
    )  # fmt: skip
    assert build_thread("t3_s", records, Rules(max_thread=4, without=frozenset({"huge_thread"}))).dropped == 0


def test_what_is_deleted_is_not_there():
    records = [
        make("b", "s"),
        make("c", "b", "[removed]"),
        make("d", "c"),
        Submission("t3_s", "r", "[deleted]", "T", 3),
    ]
    kept = [found for record in records if not isinstance(found := read(record, Rules()), str)]
    assert [record.id for record in kept] == ["t1_b", "t1_d", "t3_s"]
    assert kept[2].title == ""
    _, outcomes = judge("t3_s", kept, Rules(titles=True))
    assert [(one.reply.id, one.rule, one.cut) for one in outcomes] == [
        ("t1_d", "depth", "orphan"),
        ("t1_b", "depth", ""),
    ]
    assert read(records[3], Rules(faithful=frozenset({"deleted"}))).title == "T"


RECORDS = [
    ({"id": "c2", "link_id": "t3_a1", "parent_id": "t1_c1", "score": 3, "created_utc": 1325376000},
     ("c2", "t1_c1", 3, "2012-01")),
    ({"name": "t1_c2", "link_id": "t3_a1", "parent_id": "t3_a1", "score": "3", "created_utc": "1328054400"},
     ("c2", "t3_a1", 3, "2012-02")),
    ({"id": 436, "link_id": 361, "parent_id": 360, "score": 3.0}, ("c4", "t1_a0", 3, "")),
    ({"id": 436.0, "link_id": "a1", "parent_id": None, "score": None}, ("c4", "t3_a1", 0, "")),
    ({"id": "c2", "link_id": "a1", "parent_id": "a1", "ups": 4}, ("c2", "t3_a1", 4, "")),
    ({"parent_id": "", "permalink": "/r/Ask/comments/a1/why/c2/", "score": "None"}, ("c2", "t3_a1", 0, "")),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "said"), RECORDS)
def test_fields_of_any_year(fields, said):
    found = parse_record(json.dumps({"body": "x", **fields}).encode())
    assert found.thread == "t3_a1"
    assert (found.id.removeprefix("t1_"), found.parent, found.score, found.month) == said


def test_a_subreddit_stands_in_several_fields():
    base = '{"id": "c", "link_id": "t3_a", "body": "x", '
    for field in ('"subreddit": "Ask"', '"subreddit_name_prefixed": "r/Ask"', '"permalink": "/r/Ask/comments/a/w/c/"'):
        assert parse_record(f"{base}{field}}}".encode()).subreddit == "ask"
    submission = parse_record(b'{"id": "a", "title": "T", "num_comments": "7", "permalink": "/r/Ask/comments/a/t/"}')
    assert submission == Submission("t3_a", "ask", "", "T", 7)


WRONG = [
    (b"{", "not JSON ("),
    (b"\xff{}", "not UTF-8"),
    (b"[1]", "not an object with fields"),
    (b"{}", "neither a body nor a title; the fields are none"),
    (b'{"body": 3, "id": "c"}', "`body` is 3, not a text"),
    (b'{"body": "x"}', "no `id`; the fields are body"),
    (b'{"body": "x", "id": "c"}', "no `link_id`"),
    (b'{"body": "x", "id": true, "link_id": "a"}', "`id` is true, which is no id"),
    (b'{"body": "x", "id": "c", "link_id": "a b"}', '`link_id` is "a b", which is no id'),
    (b'{"body": "x", "id": "c", "link_id": "a", "parent_id": [1]}', "`parent_id` of c is [1], which is no id"),
    (b'{"body": "x", "id": "c", "link_id": "a", "score": "many"}', '`score` is "many", not a number'),
    (b'{"body": "' + b"x" * 100_001 + b'", "id": "c", "link_id": "a"}', "`body` has 100,001 characters"),
    (b"[" * 100_000, "not JSON ("),
]


@pytest.mark.parametrize(("line", "said"), WRONG)
def test_what_is_no_record_says_why(line, said):
    found = parse_record(line)
    assert isinstance(found, Problem)
    assert said in found.reason
    assert "\n" not in found.reason


def test_numbers_that_are_too_big_are_no_reason_to_stop():
    line = b'{"body": "x", "id": "c", "link_id": "a", "score": 1e400, "created_utc": 1e300}'
    assert parse_record(line).reason == "`score` is Infinity, not a number"
    assert parse_record(line.replace(b"1e400", b"1")).month == ""


def test_integers_beyond_every_float_are_told():
    base = b'{"body": "x", "id": "c", "link_id": "a", "score": 1}'
    big = b"1" + b"0" * 400
    assert "not a number" in parse_record(base.replace(b"1}", big + b"}")).reason
    assert parse_record(base.replace(b"}", b', "created_utc": ' + big + b"}")).month == ""
    assert parse_record(b'{"title": "T", "id": "a", "num_comments": ' + big + b"}").comments is None


def test_a_permalink_is_read_in_time_and_its_ids_are_checked():
    fields = {"id": "c", "link_id": "a", "body": "x"}
    long = json.dumps(fields | {"permalink": "a" * 1_000_000}).encode()
    assert parse_record(long).id == "t1_c"  # each place in it tried to be the beginning of a subreddit's name
    for ids in ("a" * 17 + "/x/c", "a/x/" + "c" * 17):
        found = parse_record(json.dumps({"body": "x", "permalink": f"/r/ask/comments/{ids}"}).encode())
        assert isinstance(found, Problem)
        assert "which is no id" in found.reason


@pytest.mark.parametrize("name", ["\ud800", "\x1b]0;x\x07", "two\nlines", "x" * 101, "\u202eabc"])
def test_a_subreddit_whose_name_is_none_is_told(name):
    for fields in ({"subreddit": name}, {"permalink": f"/r/{name}/comments/a/x/c"}):
        found = parse_record(json.dumps({"id": "c", "link_id": "a", "body": "x", **fields}).encode())
        assert isinstance(found, Problem)
        assert found.kind == "`subreddit` is no name"
        assert found.reason.isascii()
        assert found.reason.isprintable()


@pytest.mark.parametrize("name", ["AskReddit", "reddit.com", "u_some-one", "a:t5_3k2a9", "Россия"])
def test_names_of_subreddits_that_are_met(name):
    assert parse_record(json.dumps({"id": "c", "link_id": "a", "body": "x", "subreddit": name}).encode()).subreddit


def test_names_of_fields_have_no_power_over_a_terminal():
    assert parse_record(b'{"a\\ud800\\n\\u001b[31m": 1}').reason.endswith("the fields are a\\ud800\\n\\x1b[31m")


def test_a_submission_that_comes_twice_is_no_comment():
    first, last = Submission("t3_s", "r", "ann", "Old", 2), Submission("t3_s", "r", "ann", "New", 2)
    thread = build_thread("t3_s", [first, make("b", "s"), last], Rules())
    assert (thread.submission.title, thread.duplicates) == ("New", 0)


@pytest.mark.parametrize(
    ("meta", "gone"),
    [
        ({"was_deleted_later": True}, True),
        ({"removal_type": "removed by reddit", "retrieved_2nd_on": 1}, True),
        ({"was_deleted_later": False, "removal_type": None}, False),
        ({"is_edited": True}, False),
        ("deleted", False),
        (None, False),
    ],
)
def test_what_a_dump_says_was_deleted_after_it_was_read(meta, gone):
    fields = {"id": "c", "link_id": "a", "author": "Ann", "_meta": meta}
    comment = parse_record(json.dumps(fields | {"body": "It is so ."}).encode())
    assert comment.author == "Ann"  # whom a list may name
    assert read(comment, Rules()) == ("deleted" if gone else comment)
    assert not isinstance(read(comment, Rules(faithful=frozenset({"deleted"}))), str)
    assert not isinstance(read(comment, Rules(without=frozenset({"deleted"}))), str)
    for said in ({}, {"removed_by_category": "deleted"}, {"removed_by_category": None}):
        submission = parse_record(json.dumps(fields | said | {"title": "What is it"}).encode())
        assert bool(read(submission, Rules()).title) is not (gone or said.get("removed_by_category") == "deleted")
