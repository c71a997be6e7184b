"""A prompt into the cache: tokens in, the logits of what comes next out. On CPU a large one goes in some columns at a time.

    tokens_BT  ┌───────┬───────┬─ ─
               │ B × C │ B × C │        C columns of every row at once: what a block makes of them stays near the core
               └───────┴───────┴─ ─

Letters: B rows, T prompt tokens, C columns, D width, V vocabulary (padded).
"""

import jax
import jax.numpy as jnp

from dialogpt_jax import model
from dialogpt_jax.cache import KVCache
from dialogpt_jax.config import GPT2Config
from dialogpt_jax.token_arrays import Array

# Tokens of all rows together that go through a block at once on CPU. GPT-2 small, two busy cores of a Zen 5, s for all the
# tokens, then in pieces of 4,096, 2,048, 1,024, 512: 8 rows of 1,024 14.9, 12.8, 11.7, 11.0, 10.1; 32 rows of 128 3.9, –,
# 3.6, 3.4, 3.6. The bundled model, ms a token of one core: 0.117 for 2 rows of 256 tokens, 0.133 for 8, 0.181 for 32, and
# 0.222 for 8 of 512. Continuous batching makes its groups so large.
PREFILL_TOKENS = 1024
FEWEST = 32  # columns: every piece reads the whole cache


def prefill(
    params: model.Params,
    config: GPT2Config,
    tokens_BT: Array,
    lengths_B: Array,
    cache: KVCache,
    starts_B: Array | None = None,
) -> tuple[jax.Array, KVCache]:
    """Writes prompts into the cache; float32 logits_BV of the token after each row's last one.

    Args:
      tokens_BT: right-padded.
      lengths_B: real tokens of `tokens_BT`, at least 1.
      starts_B: tokens that the cache already holds for each row; 0 by default.
    """
    rows, width = tokens_BT.shape
    columns = columns_at_once(rows, width)

    def read(tokens_BC: Array, first: int | jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """The columns from `first` on: the hidden state of each row's last token, where it is one of them."""
        positions_BC: Array | int = first  # of every row
        if starts_B is not None:
            positions_BC = jnp.asarray(starts_B)[:, None] + first + jnp.arange(tokens_BC.shape[1])[None]
        x_BCD, cache = model.hidden(params, config, tokens_BC, positions_BC, cache)
        last_B = jnp.clip(lengths_B - 1 - first, 0, tokens_BC.shape[1] - 1)
        return jnp.take_along_axis(x_BCD, last_B[:, None, None], axis=1)[:, 0], cache

    def at_once(tokens_BT: Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        return read(tokens_BT, 0, cache)

    def by_columns(tokens_BT: Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        def more(place: jax.Array, carried: tuple[jax.Array, KVCache]) -> tuple[jax.Array, KVCache]:
            last_BD, cache = carried
            first = place * columns
            x_BD, cache = read(jax.lax.dynamic_slice_in_dim(tokens_BT, first, columns, axis=1), first, cache)
            return jnp.where((lengths_B > first)[:, None], x_BD, last_BD), cache

        last = jax.eval_shape(at_once, tokens_BT, cache)[0]
        return jax.lax.fori_loop(0, width // columns, more, (jnp.zeros(last.shape, last.dtype), cache))

    if columns == width:
        last_BD, cache = at_once(tokens_BT, cache)
    else:
        last_BD, cache = jax.lax.platform_dependent(tokens_BT, cache, cpu=by_columns, default=at_once)
    return model.logits(params, config, last_BD), cache


def columns_at_once(rows: int, width: int) -> int:
    """How many of the columns of a prompt go through the model together: half, a quarter, …, until they are few tokens.

    8 rows of 1,024 → 128        8 of 100 → 100        1 of 1,024 → 1,024        4 of 600 → 150        999 of 64 → 32
    """
    columns = width
    while rows * columns > PREFILL_TOKENS and columns % 2 == 0 and columns >= 2 * FEWEST:
        columns //= 2
    return columns
