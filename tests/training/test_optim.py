"""Optimisers: which parameters decay, what is clipped, and AdamW's numbers against NumPy's in float64."""

import dataclasses

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import muon

from dialogpt_jax.training.optim import (
    OPTIMIZERS,
    UnknownOptimizer,
    adamw,
    clip_each,
    decays,
    make_optimizer,
    matrix_axes,
    scale_by_uncorrected_adam,
)

# float32 against float64: in float32 Adam's 1 − 0.999^n has a relative error of 6e-5, its root 3e-5, and steps go to 0.04.
TOLERANCE = {"rtol": 2e-5, "atol": 3e-6}

CONFIG = fakes.no_dropout(dataclasses.replace(fakes.TINY, n_layer=1, tie_word_embeddings=False))
PARAMS = fakes.draw_params(CONFIG)
STEPS = 4


def rate(step):
    """Not constant, so that a schedule one step off shows."""
    return 0.01 * (step + 1.0)


def named(tree):
    """A tree as {path: NumPy array in float64}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x, np.float64) for path, x in leaves}


def draw_gradients(step, scale=1.0):
    """Large in one matrix and tiny in another, so that a global norm and each one's own differ."""
    leaves, tree = jax.tree.flatten(PARAMS)
    rng = np.random.default_rng(step)
    drawn = [scale * 10.0 ** (i % 4 - 2) * rng.normal(size=x.shape).astype(np.float32) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, [jnp.asarray(x) for x in drawn])


def trained(optimizer, steps=STEPS, gradients=draw_gradients):
    """Parameters after some steps."""

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for n in range(steps):
        params, state = step(params, state, gradients(n))
    return named(params)


def by_numpy(*, weight_decay, clip, b1=0.9, b2=0.999, eps=1e-8, nesterov=False):
    """AdamW, written from the paper's algorithm 2; with Nesterov's momentum as in Dozat 2016."""
    p = named(PARAMS)
    m, v = ({name: np.zeros_like(x) for name, x in p.items()} for _ in range(2))
    for n in range(STEPS):
        g = named(draw_gradients(n))
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        share = min(1, clip / norm) if clip else 1
        for name in p:
            m[name] = b1 * m[name] + (1 - b1) * share * g[name]
            v[name] = b2 * v[name] + (1 - b2) * (share * g[name]) ** 2
            mean = m[name] / (1 - b1 ** (n + 1))
            if nesterov:
                mean = b1 * m[name] / (1 - b1 ** (n + 2)) + (1 - b1) * share * g[name] / (1 - b1 ** (n + 1))
            step = mean / (np.sqrt(v[name] / (1 - b2 ** (n + 1))) + eps)
            matrix = name.endswith((".kernel", ".embedding"))
            p[name] = p[name] - rate(n) * (step + (weight_decay if matrix and weight_decay else 0) * p[name])
    return p


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, err_msg=name, **TOLERANCE)


@pytest.mark.parametrize("numbers", [(0.1, 1.0, 1e-8), (None, 1.0, 1e-2), (0.1, None, 1e-8), (0, 0, 1e-2)])
def test_adamw_is_the_papers_algorithm(numbers):
    weight_decay, clip, eps = numbers
    found = trained(adamw(rate, weight_decay=weight_decay, clip=clip, eps=eps))
    check(found, by_numpy(weight_decay=weight_decay, clip=clip, eps=eps))


def test_zero_and_none_are_absent():
    plain = by_numpy(weight_decay=None, clip=None, eps=1e-2)
    for numbers in ({"weight_decay": 0.1, "clip": None}, {"weight_decay": None, "clip": 1.0}):
        other = by_numpy(**numbers, eps=1e-2)  # what the test above compares with, then, tells them apart
        assert any(not np.allclose(other[name], plain[name], rtol=1e-3) for name in plain)
    for nothing in ({"weight_decay": 0, "clip": 0}, {"weight_decay": 0.0, "clip": None}):
        shapes = jax.eval_shape(adamw(rate, **nothing).init, PARAMS)
        assert shapes == jax.eval_shape(adamw(rate, weight_decay=None, clip=None).init, PARAMS)


def test_matrices_and_embeddings_decay_biases_and_norms_do_not():
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    found = trained(adamw(lambda step: 0.5, weight_decay=0.1, clip=1.0), 1, lambda n: still)
    for name, before in named(PARAMS).items():
        matrix = not name.endswith((".bias", ".scale"))
        np.testing.assert_allclose(found[name], before * (0.95 if matrix else 1.0), err_msg=name, rtol=1e-6)
    marked = named(decays(PARAMS))
    assert [name for name, x in marked.items() if x] == [name for name in marked if "kernel" in name or "embed" in name]
    assert not marked["h_0.attn.c_attn.bias"]  # of three axes
    assert marked["lm_head.kernel"]
    assert marked["wpe.embedding"]


