"""The model's numbers against a second implementation in NumPy and float64, whole and module by module.

Then bugs are planted, and each must exceed the tolerance ten times over: a comparison that cannot see a wrong model
proves nothing.

Letters: B rows, T tokens, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from drawn_weights import as_params, draw_tensors, usual_tensors
from fakes import ODD, TINY
from reference import relative_error, tensor_error

from dialogpt_jax import model, modules
from dialogpt_jax.config import ACTIVATIONS
from dialogpt_jax.convert.mapping import from_params

# float32 against float64: measured 7e-7 of the largest number, on weights that are drawn ten times too large.
TOLERANCE = 3e-6
# Gradients add up more roundings; measured GRAD of a tensor's norm.
GRADIENT_TOLERANCE = 2e-5
# Numbers of a hundredth around 3 are known to 1e-7 · 3 / 0.01 in float32.
FAR_FROM_ZERO_TOLERANCE = 1e-4

CONFIGS = {
    "tiny": TINY,
    "odd": ODD,
    "wide mlp": dataclasses.replace(TINY, n_layer=2, n_inner=200),
    "one head": dataclasses.replace(TINY, n_layer=2, n_head=1),
    "unscaled attention": dataclasses.replace(TINY, n_layer=2, scale_attn_weights=False),
    "scaled by layer": dataclasses.replace(TINY, scale_attn_by_inverse_layer_idx=True),
    "large epsilon": dataclasses.replace(TINY, n_layer=2, layer_norm_epsilon=1e-2),
    **{name: dataclasses.replace(ODD, activation_function=name) for name in ACTIVATIONS},
}
TOKENS_BT = np.random.default_rng(0).integers(0, 61, (2, 12)).astype(np.int32)

forward = jax.jit(model.forward, static_argnums=1)


def ours(tensors, config):
    return np.asarray(forward(as_params(tensors, config), config, jnp.asarray(TOKENS_BT)))


def theirs(tensors, config, **bug):
    return reference.logits(reference.checkpoint(tensors), config, TOKENS_BT, **bug)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name):
    config, tensors = CONFIGS[name], draw_tensors(CONFIGS[name])
    assert relative_error(ours(tensors, config), theirs(tensors, config)) < TOLERANCE


def test_logits_at_the_usual_initialisation():
    tensors = usual_tensors(TINY)
    assert relative_error(ours(tensors, TINY), theirs(tensors, TINY)) < TOLERANCE


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tied", "untied"])
def test_gradients(config):
    tensors = draw_tensors(config)
    weights_BT = np.random.default_rng(1).random(TOKENS_BT.shape)

    @jax.jit
    @jax.value_and_grad
    def ours(params):
        logits_BTV = model.forward(params, config, jnp.asarray(TOKENS_BT))[:, :-1]
        log_BTV = jax.nn.log_softmax(logits_BTV)
        picked_BT = jnp.take_along_axis(log_BTV, jnp.asarray(TOKENS_BT)[:, 1:, None], axis=-1)[..., 0]
        share_BT = weights_BT[:, 1:] / weights_BT[:, 1:].sum()
        return -(picked_BT * jnp.asarray(share_BT, jnp.float32)).sum()

    loss, found = ours(as_params(tensors, config))
    expected_loss, expected = reference.loss_and_gradients(reference.checkpoint(tensors), config, TOKENS_BT, weights_BT)
    assert abs(float(loss) / expected_loss - 1) < TOLERANCE
    compare_gradients(found, expected, config)


def compare_gradients(found, expected, config):
    """Whole tensors: a key bias has no gradient, so its part of c_attn.bias is noise and must stand beside the rest."""
    exported = {name.removeprefix("transformer."): x for name, x in from_params(found, config).items()}
    assert set(exported) == set(expected)
    for name, gradient in expected.items():
        assert tensor_error(exported[name], gradient) < GRADIENT_TOLERANCE, name


def test_the_reference_differentiates_itself():
    # Its gradients are written by hand: here is what they are, from differences of its loss.
    config = dataclasses.replace(ODD, n_layer=2, scale_attn_by_inverse_layer_idx=True)
    w, random = reference.checkpoint(draw_tensors(config)), np.random.default_rng(2)
    weights_BT = random.random(TOKENS_BT.shape)
    _, gradients = reference.loss_and_gradients(w, config, TOKENS_BT, weights_BT)
    assert set(gradients) == set(w)
    for name, gradient in gradients.items():
        direction = random.normal(size=gradient.shape)
        direction *= 1e-4 / np.linalg.norm(direction)
        up, down = (
            reference.loss_and_gradients({**w, name: w[name] + sign * direction}, config, TOKENS_BT, weights_BT)[0]
            for sign in (1, -1)
        )
        np.testing.assert_allclose((up - down) / 2, (gradient * direction).sum(), rtol=1e-4, atol=1e-11, err_msg=name)


# Each module alone.


def drawn_input(config):
    return np.random.default_rng(3).normal(size=(2, 12, config.n_embd))


def apply(module, params, x_BTD, *more):
    return np.asarray(jax.jit(lambda p, x: module.apply({"params": p}, x, *more))(params, jnp.asarray(x_BTD)))


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
class TestEachModuleAlone:
    def test_embeddings(self, config):
        tensors = draw_tensors(config)
        for name in tensors:  # blocks that add nothing, and a norm that only normalises
            if "c_proj" in name or name.startswith("transformer.ln_f"):
                tensors[name] = np.full_like(tensors[name], name == "transformer.ln_f.weight")
        params, positions_BT = as_params(tensors, config), np.broadcast_to(np.arange(12), (2, 12))
        x_BTD, _ = jax.jit(model.hidden, static_argnums=1)(params, config, TOKENS_BT, positions_BT)
        w = reference.checkpoint(tensors)
        expected, _ = reference.layer_norm(w, "ln_f", reference.embed(w, TOKENS_BT), config.layer_norm_epsilon)
        assert relative_error(x_BTD, expected) < TOLERANCE

    def test_layer_norm(self, config):
        # Small numbers far from zero: E[x²] − E[x]² would lose them, and epsilon counts.
        tensors, x_BTD = draw_tensors(config), 0.01 * drawn_input(config) + 3
        x_BTD = np.asarray(x_BTD, np.float32).astype(np.float64)
        got = apply(modules.LayerNorm(config), as_params(tensors, config)["ln_f"], np.float32(x_BTD))
        expected, _ = reference.layer_norm(reference.checkpoint(tensors), "ln_f", x_BTD, config.layer_norm_epsilon)
        assert relative_error(got, expected) < FAR_FROM_ZERO_TOLERANCE

    def test_attention(self, config):
        tensors, x_BTD = draw_tensors(config), np.float32(drawn_input(config))
        params = as_params(tensors, config)["h_1"]["attn"]
        module = modules.Attention(config, 1)
        got = np.asarray(jax.jit(lambda p, x: module.apply({"params": p}, x, None, None, None, None)[0])(params, x_BTD))
        expected, _ = reference.attention(reference.checkpoint(tensors), "h.1.attn", np.float64(x_BTD), config, 1)
        assert relative_error(got, expected) < TOLERANCE

    def test_mlp(self, config):
        tensors, x_BTD = draw_tensors(config), np.float32(drawn_input(config))
        got = apply(modules.MLP(config), as_params(tensors, config)["h_1"]["mlp"], x_BTD, None)
        expected, _ = reference.mlp(reference.checkpoint(tensors), "h.1.mlp", np.float64(x_BTD), config)
        assert relative_error(got, expected) < TOLERANCE

    def test_block(self, config):
        tensors, x_BTD = draw_tensors(config), np.float32(drawn_input(config))
        params, module = as_params(tensors, config)["h_1"], modules.Block(config, 1)
        got = np.asarray(jax.jit(lambda p, x: module.apply({"params": p}, x, None, None, None, None)[0])(params, x_BTD))
        expected, _ = reference.block(reference.checkpoint(tensors), "h.1", np.float64(x_BTD), config, 1)
        assert relative_error(got, expected) < TOLERANCE


# Planted bugs. Each is put into the reference or into the numbers it reads, in one layer where it can be.


def swap_norms(tensors):
    first, second = "transformer.h.1.ln_1", "transformer.h.1.ln_2"
    pairs = {f"{a}.{kind}": tensors[f"{b}.{kind}"] for a, b in ((first, second), (second, first)) for kind in KINDS}
    return tensors | pairs


KINDS = ("weight", "bias")


def without(name, part=slice(None)):
    def plant(tensors):
        changed = tensors[name].copy()
        changed[part] = 0
        return tensors | {name: changed}

    return plant


def transposed(name):
    return lambda tensors: tensors | {name: tensors[name].T}


def shift_positions(tensors):
    name = "transformer.wpe.weight"
    return tensors | {name: np.roll(tensors[name], -1, axis=0)}


def mix_heads(tensors):
    """Queries, keys and values interleaved by head, as some implementations store them."""
    name = "transformer.h.0.attn.c_attn.weight"
    d = TINY.n_embd
    return tensors | {name: tensors[name].reshape(d, 3, TINY.n_head, -1).transpose(0, 2, 1, 3).reshape(d, 3 * d)}


def same(tensors):
    return tensors


LAST = slice(2 * TINY.n_embd, None)  # of queries, keys and values side by side
BUGS = {
    "ln_1 and ln_2 swapped": (swap_norms, {}, {}),
    "value bias dropped": (without("transformer.h.1.attn.c_attn.bias", LAST), {}, {}),
    "query bias dropped": (without("transformer.h.1.attn.c_attn.bias", slice(0, TINY.n_embd)), {}, {}),
    "attention's output bias dropped": (without("transformer.h.0.attn.c_proj.bias"), {}, {}),
    "MLP's inner bias dropped": (without("transformer.h.1.mlp.c_fc.bias"), {}, {}),
    "MLP's output bias dropped": (without("transformer.h.1.mlp.c_proj.bias"), {}, {}),
    "last norm's bias dropped": (without("transformer.ln_f.bias"), {}, {}),
    "square matrix transposed": (transposed("transformer.h.2.attn.c_proj.weight"), {}, {}),
    "heads interleaved": (mix_heads, {}, {}),
    "erf GELU": (same, {"activation_function": "gelu"}, {}),
    "epsilon 1e-6": (same, {"layer_norm_epsilon": 1e-6}, {}),
    "positions off by one": (shift_positions, {}, {}),
    "mask one too far": (same, {}, {"ahead": 1}),
    "attention's scale missing": (same, {"scale_attn_weights": False}, {}),
    "attention scaled by layer": (same, {"scale_attn_by_inverse_layer_idx": True}, {}),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_exceeds_the_tolerance_ten_times_over(name):
    plant, fields, bug = BUGS[name]
    tensors, config = draw_tensors(TINY), dataclasses.replace(TINY, **fields)
    assert relative_error(ours(tensors, TINY), theirs(plant(tensors), config, **bug)) > 10 * TOLERANCE


def test_the_key_bias_changes_nothing():
    # The one bias that no comparison can see: the softmax is over the keys.
    plant = without("transformer.h.1.attn.c_attn.bias", slice(TINY.n_embd, 2 * TINY.n_embd))
    tensors = draw_tensors(TINY)
    assert relative_error(theirs(plant(tensors), TINY), theirs(tensors, TINY)) < 1e-12
