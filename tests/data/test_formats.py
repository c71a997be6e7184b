"""Formats: each form of a line gives the same dialogue; a line that gives none is named with what is wrong with it."""

import gzip
import json
import re
import tracemalloc

import numpy as np
import pytest

from dialogpt_jax.data import dialogue_line, formats
from dialogpt_jax.data.formats import (
    DataError,
    Dialogue,
    Dropped,
    dialogues_to_reply_to,
    form_of,
    held_out,
    lenient_dialogues,
    read_dialogues,
)

TURNS = ("Hi ☕!", "Hello.", "Bye.")
SPEAKERS, WEIGHTS = ("Ann", "Bob", "Ann"), (0.0, 0.3, 1.0)
WHOLE = Dialogue(TURNS, SPEAKERS, WEIGHTS)


def read(tmp_path, *lines, name="talk.jsonl"):
    """Lines that are bytes as they are, all others as JSON."""
    raw = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    file = tmp_path / name
    file.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return list(lenient_dialogues(file))


@pytest.mark.parametrize("name", ["talk.jsonl", "talk.jsonl.gz", "talk.json"])
def test_each_form_of_json_in_one_file(tmp_path, name):
    as_turns = [{"text": t, "speaker": s, "weight": w} for t, s, w in zip(TURNS, SPEAKERS, WEIGHTS, strict=True)]
    as_messages = [{"speaker": s, "content": t, "weight": w} for t, s, w in zip(TURNS, SPEAKERS, WEIGHTS, strict=True)]
    found = read(
        tmp_path,
        b"\xef\xbb\xbf" + json.dumps({"turns": TURNS}).encode(),  # a byte order mark
        {"turns": TURNS, "weights": WEIGHTS, "speakers": SPEAKERS, "source": "ours"},
        {"turns": as_turns},
        {"messages": as_messages},
        as_messages,
        TURNS,
        {"turns": [TURNS[0], {"text": "Hello.", "loss": False}, {"text": "Bye.", "speaker": "Bob"}]},
        {"turns": TURNS, "speakers": ["Ann", None, "Ann"], "weights": [1, 2, 3]},
        name=name,
    )
    assert found == [
        Dialogue(TURNS),
        *[WHOLE] * 4,
        Dialogue(TURNS),
        Dialogue(TURNS, (None, None, "Bob"), (1.0, 0.0, 1.0)),
        Dialogue(TURNS, ("Ann", None, "Ann"), (1.0, 2.0, 3.0)),
    ]


@pytest.mark.parametrize("name", ["talk.tsv", "talk.tsv.gz"])
def test_microsofts_lines(tmp_path, name):
    lines = [b"0.0 2 of us . EOS 1.0 so ?\t1.0 yes\r", b"1 hi\t0.3 EOS is a word", b"0.0 a EOS 0.0 b\t.5 c"]
    assert read(tmp_path, *lines, name=name) == [
        Dialogue(("2 of us .", "so ?", "yes"), None, (0.0, 1.0, 1.0)),
        Dialogue(("hi", "EOS is a word"), None, (1.0, 0.3)),
        Dialogue(("a", "b", "c"), None, (0.0, 0.0, 0.5)),
    ]
    assert form_of(tmp_path / name) == dialogue_line.WEIGHTED_TSV
    plain = [b"2 of us ?\tyes", b"how many ? EOS 2 of us .\t2 ?", b"nan\t1 2 3"]
    assert read(tmp_path, *plain, name=name) == [  # a number at the start of some turns is no weight
        Dialogue(("2 of us ?", "yes")),
        Dialogue(("how many ?", "2 of us .", "2 ?")),
        Dialogue(("nan", "1 2 3")),
    ]
    assert form_of(tmp_path / name) == dialogue_line.TSV


def test_the_dummy_corpus(shared):
    found = list(lenient_dialogues(shared / "data" / "dummy_data.tsv"))
    assert len(found) == 2000
    assert found[0] == Dialogue(("what are you doing for a living ?", "i am a admin ."))
    assert not any(isinstance(line, Dropped) for line in found)


MESSAGES = [{"role": "user", "content": "Hi ☕!"}, {"role": "assistant", "content": "Hello."}]
CHAT = Dialogue(("Hi ☕!", "Hello."), ("user", "assistant"))


