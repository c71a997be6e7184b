"""Arguments: what counts as a whole number and as a path, whoever's type it has, and the line about what does not."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dialogpt_jax.arguments import as_path, as_plain, as_whole_number, shown


@pytest.mark.parametrize("four", [4, np.int64(4), np.uint8(4), np.array(4), jnp.int32(4)])
def test_a_whole_number_is_one_of_any_type(four):
    found = as_whole_number("n", four, least=1)
    assert found == 4
    assert type(found) is int


@pytest.mark.parametrize("wrong", [0, -1, np.int64(0), 5, 1.5, 4.0, np.float32(4), True, np.True_, "4", None, [4]])
def test_what_is_no_whole_number_is_one_line(wrong):
    with pytest.raises(ValueError, match=r"^n is .*; it must be a whole number from 1 to 4$"):
        as_whole_number("n", wrong, least=1, most=4)


def test_a_long_value_is_shown_by_its_beginning_and_end():
    assert len(shown("x" * 5000)) < 70
    assert len(shown(np.zeros((500, 500)))) < 70
    assert "\n" not in shown(np.zeros((500, 500)))


def test_arrays_are_plain_lists():
    assert as_plain(np.array(["a", "b"])) == ["a", "b"]
    assert as_plain(np.str_("a")) == "a"
    assert as_plain(["a"]) == ["a"]


def test_a_path_is_a_name():
    assert as_path("path", "a/b") == as_path("path", Path("a/b")) == Path("a/b")
    for wrong, kind in ((None, TypeError), (3, TypeError), (b"a", TypeError), (["a"], TypeError), ("", ValueError)):
        with pytest.raises(kind, match=r"^path is .*; give the name of a file or folder$"):
            as_path("path", wrong)
