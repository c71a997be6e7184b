"""Measures of conversations turn by turn, on conversations written by hand, each number counted by hand."""

import json

import numpy as np
import pytest

from dialogpt_jax.chat.selfchat import Conversation
from dialogpt_jax.evaluation.by_turn import NAMES, as_text, as_values, measure_turns, save_plot
from dialogpt_jax.replies.candidates import Candidate


def say(text, logprob=-1.0, finished=True):
    return Candidate(text, np.zeros(1, np.int32), np.array([logprob], np.float32), logprob, finished)


@pytest.fixture(scope="module")
def talks():
    """Two conversations, one of which ends a turn before the other."""
    return [
        Conversation(["x", "hi"], [say("a b a b a b", -6.0), say("c d"), say("x  ", -2.0)]),
        Conversation(["hi"], [say("é b", -3.0, finished=False), say("é  b")]),
    ]


def values(measured):
    return {one.name: one.value for one in measured.found}


def test_each_number_is_the_one_counted_by_hand(talks):
    first, second, third = measure_turns(talks, resamples=20)
    assert [(m.turn, m.speaker, m.replies) for m in (first, second, third)] == [
        (1, "bot", 2),
        (2, "other", 2),
        (3, "bot", 1),
    ]
    assert values(first) == pytest.approx(
        {
            "repeating": 1 / 2,  # abab stands twice
            "said before": 0,
            "Dist-1": 3 / 8,
            "Dist-2": 3 / 6,
            "length": 4,
            "ended": 1 / 2,
            "bits per byte": (9 / np.log(2)) / (11 + 4),  # é has two bytes
        }
    )
    assert values(second)["said before"] == 1 / 2  # spaces are no words
    assert values(third)["said before"] == 1  # a turn of the opening, too
    assert values(third)["bits per byte"] == pytest.approx(2 / np.log(2) / 3)


def test_intervals_hold_the_value_and_what_is_not_known_is_null(talks):
    measured = measure_turns(talks * 8, resamples=50)
    for one in as_values(measured)[0:2]:
        for name in NAMES:
            assert one[name]["low"] <= one[name]["value"] + 1e-12
            assert one[name]["value"] <= one[name]["high"] + 1e-12
    alone = as_values(measure_turns(talks, resamples=0))
    assert json.loads(json.dumps(alone, allow_nan=False))[2]["Dist-2"] == {"value": None, "low": None, "high": None}
    assert alone[0]["length"] == {"value": 4.0, "low": None, "high": None}


def test_the_table_has_a_line_a_turn(talks):
    head, rule, *lines = as_text(measure_turns(talks, resamples=0)).splitlines()
    assert head.split()[:4] == ["turn", "said", "by", "replies"]
    assert set(rule) == {"-"}
    assert [line.split()[:3] for line in lines] == [["1", "bot", "2"], ["2", "other", "2"], ["3", "bot", "1"]]
    assert lines[0].split()[3:] == ["50.0%", "0.0%", "0.375", "0.500", "4.0", "50.0%", "0.866"]
    assert "–" in lines[2]


def test_the_picture_is_there_whole(talks, tmp_path):
    pytest.importorskip("matplotlib")
    save_plot(measure_turns(talks, resamples=20), tmp_path / "a.png", title="$2 talks", names=["one ($1)", "the other"])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