def test_sharegpt_s_conversations_and_prompts_with_responses(tmp_path):
    conversation = [{"from": "human", "value": "Hi ☕!"}, {"from": "gpt", "value": "Hello."}]
    found = read(
        tmp_path,
        {"conversations": conversation, "id": 7},
        {"messages": MESSAGES},
        conversation,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi ☕!"}]}, MESSAGES[1]]},
        *(
            {first: "Hi ☕!", second: "Hello.", "id": 7}
            for first, second in (("prompt", "response"), ("question", "answer"))
        ),
        {"prompt": "Hi ☕!", "completion": "Hello."},
    )
    assert found == [CHAT] * 4 + [Dialogue(CHAT.turns)] * 3


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["talk.json", "talk.json.gz"])
def test_a_file_that_is_one_list(tmp_path, name, indent):
    items = [{"messages": MESSAGES}, ["one"], CHAT.turns]
    raw = b"\xef\xbb\xbf" + json.dumps(items, indent=indent).replace("\n", "\r\n").encode()
    found = read(tmp_path, raw, name=name)
    assert found == [
        CHAT,
        Dropped(2, "one turn; a dialogue has at least two", "fewer than two turns"),
        Dialogue(CHAT.turns),
    ]
    (broken,) = read(tmp_path, b'[{"turns": ["a",\n "b"]}, oops]', name=name)
    assert broken.reason.startswith("not JSON (")
    assert read(tmp_path, list(CHAT.turns), MESSAGES, name=name) == [Dialogue(CHAT.turns), CHAT]  # a dialogue a line


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_tables(tmp_path, mark, end):
    def table(*lines):
        return read(tmp_path, mark + end.join(line.encode() for line in lines) + end, name="talk.csv")

    assert table("id,Prompt,response", '1,"Hi, ☕!",Hello.', '2,"say ""two\nlines""",  ', "3,a", '4,"""a""",b') == [
        Dialogue(("Hi, ☕!", "Hello.")),
        Dropped(3, "one turn; a dialogue has at least two", "fewer than two turns"),
        Dropped(4, "2 columns; the turns go up to column 3", "not as many columns as the first line"),
        Dialogue(('"a"', "b")),
    ]
    assert table("prompt;response", '"say ""two\nlines""";b') == [Dialogue(('say "two\nlines"', "b"))]
    assert table("turn 2,turn 1,turn 3", "b,a,c", "b,a,") == [Dialogue(("a", "b", "c")), Dialogue(("a", "b"))]
    assert table("response,context,context/0", "c,b,a", "c,b,") == [Dialogue(("a", "b", "c")), Dialogue(("b", "c"))]
    with pytest.raises(
        DataError, match=r"talk.csv: the columns are id, text; name them prompt and response, or turn 1"
    ):
        table("id,text", "1,a")


