"""The compiled decoding loop on CPU reads weights as they lie, and touches a cache in one way: it writes, in place.

A cache that is carried in another shape than the attention reads, or written by something that XLA cannot do in place,
is copied whole at every step, and long replies become slow. So the compiled text is read here: every instruction of the
loop's body whose result has the shape of a whole cache is counted by what it does; and every one whose result has as many
elements as a weight, for a weight that is transposed is a pass over all parameters at every token.

Letters: B rows, N candidates, S cache slots.
"""

import dataclasses
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import ODD, TINY

import dialogpt_jax as dg
from dialogpt_jax import model
from dialogpt_jax.cache import cache_dtype, init_cache, init_reply, write
from dialogpt_jax.decoding import stream
from dialogpt_jax.decoding.generate import reply_program
from dialogpt_jax.decoding.request import assemble
from dialogpt_jax.quantization import quantize

STEPS, SLOTS, REPLY_SLOTS = 5, 40, 24


def decode(params, config, cache, tokens_B, positions_B):
    """A greedy loop and nothing else."""

    def step(_, state):
        cache, tokens_B, positions_B = state
        x_BTD, cache = model.hidden(params, config, tokens_B[:, None], positions_B[:, None], cache)
        tokens_B = jnp.argmax(model.logits(params, config, x_BTD[:, 0]), axis=-1).astype(jnp.int32)
        return cache, tokens_B, positions_B + 1

    return jax.lax.fori_loop(0, STEPS, step, (cache, tokens_B, positions_B))


def param_shapes(config, dtype):
    """Of parameters in a dtype, int8 too: what is not quantised is then float32."""
    if dtype == jnp.int8:
        return jax.eval_shape(quantize, param_shapes(config, jnp.float32))
    return jax.eval_shape(lambda: model.init_params(config, jax.random.key(0), dtype))


def compiled_text(config, cache, rows, dtype):
    params = param_shapes(config, dtype)
    ids_B = jax.ShapeDtypeStruct((rows,), jnp.int32)
    program = jax.jit(decode, static_argnums=1, donate_argnums=2)
    return program.lower(params, config, cache, ids_B, ids_B).compile().as_text()


