"""Rows in several lanes, each on a thread: the replies are those of one, errors are raised, and the end is waited for."""

import itertools
import os
import threading
import time

import fakes
import jax
import numpy as np
import pytest
from compile_counter import count_compilations

import dialogpt_jax as dg
from dialogpt_jax.decoding.speculative import Draft
from dialogpt_jax.replies import rolled
from dialogpt_jax.replies.rolled import side_by_side

WORDS = ("hello", "are", "you", "no", "cats", "reading", "the")
TOLERANCE = 2e-4  # of log-probabilities, float32: programs of other numbers of rows round differently


@pytest.mark.parametrize("draft", [None, Draft()])
def test_replies_in_lanes_are_those_of_one_and_each_program_is_compiled_once(monkeypatch, draft):
    bot = fakes.tiny_bot(n_positions=200)
    bot = dg.Bot(bot.params, bot.config, bot.tokenizer, draft=draft)
    draw = np.random.default_rng(3)
    dialogues = [[" ".join(draw.choice(WORDS, draw.integers(1, 20)))] for _ in range(60)]
    how = {"seed": 4, "max_new_tokens": 9, "batch_size": 12}
    jax.clear_caches()
    with count_compilations() as programs:
        one = bot.answers(dialogues, **how | {"batch_size": 4})
    monkeypatch.setattr(rolled, "lanes_of", lambda rows: 3)
    jax.clear_caches()
    with count_compilations() as again:
        three = bot.answers(dialogues, **how)
    assert len(again) == len(programs)
    for a, b in zip(one, three, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=TOLERANCE, atol=TOLERANCE)


def test_no_thread_stays_behind_a_progress_that_fails(monkeypatch):
    monkeypatch.setattr(rolled, "lanes_of", lambda rows: 2)
    before = threading.active_count()

    def fail(done, all):
        raise OSError("nobody listens")

    with pytest.raises(OSError, match="nobody listens") as caught:  # which holds the frames, as a notebook does
        fakes.tiny_bot().replies([["hello"], ["no"], ["the cats"]] * 5, max_new_tokens=4, progress=fail)
    assert threading.active_count() == before, caught


@pytest.mark.parametrize(
    ("cores", "rows", "lanes"), [(2, 32, 2), (2, 64, 2), (8, 32, 2), (8, 64, 4), (2, 31, 1), (1, 64, 1), (4, 1, 1)]
)
def test_a_lane_is_a_core_with_at_least_sixteen_rows(monkeypatch, cores, rows, lanes):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert rolled.lanes_of(rows) == 1  # of eight devices
    monkeypatch.setattr(rolled.jax, "local_device_count", lambda: 1)
    assert rolled.lanes_of(rows) == lanes
    monkeypatch.setattr(rolled.jax, "default_backend", lambda: "gpu")
    assert rolled.lanes_of(rows) == 1


def test_lanes_go_on_beside_each_other_and_all_that_they_give_comes_in_each_ones_order():
    meeting = threading.Barrier(3, timeout=20)

    def lane(name):
        for i in range(4):
            meeting.wait()  # which none leaves alone
            yield name, i

    found = list(side_by_side([lane(name) for name in "abc"]))
    assert len(found) == 12
    for name in "abc":
        assert [i for n, i in found if n == name] == [0, 1, 2, 3]
    assert list(side_by_side([iter([]), iter([1, None]), iter([])])) == [1, None]


def test_an_error_of_a_lane_is_raised_and_the_others_are_waited_for():
    ended = []

    def slow():
        for i in itertools.count():
            time.sleep(0.05)
            ended.append(i)
            yield i

    def wrong():
        yield 0
        raise ValueError("row 3 is no row")

    before = threading.active_count()
    with pytest.raises(ValueError, match="row 3 is no row"):
        list(side_by_side([slow(), wrong()]))
    assert threading.active_count() == before
    given = side_by_side([slow(), slow()])
    next(given)
    given.close()
    assert threading.active_count() == before
    counted = len(ended)
    time.sleep(0.2)
    assert len(ended) == counted