def test_a_prompt_alone_is_replied_to_and_no_dialogue_to_learn(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hi!"}\n{"prompt": "So?", "response": "Yes."}\n', encoding="utf-8")
    (tmp_path / "p.csv").write_text("id,prompt\n1,Hi!\n2,So?\n", encoding="utf-8")
    assert dialogues_to_reply_to(tmp_path / "p.jsonl")[0] == [["Hi!"], ["So?", "Yes."]]
    assert dialogues_to_reply_to(tmp_path / "p.csv")[0] == [["Hi!"], ["So?"]]
    assert isinstance(next(lenient_dialogues(tmp_path / "p.jsonl")), Dropped)
    with pytest.raises(DataError, match="the columns are id, prompt"):
        list(lenient_dialogues(tmp_path / "p.csv"))


def test_byte_order_marks_and_line_ends_are_no_part_of_turns(tmp_path):
    line = json.dumps({"turns": ["a", "b"]}).encode()
    joined = b"\xef\xbb\xbf" + line + b"\r\n" + b"\xef\xbb\xbf" + line + b"\r\n"  # two files, one behind the other
    assert read(tmp_path, joined) == [Dialogue(("a", "b"))] * 2
    assert read(tmp_path, b"\xef\xbb\xbf1.0 a\t0.5 b\r\n", name="talk.tsv") == [Dialogue(("a", "b"), None, (1.0, 0.5))]


def test_the_strict_reader_stops_where_the_held_out_reader_goes_on(tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text('["a", "b"]\n["c"]\n{"prompt": "d", "response": "e"}\n["f", "g"]\n')
    assert held_out(file) == (
        [["a", "b"], ["d", "e"], ["f", "g"]],
        f"{file}: dropped 1 of 4 lines, the first line 2: one turn; a dialogue has at least two",
    )
    assert held_out(file, most=1) == ([["a", "b"]], "")
    strict = read_dialogues(file)
    assert next(strict) == ["a", "b"]
    with pytest.raises(DataError, match=r"talk\.jsonl, line 2: one turn; a dialogue has at least two"):
        next(strict)
    file.write_text('{"a": 1}\n')
    with pytest.raises(
        DataError, match=r"none of 1 line is a dialogue; line 1: no `turns`, .*; read are lines of JSON with"
    ):
        held_out(file)
    file.write_text("")
    with pytest.raises(DataError, match="none of 0 lines is a dialogue; the file is empty; read are"):
        held_out(file)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("talk.jsonl", [b'["a", "b"]', b'["c", "d"]', b'["e"]']),
        ("talk.json.gz", [b'["a", "b"]', b'["c", "d"]', b'["e"]']),
        ("talk.tsv", [b"a\tb", b"c\td", b"e"]),
        ("talk.csv", [b"prompt,response", b"a,b", b"c,d", b"e"]),
    ],
)
def test_blank_lines_are_skipped_and_the_others_keep_their_numbers(tmp_path, name, lines):
    file = tmp_path / name
    blank = b"\xef\xbb\xbf\n \t\r\n" + b"".join(line + b"\n\n  \r\n\n" for line in lines) + b" "
    file.write_bytes(gzip.compress(blank) if name.endswith(".gz") else blank)
    number = blank.splitlines().index(lines[-1]) + 1
    found = list(lenient_dialogues(file))
    assert found[:2] == [Dialogue(("a", "b")), Dialogue(("c", "d"))]
    assert [dropped.line for dropped in found[2:]] == [number]
    assert held_out(file)[0] == [["a", "b"], ["c", "d"]]
    assert "dropped 1 of 3 lines" in held_out(file)[1]
    with pytest.raises(DataError, match=rf"{name}, line {number}: "):
        list(read_dialogues(file))
    ended = blank.replace(b"\n" + lines[-1] + b"\n", b"\n")
    file.write_bytes(gzip.compress(ended) if name.endswith(".gz") else ended)
    assert list(read_dialogues(file)) == dialogues_to_reply_to(file)[0] == [["a", "b"], ["c", "d"]]


