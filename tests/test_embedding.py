"""Rows of a table by ids: the same rows in every dtype, and the same gradient, in a loop or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialogpt_jax.embedding import lookup

IDS_BT = np.array([[3, 0, 3], [6, 3, 5]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_rows_and_their_gradient_are_those_of_indexing(dtype):
    rng = np.random.default_rng(0)
    table_VD, weights_BTD = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((7, 5), (2, 3, 5)))

    def total(take):
        return jax.jit(jax.value_and_grad(lambda table_VD: (take(table_VD) * weights_BTD).astype(jnp.float32).sum()))

    found, expected = total(lambda t: lookup(t, IDS_BT))(table_VD), total(lambda t: t[IDS_BT])(table_VD)
    assert lookup(table_VD, IDS_BT).dtype == dtype
    np.testing.assert_array_equal(jax.jit(lookup)(table_VD, IDS_BT), table_VD[IDS_BT])
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert float(jnp.abs(found[1][3]).sum()) > 0  # taken three times: its rows' gradients are summed


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_id_out_of_range_gives_nan(dtype):
    rows = np.asarray(lookup(jnp.ones((7, 5), dtype), np.array([6, 7])), np.float32)
    assert np.isfinite(rows[0]).all()
    assert np.isnan(rows[1]).all()
