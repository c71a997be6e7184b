"""The compiled decoding loop on CPU touches a cache in one way: it writes the new tokens' slots, in place.

A cache that is carried in another shape than the attention reads, or written by something that XLA cannot do in place,
is copied whole at every step, and long replies become slow. So the compiled text is read here: every instruction of the
loop's body whose result has the shape of a whole cache is counted by what it does.

Letters: B rows, N candidates, S cache slots.
"""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from fakes import ODD, TINY

from dialogpt_jax import model
from dialogpt_jax.cache import init_cache, init_reply

STEPS, SLOTS, REPLY_SLOTS = 5, 40, 24


def decode(params, config, cache, tokens_B, positions_B):
    """A greedy loop and nothing else."""

    def step(_, state):
        cache, tokens_B, positions_B = state
        x_BTD, cache = model.hidden(params, config, tokens_B[:, None], positions_B[:, None], cache)
        tokens_B = jnp.argmax(model.logits(params, config, x_BTD[:, 0]), axis=-1).astype(jnp.int32)
        return cache, tokens_B, positions_B + 1

    return jax.lax.fori_loop(0, STEPS, step, (cache, tokens_B, positions_B))


def compiled_text(config, cache, rows, dtype):
    params = jax.eval_shape(lambda: model.init_params(config, jax.random.key(0), dtype))
    ids_B = jax.ShapeDtypeStruct((rows,), jnp.int32)
    program = jax.jit(decode, static_argnums=1, donate_argnums=2)
    return program.lower(params, config, cache, ids_B, ids_B).compile().as_text()


def work_on_whole_caches(text, shape):
    """What the loop's body does to arrays of this shape: {operation: how often}; a fusion is its last operation."""
    blocks = dict(re.findall(r"^%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    bodies = {
        name for name in re.findall(r"body=%?([\w.\-]+)", text) if "dot" in blocks[name] or "fusion" in blocks[name]
    }
    assert bodies, "the program has no loop"
    wanted = re.compile(r"= \w+\[" + ",".join(map(str, shape)) + r"\]\S* ([\w\-]+)\(.*")
    found = Counter()
    for body in bodies:
        for line in wanted.finditer(blocks[body]):
            operation, called = line.group(1), re.search(r"calls=%?([\w.\-]+)", line.group(0))
            if called:
                operation = re.search(r"ROOT \S+ = \S+ ([\w\-]+)\(", blocks[called.group(1)]).group(1)
            if operation not in ("parameter", "get-tuple-element", "bitcast"):
                found[operation] += 1
    return dict(found)


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_only_writes_its_slots(config, rows):
    cache = jax.eval_shape(lambda: init_cache(config, rows, SLOTS, jnp.float32))
    text = compiled_text(config, cache, rows, jnp.float32)
    shape = (rows * config.n_head, SLOTS, config.head_dim)
    assert work_on_whole_caches(text, shape) == {"scatter": 2 * config.n_layer}


@pytest.mark.parametrize(("rows", "candidates"), [(1, 1), (2, 3)])
def test_a_step_of_candidates_leaves_the_prefix_alone(rows, candidates):
    def begin():
        prefix = init_cache(TINY, rows, SLOTS, jnp.float32)
        return init_reply(TINY, prefix, jnp.ones(rows, jnp.int32), candidates, REPLY_SLOTS)

    text = compiled_text(TINY, jax.eval_shape(begin), rows * candidates, jnp.float32)
    heads, size = TINY.n_head, TINY.head_dim
    assert work_on_whole_caches(text, (rows * heads, SLOTS, size)) == {}
    assert work_on_whole_caches(text, (rows * candidates * heads, REPLY_SLOTS, size)) == {"scatter": 2 * TINY.n_layer}
