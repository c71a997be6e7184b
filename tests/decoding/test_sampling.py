"""`Sampling` itself: a pytree of numbers, which are checked where they can be.

Letters: B rows.
"""

import re

import jax
import numpy as np
import pytest
from compile_counter import count_compilations

from dialogpt_jax.decoding.logits import by_row
from dialogpt_jax.decoding.sampling import GREEDY, PAPER, Sampling, describe_sampling


def test_numbers_are_leaves_and_none_is_structure():
    one, other = Sampling(temperature=0.5, top_k=3), Sampling(temperature=2, top_k=40.0)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.structure(one) != jax.tree.structure(Sampling(temperature=0.5))
    assert jax.tree.structure(one) != jax.tree.structure(Sampling(temperature=0.5, top_k=3, penalty_scope="context"))
    assert {(leaf.dtype, leaf.shape) for leaf in jax.tree.leaves(by_row(other, 3))} == {(np.dtype("float32"), (3,))}


def test_whole_numbers_and_fractions_are_one_program():
    program = jax.jit(lambda sampling: sampling.temperature * 2)
    program(by_row(Sampling(temperature=0.5), 2))
    with count_compilations() as programs:
        for number in (1, 2.0, np.float64(3), np.float32(4), np.int64(5)):
            assert program(by_row(Sampling(temperature=number), 2)).tolist() == [2 * number] * 2
    assert programs == []


def test_named_samplings():
    assert Sampling(temperature=0) == GREEDY
    assert GREEDY.temperature is None
    assert (PAPER.top_k, PAPER.temperature, PAPER.top_p) == (10, 1.0, None)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("temperature", -0.1, "-0.1"),
        ("temperature", np.float32(-1), "-1"),
        ("temperature", 1e5, "100000"),
        ("temperature", float("inf"), "inf"),
        ("temperature", float("nan"), "nan"),
        ("temperature", -1, "it must be a number from 0 to 10000"),  # 0 is greedy
        ("temperature", "warm", "'warm'"),
        ("temperature", True, "True"),
        ("temperature", [0.5, 0.7], "array"),
        ("top_k", 0, "from 1 to 1024"),
        ("top_k", -3, "-3"),
        ("top_k", 1025, "1025"),
        ("top_k", 2.5, "whole"),
        ("top_k", float("nan"), "nan"),
        ("top_p", 0, "over 0 and at most 1"),
        ("top_p", 1.01, "1.01"),
        ("top_p", float("nan"), "nan"),
        ("min_p", -0.01, "-0.01"),
        ("min_p", 1.01, "from 0 to 1"),
        ("repetition_penalty", 0, "over 0"),
        ("repetition_penalty", -1.2, "-1.2"),
        ("min_new_tokens", -1, "-1"),
        ("min_new_tokens", 1.5, "whole"),
    ],
)
def test_a_number_out_of_range_is_one_clear_line(name, value, said):
    with pytest.raises(ValueError, match=name) as caught:
        Sampling(**{name: value})
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "numbers",
    [{"top_k": 1}, {"top_k": 1024}, {"top_k": 3.0}, {"top_p": 1}, {"min_p": 0}, {"min_p": 1}, {"temperature": 1e4}],
)
def test_the_ends_of_each_range_are_inside(numbers):
    Sampling(**numbers)


def test_settings_are_described():
    assert describe_sampling(GREEDY) == "greedy"
    assert describe_sampling(Sampling(temperature=0.7, top_k=50, top_p=0.9)) == "temperature 0.7, top_k 50, top_p 0.9"
    assert "penalty_scope context" in describe_sampling(Sampling(repetition_penalty=1.2, penalty_scope="context"))
    assert "min_new_tokens 0" in describe_sampling(Sampling(min_new_tokens=0))
    assert "temperature [0.5 0.7]" in describe_sampling(Sampling(temperature=np.array([0.5, 0.7])))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"temperature": np.array([0.5, -1.0])}, "of which -1.0; it must be a number from 0 to 10000"),
        ({"top_k": np.array([3, 0])}, "of which 0; it must be a whole number from 1 to 1024"),
        ({"top_k": np.array([3.5, 2])}, "of which 3.5; it must be a whole number"),
        ({"top_p": np.array([0.5, np.nan])}, "of which nan"),
        ({"min_p": np.array(["a", "b"])}, "it must be a number"),
        ({"temperature": np.array([True, False])}, "it must be a number"),
        ({"temperature": np.True_}, "it must be a number"),
    ],
    ids=str,
)
def test_arrays_are_checked_too(numbers, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        Sampling(**numbers)
    assert "\n" not in str(caught.value)


def test_numbers_of_other_libraries_are_numbers():
    assert by_row(Sampling(temperature=np.array(0.5), top_k=np.int64(4)), 2).top_k.tolist() == [4, 4]
    assert by_row(Sampling(temperature=np.array([0.0, 0.5])), 2).temperature.tolist() == [0, 0.5]
    with pytest.raises(
        ValueError, match=r"temperature has the shape \(2,\); expected one number, or one for each of 3"
    ):
        by_row(Sampling(temperature=np.array([0.1, 0.5])), 3)
