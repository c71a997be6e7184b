"""The rows of an embedding: a table and ids in, a row for each id out.

Letters: V rows of the table, D its width.
"""

import jax
import jax.numpy as jnp

from dialogpt_jax.token_arrays import Array


def lookup(table_VD: jax.Array, ids: Array) -> jax.Array:
    """The rows (…, D) of ids (…); NaN for an id out of range.

    XLA for CPU takes bfloat16 rows as float32. Within a loop it would cast the whole table for that, once, before the loop
    begins: of GPT-2 small's two, 158 MB are written at every call. The barrier keeps the cast where the rows are taken.
    """
    if table_VD.dtype != jnp.bfloat16:
        return _take(table_VD, ids)
    return jax.lax.platform_dependent(table_VD, jnp.asarray(ids), cpu=_take_in_place, default=_take)


def _take(table_VD: jax.Array, ids: Array) -> jax.Array:
    return jnp.take(table_VD, ids, axis=0)


def _take_in_place(table_VD: jax.Array, ids: jax.Array) -> jax.Array:
    return _take(*jax.lax.optimization_barrier((table_VD, ids)))