def work_of_loops(text):
    """What the loops' bodies make: (operation, shape) of each instruction that works; a fusion is its last operation."""
    blocks = dict(re.findall(r"^%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    bodies = {
        name for name in re.findall(r"body=%?([\w.\-]+)", text) if "dot" in blocks[name] or "fusion" in blocks[name]
    }
    assert bodies, "the program has no loop"
    for body in bodies:
        yield from work_of_block(blocks[body], blocks)


def work_of_block(block, blocks):
    for line in re.finditer(r"= \w+\[([\d,]*)\]\S* ([\w\-]+)\(.*", block):
        shape, operation = tuple(map(int, filter(None, line.group(1).split(",")))), line.group(2)
        if operation in ("parameter", "get-tuple-element", "bitcast"):
            continue
        called = re.search(r"calls=%?([\w.\-]+)", line.group(0))
        yield (last_operation(blocks[called.group(1)]) if called else operation), shape


def work_outside_loops(text):
    """The same of the program itself, which runs once a call: whatever stands outside a loop's body or a fusion."""
    blocks = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    elsewhere = set(re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", text))
    for name in blocks.keys() - elsewhere:
        yield from work_of_block(blocks[name], blocks)


def last_operation(block):
    """Of a fusion: what its root does, seen through bitcasts."""
    made = {name: (operation, first) for name, operation, first in re.findall(
        r"(%[\w.\-]+) = \S+ ([\w\-]+)\((%[\w.\-]+)?", block)}  # fmt: skip
    operation, first = made[re.search(r"ROOT (%\S+)", block).group(1)]
    while operation == "bitcast" or (operation == "convert" and made[first][0] == "select"):  # a select in float32
        operation, first = made[first]
    return operation


def work_on_whole_caches(text, shape):
    """{operation: how often} on arrays of this shape."""
    return dict(Counter(operation for operation, found in work_of_loops(text) if found == shape))


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_a_step_reads_every_weight_as_it_lies(rows, dtype):
    """No copy, transpose or cast of a weight, whatever shape it is given on the way; sizes that nothing else has."""
    config = dataclasses.replace(TINY, n_embd=36, n_inner=100, n_layer=2)
    params = param_shapes(config, dtype)
    sizes = {math.prod(leaf.shape) for leaf in jax.tree.leaves(params) if math.prod(leaf.shape) > 1000}
    assert len(sizes) == 5  # of c_attn, c_proj, the MLP's two, wte, wpe
    cache = jax.eval_shape(lambda: init_cache(config, rows, SLOTS, cache_dtype(params)))
    text = compiled_text(config, cache, rows, dtype)
    found = Counter(operation for operation, shape in work_of_loops(text) if math.prod(shape) in sizes)
    assert dict(found) == {}


SMALL = dataclasses.replace(dg.GPT2Config.small(), n_layer=2)  # the true widths: 768, 3,072 and 50,304


def text_of_program(name, rows, dtype):
    """`generate`, the same by drafts, or the calls of a stream; the prompt and its cache have 32 slots, the reply 16."""
    params = param_shapes(SMALL, dtype)
    tokens_BT, lengths_B = np.ones((rows, 32), np.int32), np.full(rows, 32)
    keys = jax.random.split(jax.random.key(0), rows)
    request = assemble(SMALL, tokens_BT, lengths_B, sampling=dg.GREEDY, max_new_tokens=16, keys=keys)
    if name == "speculation":
        request = assemble(
            SMALL, tokens_BT, lengths_B, sampling=dg.GREEDY, max_new_tokens=16, keys=keys, scopes=("context",)
        )
        return reply_program.lower(params, SMALL, request, dg.Draft()).compile().as_text()
    if name == "generate":
        return reply_program.lower(params, SMALL, request).compile().as_text()
    cache = jax.eval_shape(lambda: init_cache(SMALL, rows, 32, cache_dtype(params)))
    state, _ = jax.eval_shape(lambda *args: stream.start(args[0], SMALL, *args[1:]), params, request, cache)
    return stream.steps.lower(params, SMALL, state, 4).compile().as_text()


PROGRAMS = [("generate", 1), ("generate", 4), ("generate", 8), ("stream", 1)]
PROGRAMS += [pytest.param("speculation", rows, marks=pytest.mark.long) for rows in (1, 4)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize(("name", "rows"), PROGRAMS)
def test_programs_of_true_widths_leave_weights_and_caches_as_they_lie(name, rows, dtype):
    text = text_of_program(name, rows, dtype)
    params = param_shapes(SMALL, dtype)
    sizes = {math.prod(leaf.shape) for leaf in jax.tree.leaves(params) if math.prod(leaf.shape) > 100_000}
    assert len(sizes) == 5  # of c_attn, attn.c_proj, the MLP's two, wte, wpe
    work = list(work_of_loops(text))
    assert Counter(operation for operation, shape in work if math.prod(shape) in sizes) == {}
    once = list(work_outside_loops(text))
    of_prompts = {32, rows * 32}  # an axis of what is computed for the prompts, and of no weight
    assert [
        made for made in once if math.prod(made[1]) in sizes and not of_prompts & set(made[1])
    ] == []  # nor once a call
    assert [
        made for made in once if math.prod(made[1]) >= rows * 32 * SMALL.padded_vocab_size
    ] == []  # the prompt's logits
    heads, size = rows * SMALL.n_head, SMALL.head_dim
    cache_sizes = (heads * 32 * size, heads * 16 * size)
    writes = {"select" if dtype == jnp.bfloat16 else "scatter": 2 * SMALL.n_layer}
    if name == "speculation":  # four tokens are written at once, and as many activations have a cache's size
        casts = {"bitcast-convert": 4 * SMALL.n_layer} if dtype == jnp.bfloat16 else {}  # of which nothing is computed
        writes = {"scatter": 2 * SMALL.n_layer, **casts}
        work = [made for made in work if made[1][-1:] == (size,)]
    if dtype == jnp.int8:  # the head's product is one of several parts, and each takes the same activations
        assert all(max(shape) <= 8192 for operation, shape in work if operation == "dot")
        work = [made for made in work if made[1][1:] != (max(rows, 2), SMALL.n_embd)]
    assert Counter(made for made in work if math.prod(made[1]) in cache_sizes) == {
        (operation, (heads, 16, size)): number for operation, number in writes.items()
    }


def test_several_tokens_are_written_into_a_bfloat16_cache_without_a_cast_of_it():
    cache = jax.eval_shape(lambda: init_cache(TINY, 3, SLOTS, jnp.bfloat16)).layers[0]
    shape = (cache[0].shape[0], 5, TINY.head_dim)
    new, slots = jax.ShapeDtypeStruct(shape, jnp.bfloat16), jax.ShapeDtypeStruct(shape[:2], jnp.int32)
    text = jax.jit(write, donate_argnums=0).lower(cache, new, new, slots).compile().as_text()
    whole = ",".join(map(str, cache[0].shape))
    assert f"u16[{whole}]" in text
    assert f"f32[{whole}]" not in text


def test_the_weights_work_is_seen_where_there_is_some():
    """The product that q, k and v had before: two output axes side by side, which XLA transposes at every step."""

    def steps(x_MI, w_GOI):
        def step(_, x_MI):
            y_MGO = jax.lax.dot_general(x_MI, w_GOI, (((1,), (2,)), ((), ())))
            return jnp.tanh(y_MGO[:, 0] + y_MGO[:, 1])

        return jax.lax.fori_loop(0, STEPS, step, x_MI)

    text = jax.jit(steps).lower(jnp.ones((2, 36)), jnp.ones((2, 36, 36))).compile().as_text()
    assert [operation for operation, shape in work_of_loops(text) if math.prod(shape) == 2 * 36 * 36] == ["copy"]
