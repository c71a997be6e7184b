import dataclasses
import functools
import itertools

import fakes
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from dialogpt_jax.config import GPT2Config
from dialogpt_jax.model import init_params
from dialogpt_jax.parallel.mesh import MeshError, make_mesh
from dialogpt_jax.parallel.rules import RuleError, batch_sharding, check_divides, shardings, spec_of
from dialogpt_jax.training.optim import make_optimizer
from dialogpt_jax.training.step import init_state

CONFIG = dataclasses.replace(fakes.TINY, tie_word_embeddings=False)
MESH = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
OPTIMIZERS = {
    "adamw": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "muon": make_optimizer("muon", optax.constant_schedule(0.02)),
    "frozen": optax.multi_transform(
        {"on": optax.adam(1e-3), "off": optax.set_to_zero()},
        lambda params: {name: "on" if name == "h_0" else "off" for name in params},
    ),
    "rates": optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
    "factored": optax.adafactor(1e-3, min_dim_size_to_factor=8),
}


@functools.cache
def traced(config):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def shapes(config=CONFIG):
    return jax.tree.map(lambda x: x, traced(config))  # a copy: dicts can be changed


def cut(spec):
    """The axes that are divided, and by what."""
    return tuple((axis, by) for axis, by in enumerate(spec) if by is not None)


def state_shapes(optimizer):
    return jax.eval_shape(lambda: init_state(init_params(CONFIG, jax.random.key(0)), optimizer, jax.random.key(1)))


def test_every_parameter_has_a_rule_of_its_rank():
    leaves = jax.tree_util.tree_leaves_with_path(shapes())
    assert len(leaves) == 3 + 2 + 12 * CONFIG.n_layer
    for path, leaf in leaves:
        spec = spec_of("/".join(entry.key for entry in path))
        assert len(spec) == leaf.ndim


def test_tensor_lies_on_heads_units_and_vocabulary_and_fsdp_on_another_axis():
    parts = {}
    for name, mesh in (("tensor", make_mesh({"tensor": 4, "data": 2})), ("fsdp", make_mesh({"fsdp": 8}))):
        placed = shardings(shapes(), mesh)
        parts[name] = jax.tree.map(lambda s, x: s.shard_shape(x.shape), placed, shapes())
    t, f = parts["tensor"], parts["fsdp"]
    assert t["h_1"]["attn"]["c_attn"]["kernel"] == (3, 1, 8, 32)
    assert t["h_1"]["attn"]["c_attn"]["bias"] == (3, 1, 8)
    assert t["h_1"]["attn"]["c_proj"]["kernel"] == (32, 1, 8)
    assert t["h_1"]["mlp"]["c_fc"]["kernel"] == t["wte"]["embedding"] == t["lm_head"]["kernel"] == (32, 32)
    assert t["h_1"]["mlp"]["c_proj"]["kernel"] == (32, 32)
    assert t["h_1"]["ln_1"]["scale"] == t["h_1"]["mlp"]["c_proj"]["bias"] == (32,)
    assert f["h_1"]["attn"]["c_attn"]["kernel"] == (3, 4, 8, 4)
    assert f["h_1"]["attn"]["c_proj"]["kernel"] == (4, 4, 8)
    assert f["h_1"]["mlp"]["c_fc"]["kernel"] == (128, 4)
    assert f["h_1"]["mlp"]["c_proj"]["kernel"] == (4, 128)
    assert f["wte"]["embedding"] == (128, 4)
    assert f["wpe"]["embedding"] == (48, 4)


def test_a_parameter_without_a_rule_is_an_error_that_names_it():
    params = shapes()
    params["h_0"]["attn"]["gate"] = {"kernel": jax.ShapeDtypeStruct((), jnp.float32)}
    with pytest.raises(RuleError, match="h_0/attn/gate/kernel"):
        shardings(params, MESH)
    for name in ("h_0/attn/c_attn/kernel/more", "x/wte/embedding", "h_/mlp/c_fc/bias", ""):
        with pytest.raises(RuleError, match="no rule"):
            spec_of(name)


def test_a_parameter_that_does_not_divide_is_an_error_that_names_it():
    with pytest.raises(RuleError, match=r"h_0/attn/c_attn/bias of shape \(3, 3, 10\)"):
        shardings(shapes(fakes.ODD), MESH)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_the_optimiser_keeps_for_a_parameter_lies_where_the_parameter_does(name):
    state = state_shapes(OPTIMIZERS[name])
    placed = shardings(state, MESH)
    assert jax.tree.structure(placed) == jax.tree.structure(state)
    of_params = {
        (jax.tree_util.keystr(path), leaf.shape): place.spec
        for (path, leaf), place in zip(
            jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(placed.params), strict=True
        )
    }
    mirrors = 0
    for (path, leaf), place in zip(
        jax.tree_util.tree_leaves_with_path(state.opt_state), jax.tree.leaves(placed.opt_state), strict=True
    ):
        written = jax.tree_util.keystr(path)
        wanted = [spec for (end, shape), spec in of_params.items() if written.endswith(end) and leaf.shape == shape]
        mirrors += len(wanted)
        assert cut(place.spec) == (cut(wanted[0]) if wanted else ()), written
    count = len(jax.tree.leaves(state.params))
    assert mirrors >= {"adamw": 2 * count, "muon": count, "frozen": 24, "rates": 2 * count, "factored": 1}[name]
    assert placed.step.spec == placed.key.spec == P()


def test_rows_lie_over_data_and_fsdp():
    placed = batch_sharding(MESH)
    assert placed.shard_shape((8, 5)) == (2, 5)
    assert len(placed.device_set) == 8


@pytest.mark.parametrize(
    ("heads", "right"), [(12, "1, 2, 3, 4, 6, 12"), (16, "1, 2, 4, 8, 16"), (20, "1, 2, 4, 5, 10, 20")]
)
def test_a_wrong_size_of_tensor_names_the_right_ones(heads, right):
    config = {12: GPT2Config.small, 16: GPT2Config.medium, 20: GPT2Config.large}[heads](n_layer=1)
    devices = jax.devices()
    for size in range(1, 9):
        mesh = make_mesh({"tensor": size}, devices[:size])
        if str(size) in right.split(", "):
            check_divides(config, mesh)
            shardings(shapes(config), mesh)
        else:
            with pytest.raises(MeshError, match=rf"tensor={size} .*{heads} heads.*: {right}$"):
                check_divides(config, mesh)


def test_a_width_that_fsdp_does_not_divide():
    with pytest.raises(MeshError, match=r"fsdp=4 .* width 30; right sizes: 1, 2, 3, 5, 6, 10, 15, 30$"):
        check_divides(fakes.ODD, make_mesh({"fsdp": 4, "data": 2}))


@pytest.mark.parametrize(("rows", "right"), [(6, "4 or 8"), (3, "4 or 8"), (13, "12 or 16")])
def test_rows_that_do_not_divide_name_those_that_do(rows, right):
    with pytest.raises(MeshError, match=f"{right} rows would$"):
        check_divides(CONFIG, MESH, rows=rows)
    check_divides(CONFIG, MESH, rows=4)


def test_what_is_checked_can_be_placed():
    for data, fsdp, tensor in itertools.product((1, 2, 4, 8), repeat=3):
        if data * fsdp * tensor == 8:
            mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})
            try:
                check_divides(CONFIG, mesh)
            except MeshError:
                with pytest.raises(RuleError):
                    shardings(shapes(), mesh)
            else:
                shardings(shapes(), mesh)