def test_a_file_of_blank_lines_is_empty(tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text("\n \n")
    for read_file in (held_out, dialogues_to_reply_to, lambda path: list(read_dialogues(path))):
        with pytest.raises(DataError, match="the file is empty"):
            read_file(file)


def test_the_assistant_s_own_message_is_named_by_its_line(tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text("\n".join(["", json.dumps(MESSAGES[:1]), "", json.dumps(MESSAGES[:2]), ""]))
    assert "1 of 2 dialogues ends with the assistant's own message, on line 4;" in dialogues_to_reply_to(file)[1]


BROKEN = [
    (b"{oops", "not JSON (Expecting property name", "not JSON"),
    (b"[" * 100_000, "not JSON (maximum recursion depth", "not JSON"),
    (b'{"turns": ["a", "b\xff"]}', "byte 19 (0xff) is not UTF-8", "not UTF-8"),
    (b"7", "no `turns`, `messages`, `conversations`, or `prompt` and `response`, but 7", "no known form"),
    ({"text": "a"}, "no `turns`, `messages`, `conversations`, or `prompt`", "no known form"),
    ({"prompt": "a"}, "no `turns`, `messages`, `conversations`, or `prompt`", "no known form"),
    ({"prompt": "a", "response": ["b"]}, "`response` is no text", "turn 2 has no text"),
    ({"conversations": "ab"}, "`conversations` is no list", "`conversations` is no list"),
    (
        {"messages": [{"role": "system", "content": "x"}, *MESSAGES]},
        "message 1: a system message is no turn of the dialogue; leave it out, or put its text into a user message",
        "a system message",
    ),
    (
        {"conversations": [{"from": "system", "value": "x"}]},
        "message 1: a system message is no turn",
        "a system message",
    ),
    ([*MESSAGES, {"role": "tool", "content": "x"}], "message 3: a tool message is no turn", "a tool message"),
    ([*MESSAGES, {"role": "x", "content": "x"}], "message 3: 'x' is no role; known are user, ", "an unknown role"),
    ({"conversations": [{"from": "Ann", "value": "x"}]}, "message 1: 'Ann' is no role; known are", "an unknown role"),
    ({"turns": "ab"}, "`turns` is no list", "`turns` is no list"),
    ({"messages": {"a": 1}}, "`messages` is no list", "`messages` is no list"),
    ({"turns": []}, "no turn; a dialogue has at least two", "fewer than two turns"),
    ({"turns": ["a"]}, "one turn; a dialogue has at least two", "fewer than two turns"),
    ({"turns": ["a", " \n"]}, "turn 2 is empty", "a turn is empty"),
    ({"turns": ["a", 5]}, "turn 2 has no text", "a turn has no text"),
    ({"turns": ["a", {"content": None}]}, "turn 2 has no text", "a turn has no text"),
    (
        [MESSAGES[0], {"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}],
        "part 1 of message 2 is of type 'image_url'; only text can be read, leave the part out",
        "a part of a message is no text",
    ),
    ({"turns": ["a", {"content": [{"type": "text", "text": 3}]}]}, "part 1 of message 2 has no text", "a part of a"),
    ({"turns": ["a", {"content": []}]}, "turn 2 is empty", "a turn is empty"),
    ({"turns": ["a", "b" * 100_001]}, "turn 2 has 100,001 characters; the most is 100,000", "a turn is too long"),
    ({"turns": ["a", "b" * 10_000_000]}, "the line has 10,000,021 bytes; the most is 8,388,608", "line too long"),
    (b'{"turns": ["a", "\\ud800"]}', "turn 2 holds a lone surrogate, which is no character", "a lone surrogate"),
    ({"turns": ["a", "b"], "weights": [1]}, "1 weight for 2 turns", "not as many weights as turns"),
    ({"turns": ["a", "b"], "weights": [1, -1]}, "weight 2 is -1; it must be a finite", "a weight is out of range"),
    ({"turns": ["a", "b"], "weights": [1, float("nan")]}, "weight 2 is nan; it", "a weight is out of range"),
    ({"turns": ["a", "b"], "weights": [1, 1e39]}, "weight 2 is 1e+39; it", "a weight is out of range"),
    ({"turns": ["a", "b"], "weights": [1, 10**400]}, "weight 2 is 1000", "a weight is out of range"),
    ({"turns": ["a", "b"], "weights": [1, "1"]}, 'weight 2 is "1", not a number', "a weight is not a number"),
    ({"turns": ["a", "b"], "weights": [1, True]}, "weight 2 is true, not a number", "a weight is not a number"),
    ({"turns": ["a", "b"], "weights": [1, None]}, "weight 2 is null, not a number", "a weight is not a number"),
    ({"turns": ["a", "b"], "weights": 1}, "`weights` is no list", "`weights` is no list"),
    ({"turns": ["a", {"text": "b", "weight": "x"}]}, 'weight 2 is "x", not', "a weight is not a number"),
    ({"turns": ["a", {"text": "b", "weight": 1}], "weights": [1, 1]}, "weights stand both in", "weights stand both"),
    ({"turns": ["a", "b"], "speakers": ["x"]}, "1 speaker for 2 turns", "not as many speakers as turns"),
    ({"turns": ["a", "b"], "speakers": ["x", 5]}, "the speaker of turn 2 is no text", "a speaker is no text"),
]


def test_broken_lines_are_named_and_the_rest_is_read(tmp_path):
    good = {"turns": ["a", "b"]}
    found = read(tmp_path, *[line for broken, *_ in BROKEN for line in (broken, good)])
    assert found[1::2] == [Dialogue(("a", "b"))] * len(BROKEN)
    for number, (dropped, (_, reason, kind)) in enumerate(zip(found[::2], BROKEN, strict=True)):
        assert isinstance(dropped, Dropped)
        assert dropped.line == 2 * number + 1
        assert dropped.reason.startswith(reason)
        assert dropped.kind.startswith(kind)


def test_broken_lines_of_tsv(tmp_path):
    good = [b"0.0 a\t1.0 b"] * 10
    broken = [
        b"0.0 a 1.0 b",
        b"1,2,3\t0.0 a\t1.0 b",
        b"0.0 a\t",
        b"0.0 a\tb",
        b"0.0 a\t-1 b",
        b"0.0 a\tnan b",
        b"0.0\t1.0 b",
    ]
    found = read(tmp_path, *good, *broken, name="talk.tsv")
    assert [d.line for d in found[10:]] == list(range(11, 18))
    assert [d.reason for d in found[10:]] == [
        "no tab; expected source ⇥ target",
        "3 columns; expected source ⇥ target",
        "turn 2 begins with '', not a weight",
        "turn 2 begins with 'b', not a weight",
        "weight 2 is -1; it must be a finite number from 0",
        "weight 2 is nan; it must be a finite number from 0",
        "turn 1 is empty",
    ]
    (dropped,) = read(tmp_path, b"a\t ", name="plain.tsv")
    assert dropped == Dropped(1, "turn 2 is empty", "a turn is empty")


@pytest.mark.parametrize("read", [held_out, dialogues_to_reply_to, lambda path: list(lenient_dialogues(path))])
@pytest.mark.parametrize("name", ["talk.jsonl.gz", "talk.tsv.gz", "talk.csv.gz", "talk.json.gz"])
def test_a_broken_gzip_is_an_error_that_names_file_and_line(tmp_path, name, read):
    rng = np.random.default_rng(0)
    dialogues = [[f"a{number}" for number in rng.integers(10**9, size=2)] for _ in range(5000)]
    lines = {
        "talk.jsonl.gz": [json.dumps({"turns": turns}) for turns in dialogues],
        "talk.tsv.gz": ["\t".join(turns) for turns in dialogues],
        "talk.csv.gz": ["prompt,response", *(",".join(turns) for turns in dialogues)],
        "talk.json.gz": [json.dumps([{"turns": turns} for turns in dialogues])],
    }[name]
    whole, file = "\n".join(lines).encode(), tmp_path / name
    file.write_bytes(gzip.compress(whole))
    assert len(read(file)[0] if read in (held_out, dialogues_to_reply_to) else read(file)) == 5000
    wrong_sum = gzip.compress(whole)[:-8] + bytes(4) + gzip.compress(whole)[-4:]
    for broken in (gzip.compress(whole)[:-2000], gzip.compress(whole)[:-1], wrong_sum, whole, b"\x1f\x8b"):
        file.write_bytes(broken)
        with pytest.raises(DataError, match=rf"{re.escape(str(file))}, line \d+: the gzip file is broken") as caught:
            read(file)
        assert "\n" not in str(caught.value)
        line = int(re.search(r"line (\d+)", str(caught.value))[1])
        assert line == 1 if broken in (whole, b"\x1f\x8b") or name == "talk.json.gz" else 4000 < line <= 5002


def test_a_huge_line_is_not_held_in_memory(tmp_path):
    file = tmp_path / "talk.jsonl"
    with file.open("wb") as out:
        for _ in range(64):
            out.write(b"x" * (1 << 20))
        out.write(b'\n{"turns": ["a", "b"]}')
    tracemalloc.start()
    found = list(lenient_dialogues(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [
        Dropped(1, f"the line has {(64 << 20) + 1:,} bytes; the most is 8,388,608", "line too long"),
        Dialogue(("a", "b")),
    ]
    assert peak < 40 << 20


def test_the_longest_line_and_turn_that_are_read(tmp_path):
    size = formats.MAX_LINE_BYTES
    line = b'{"turns": ["a", "b"], "note": "' + b"x" * (size - 33) + b'"}'
    assert len(line) == size
    assert read(tmp_path, line) == [Dialogue(("a", "b"))]
    assert isinstance(read(tmp_path, line + b" ")[0], Dropped)
    assert read(tmp_path, {"turns": ["a", "b" * 100_000]}) == [Dialogue(("a", "b" * 100_000))]
