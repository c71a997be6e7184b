"""What the check shows: masks that read without colour, bars in proportion, the share of padding, what is dropped."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from dialogpt_jax.data.check import (
    Shown,
    dropped_table,
    first_examples,
    padding,
    render_example,
    render_histogram,
    summary,
)
from dialogpt_jax.data.counts import DataCounts
from dialogpt_jax.data.example_options import ExampleOptions
from dialogpt_jax.data.examples import Example
from dialogpt_jax.text.tokenizer import Tokenizer

EOS = 256


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["bytes"], 257)


def plain(renderable, colour=False):
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=colour, color_system="truecolor" if colour else None)
    console.print(renderable, soft_wrap=True)
    return out.getvalue()


def write(tmp_path, *lines):
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    return [str(tmp_path / "talk.jsonl")]


MIXED = '{"turns": ["Hi!", "Hello.", "So?", "Bye \\u001b[2J\\n.", "Oh!"], "weights": [1, 0.3, 0, 2, 1]}'


def test_each_turn_stands_behind_its_weight(tmp_path, tokenizer):
    files = write(tmp_path, MIXED)
    (shown,) = first_examples(files, tokenizer, ExampleOptions(EOS))
    assert plain(render_example(shown, tokenizer, EOS)).splitlines() == [
        f"{files[0]}, line 1: 30 tokens",
        " context  Hi!⟨EOS⟩",
        "   × 0.3  Hello.⟨EOS⟩",
        " context  So?⟨EOS⟩",
        r"     × 2  Bye \x1b[2J\n.⟨EOS⟩",
        " learned  Oh!⟨EOS⟩",
        "",
    ]


def test_colours_tell_context_from_targets_and_weights_from_each_other(tmp_path, tokenizer):
    (shown,) = first_examples(write(tmp_path, MIXED), tokenizer, ExampleOptions(EOS))
    text = render_example(shown, tokenizer, EOS)

    def style(word):
        place = text.plain.index(word)
        return " ".join(sorted({str(span.style) for span in text.spans if span.start <= place < span.end}))

    assert [style(word) for word in ("Hi!", "Hello", "So?", "Bye", "Oh!")] == [
        "dim",
        "yellow",
        "dim",
        "bold green",
        "green",
    ]
    ends = [i for i in range(len(text.plain)) if text.plain.startswith("⟨EOS⟩", i)]
    assert len(ends) == 5
    styles = [next(str(span.style) for span in text.spans if span.start <= end < span.end) for end in ends]
    assert styles == ["dim", "yellow reverse", "dim", "bold green reverse", "green reverse"]
    assert "\x1b[" in plain(text, colour=True)


def test_what_is_cut_shows_it(tokenizer):
    ids = tokenizer.encode("abc")
    cut = Example(np.array([EOS, *ids], np.int32), np.array([0, 1, 1, 1], np.float32))
    assert plain(render_example(Shown("f", 3, cut, 2), tokenizer, EOS)).splitlines()[:3] == [
        "f, line 3: 4 tokens, the first of 2 examples",
        " context  …⟨EOS⟩",
        " learned  abc…",
    ]


def test_the_first_examples_are_of_the_first_dialogues_that_give_any(tmp_path, tokenizer):
    long = json.dumps({"turns": ["word"] * 20})
    files = write(tmp_path, "broken", long, '["a", "b"]', '["one"]', '["c", "d"]', '["e", "f"]')
    found = list(first_examples(files, tokenizer, ExampleOptions(EOS, 32, pack=True)))
    assert [(shown.line, shown.of > 1) for shown in found] == [(2, True), (3, False), (5, False)]
    assert all(shown.example.segments is None for shown in found)
    reverse = next(first_examples(files, tokenizer, ExampleOptions(EOS, 32, reverse=True), count=1))
    assert reverse.line == 2


def test_bars_are_in_proportion():
    lengths = np.zeros(33, np.int64)
    lengths[[1, 2, 3, 32]] = 1000, 3000, 500, 1
    lines = render_histogram(lengths)
    assert len(lines) == 16
    assert lines[0].split() == ["1-2", "4,000", "█" * 40]
    assert lines[1].split() == ["3-4", "500", "█" * 5]
    assert lines[2].split() == ["5-6", "0"]
    assert lines[-1].split() == ["31-32", "1", "▏"]
    odd = np.zeros(20, np.int64)
    odd[19] = 8
    assert [line.split()[0] for line in render_histogram(odd)][-1] == "19"
    assert len(render_histogram(odd)) == 1  # the empty ranges before the first example are left out
    assert sum(int(line.split()[1]) for line in render_histogram(odd)) == 8


def test_padding_is_counted():
    lengths = np.zeros(129, np.int64)
    lengths[[32, 128]] = 300, 100  # buckets of 16
    one, bucketed, packed = padding(lengths, 128)
    assert one == pytest.approx(1 - (300 * 32 + 100 * 128) / (400 * 128))
    assert bucketed == 0
    assert packed == 0  # four of 32 fill a row
    lengths = np.zeros(101, np.int64)
    lengths[100] = 10
    assert padding(lengths, 128) == pytest.approx((28 / 128, 12 / 112, 28 / 128))
    lengths[100] = 1
    assert padding(lengths, 128) == pytest.approx((28 / 128, 12 / 112, 28 / 128))


def test_the_summary_and_the_table_have_the_numbers():
    report = DataCounts()
    report.counts.update(
        lines=12, dialogues=9, split=2, examples=14, rows=14, tokens=1000, targets=800, turns=30, eos_targets=28
    )
    report.lengths = np.bincount([71] * 13 + [77])
    report.dropped = {"not JSON": (1, [("a.jsonl", 3, "not [JSON")]), "a turn is empty": (9, [("b.tsv", 4, "turn 2")])}
    text = "\n".join(summary(report, ExampleOptions(EOS, 80)))
    for part in (
        "12 lines: 9 dialogues, 10 dropped",
        "14 examples of at most 80 tokens; 2 longer dialogues were split",
        "1,000 tokens, 800 of them targets (80.0%)",
        "EOS is a target after 28 of 30 trained turns; 2 longer than 80 tokens lost their end",
    ):
        assert part in text
    rows = [" ".join(line.split()) for line in plain(dropped_table(report, ["a", "b"])).splitlines()]
    assert rows[1:] == ["a turn is empty 9 b.tsv:4, … turn 2", "not JSON 1 a.jsonl:3 not [JSON"]
    assert plain(dropped_table(report, ["a"])).splitlines()[2].split()[:4] == ["not", "JSON", "1", "3"]
    report.counts.clear()
    report.counts.update(lines=10)
    assert summary(report, ExampleOptions(EOS)) == ["10 lines: 0 dialogues, 10 dropped"]


def test_names_of_files_and_reasons_are_escaped(tokenizer):
    evil, seen = "\x1b]0;title\x07", r"\x1b]0;title\x07"
    shown = Shown(f"{evil}.jsonl", 3, Example(np.array([1, EOS]), np.array([0.0, 1.0])), 1)
    assert plain(render_example(shown, tokenizer, EOS)).startswith(f"{seen}.jsonl, line 3")
    report = DataCounts(dropped={"not JSON": (1, [(f"{evil}.jsonl", 3, f"not JSON ({evil}\n)")])})
    (row,) = plain(dropped_table(report, ["a", "b"])).splitlines()[1:]
    assert row.split() == ["not", "JSON", "1", f"{seen}.jsonl:3", "not", "JSON", f"({seen}\\n)"]