def test_a_parameter_of_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"whether h_0\.gate decays is not known"):
        decays({"h_0": {"gate": jnp.zeros(3)}})


def test_clipping_each_is_what_torch_does_to_one_parameter():
    grads = draw_gradients(0) | {"zero": jnp.zeros(3)}
    transform = clip_each(2.0)
    found = named(jax.jit(transform.update)(grads, transform.init(PARAMS))[0])
    norms = []
    for name, g in named(grads).items():
        norm = np.sqrt((g**2).sum())
        norms.append(norm)
        np.testing.assert_allclose(found[name], g * min(2.0 / (norm + 1e-6), 1.0), err_msg=name, **TOLERANCE)
    assert min(norms) < 2 < max(norms)


def test_uncorrected_adam_starts_larger_and_has_adams_state():
    grads = draw_gradients(0)
    ours, adam = scale_by_uncorrected_adam(0.9, 0.999, 1e-30), optax.scale_by_adam(0.9, 0.999, 1e-30)
    (first, state), (corrected, other) = (jax.jit(lambda g, o=o: o.update(g, o.init(g)))(grads) for o in (ours, adam))
    corrected = named(corrected)
    for name, x in named(first).items():
        np.testing.assert_allclose(x, corrected[name] * 0.1 / np.sqrt(0.001), err_msg=name, rtol=1e-4)
    assert jax.tree.structure(state) == jax.tree.structure(other)


def test_the_names_are_these_and_another_is_told_them():
    assert OPTIMIZERS == ("adamw", "muon")
    with pytest.raises(UnknownOptimizer, match="no optimiser is called 'adam'; there are adamw, muon"):
        make_optimizer("adam", rate)
    assert issubclass(UnknownOptimizer, ValueError)


def test_adamw_by_its_name():
    numbers = {"weight_decay": 0.2, "clip": 0.3, "b1": 0.8, "b2": 0.9, "eps": 1e-3}
    check(trained(make_optimizer("adamw", rate, **numbers)), by_numpy(**numbers))


def test_muon_by_its_name_is_optax_s_with_adam_at_a_fifth_of_the_rate():
    expected = optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(0.02, adam_learning_rate=0.004, adam_b2=0.99, muon_weight_dimension_numbers=matrix_axes),
    )
    found = trained(make_optimizer("muon", optax.constant_schedule(0.02), weight_decay=None, b2=0.99))
    check(found, trained(expected))


def test_muon_decays_the_same_matrices_each_at_its_own_rate():
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    found = trained(make_optimizer("muon", lambda step: 0.5, weight_decay=0.1), 1, lambda n: still)
    axes = matrix_axes(PARAMS)["h_0"]
    assert axes["mlp"]["c_fc"]["kernel"] is not None
    for name, before in named(PARAMS).items():
        share = 0.95 if name.startswith("h_0.") and name.endswith("kernel") else 0.99
        share = share if name.endswith(("kernel", "embedding")) else 1.0
        np.testing.assert_allclose(found[name], before * share, err_msg=name, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_embeddings_decay_as_they_are_told(name):
    """A gradient of 0: rate 0.5, decay 0.1 of kernels and 0.4 of embeddings; Muon's Adam at a tenth of the rate."""
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    numbers = {"weight_decay": 0.1, "embedding_decay": 0.4, "adam_share": 0.1}
    found = trained(make_optimizer(name, lambda step: 0.5, **numbers), 1, lambda n: still)
    adams = 0.1 if name == "muon" else 1.0
    for path, before in named(PARAMS).items():
        kernel, embedding = path.endswith("kernel"), path.endswith("embedding")
        rate = 0.5 * (1.0 if kernel and path.startswith("h_0.") else adams)
        share = 1 - rate * (0.1 if kernel else 0.4 if embedding else 0.0)
        np.testing.assert_allclose(found[path], before * share, err_msg=path, rtol=1e-5)


def test_what_muon_leaves_to_adam_is_adamw_at_a_fifth_of_the_rate():
    numbers = {"weight_decay": 0.1, "clip": None, "b1": 0.5, "b2": 0.8, "eps": 1e-3}
    found = trained(make_optimizer("muon", lambda step: 5 * rate(step), **numbers))
    expected = by_numpy(**numbers, nesterov=True)  # optax's Muon gives its Adam Nesterov's momentum
    rest = [name for name in expected if not (name.startswith("h_0.") and name.endswith("kernel"))]
    assert len(rest) == len(expected) - 4
    check({name: found[name] for name in rest}, {name: expected[name] for name in rest})
