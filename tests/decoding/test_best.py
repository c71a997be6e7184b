"""The best of many numbers is that of `argmax`, to the last tie, though most of them are passed over in blocks.

Letters: M rows, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialogpt_jax.decoding.best import best

CUT = 2048  # can be cut into blocks; one more cannot


def rows(kind, size):
    rng = np.random.default_rng(3)
    x_MV = rng.normal(size=(4, size)).astype(np.float32)
    if kind == "ties":
        x_MV = np.round(x_MV)
        x_MV[3] = 0.0
    if kind == "forbidden":
        x_MV[0, 5:] = -np.inf
        x_MV[1] = -np.inf
        x_MV[2, : size - 3] = -np.inf
    if kind == "infinite":
        x_MV[1, 1500] = x_MV[2, 3] = np.inf
    if kind == "rising":
        x_MV = np.sort(x_MV, axis=1)
    return jnp.asarray(x_MV)


@pytest.mark.parametrize("size", [CUT, CUT + 1])
@pytest.mark.parametrize("kind", ["any", "ties", "forbidden", "infinite", "rising"])
def test_the_best_is_that_of_argmax(kind, size):
    x_MV = rows(kind, size)
    np.testing.assert_array_equal(jax.jit(best)(x_MV), x_MV.argmax(axis=-1))


def test_the_best_of_truths_is_the_first_true():
    passed_MV = np.zeros((3, CUT), bool)
    passed_MV[0, [300, 301, 1900]] = True
    passed_MV[1, 2047] = True
    np.testing.assert_array_equal(jax.jit(best)(passed_MV), [300, 2047, 0])


def test_what_is_no_number_gives_a_place_all_the_same():
    x_MV = rows("any", CUT).at[0, 700].set(jnp.nan).at[1].set(jnp.nan)
    assert ((jax.jit(best)(x_MV) >= 0) & (jax.jit(best)(x_MV) < CUT)).all()


def test_on_a_cpu_no_pass_over_all_compares_one_number_after_the_other():
    """XLA makes an `argmax` of all numbers slow; a block's are few."""
    text = jax.jit(best).lower(jnp.zeros((2, CUT))).as_text()
    assert "stablehlo.reduce" in text
    assert [line for line in text.splitlines() if "stablehlo.reduce" in line and f"tensor<2x{CUT}xf32>" in line] == []
