"""What is chosen for a GPU: seen in programs lowered for one that is not here, and the same numbers by every form.

Letters: B rows, T tokens, H heads, K head dim, S slots, D model.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dialogpt_jax import attention, normalization

TOLERANCE = 2e-6  # of float32 sums in another order
B, T, H, K = 2, 6, 3, 8
SEGMENTS_BT = np.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 2, 2]])


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def lowered(f, *arrays, platform):
    return jax.jit(f).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("rows", "products"), [(1, 2), (2, 0)])
def test_a_gpu_takes_the_mean_of_one_row_as_a_product(rows, products):
    arrays = drawn(rows, 1, 16), drawn(16, seed=1), drawn(16, seed=2)

    def norm(x_BTD, scale_D, bias_D):
        return normalization.layer_norm(x_BTD, scale_D, bias_D, 1e-5)

    assert lowered(norm, *arrays, platform="cuda").count("stablehlo.dot_general") == products
    for platform in ("cpu", "tpu"):
        assert "dot_general" not in lowered(norm, *arrays, platform=platform)


@pytest.mark.parametrize(
    ("x", "scale", "out"),
    [("bfloat16", "bfloat16", "bfloat16"), ("bfloat16", "float32", "float32"), ("float64", "float64", "float64")],
)
def test_a_norm_narrows_nothing(x, scale, out):
    with jax.enable_x64(True):
        x_BTD, weights_D = drawn(2, 3, 16).astype(x), drawn(16, seed=1).astype(scale)
        got = normalization.layer_norm(x_BTD, weights_D, weights_D, 1e-5)
        wide = np.asarray(x_BTD, np.float64)
        centred, weight = wide - wide.mean(-1, keepdims=True), np.asarray(weights_D, np.float64)
        expected = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-5) * weight + weight
        assert got.dtype == out
        np.testing.assert_allclose(
            np.float64(got), expected, atol={"bfloat16": 2e-2, "float32": 1e-5, "float64": 1e-12}[out]
        )


def test_the_mean_of_one_row_is_the_same_as_a_product():
    x_BTD = 3 + drawn(1, 1, 768)
    expected = np.mean(np.asarray(x_BTD, np.float64), axis=-1, keepdims=True)
    for form in (normalization.by_product, normalization.by_sum):
        np.testing.assert_allclose(form(x_BTD), expected, rtol=TOLERANCE)


def test_a_gpu_puts_the_scores_of_two_parts_side_by_side_before_the_softmax():
    q_BHNTK, parts = drawn(B, H, 1, 1, K), []
    for slots in (4, 2):
        k, v = drawn(B * H, slots, K, seed=slots), drawn(B * H, slots, K, seed=slots + 1)
        parts.append((k, v, jnp.ones((1, 1, 1, 1, slots), bool)))

    def both(q_BHNTK, parts):
        return attention.attend(q_BHNTK, parts, None)

    for platform, barriers in (("cpu", 0), ("cuda", 1), ("tpu", 0)):
        assert lowered(both, q_BHNTK, parts, platform=platform).count("optimization_barrier") == barriers
    assert "optimization_barrier" not in lowered(both, q_BHNTK, parts[:1], platform="cuda")


def in_rows(q_BTHK, k_BTHK, v_BTHK, segments_BT=None, dropout=None):
    return attention.attend_in_rows(q_BTHK, k_BTHK, v_BTHK, segments_BT, dropout)


@pytest.mark.parametrize("segments_BT", [None, SEGMENTS_BT], ids=["whole rows", "segments"])
def test_fused_attention_gives_what_the_plain_does(segments_BT):
    """By jax's function on any platform; cuDNN's form of it needs a GPU (test_gpu.py)."""
    arrays, weights_BTHK = [drawn(B, T, H, K, seed=seed) for seed in range(3)], drawn(B, T, H, K, seed=9)
    segments_BT = None if segments_BT is None else jnp.asarray(segments_BT)

    def fused(q_BTHK, k_BTHK, v_BTHK):
        return attention.fused_attention(q_BTHK, k_BTHK, v_BTHK, segments_BT, implementation="xla")

    def plain(q_BTHK, k_BTHK, v_BTHK):
        return in_rows(q_BTHK, k_BTHK, v_BTHK, segments_BT)

    np.testing.assert_allclose(fused(*arrays), plain(*arrays), atol=5 * TOLERANCE)
    gradients = [
        jax.grad(lambda *arrays, form=form: jnp.sum(form(*arrays) * weights_BTHK), argnums=(0, 1, 2))(*arrays)
        for form in (fused, plain)
    ]
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=20 * TOLERANCE)


@pytest.fixture
def a_gpu(monkeypatch):
    """jax says that there is a GPU; its fused attention gives sevens. On the CPU everything stays what it was."""

    def there(capability="9.0"):
        monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
        monkeypatch.setattr(attention, "fused_attention", lambda q, k, v, segments_BT: jnp.full_like(q, 777.0))

    return there


def takes_it(q_BTHK, **how):
    def f(q_BTHK):
        return in_rows(q_BTHK, q_BTHK, q_BTHK, **how)

    found = "7.7" in lowered(f, q_BTHK, platform="cuda")
    assert "7.7" not in lowered(f, q_BTHK, platform="cpu")
    return found


def test_a_gpu_attends_by_cudnn_where_that_can(a_gpu):
    q_BTHK = drawn(B, T, H, K).astype(jnp.bfloat16)
    assert not takes_it(q_BTHK)  # there is none here
    a_gpu()
    assert takes_it(q_BTHK)
    assert takes_it(q_BTHK.astype(jnp.float16))
    assert takes_it(q_BTHK, segments_BT=jnp.asarray(SEGMENTS_BT))
    assert not takes_it(q_BTHK.astype(jnp.float32))  # has no float32
    assert not takes_it(q_BTHK, dropout=lambda probs: probs)
    assert not takes_it(q_BTHK[..., :7])
    assert not takes_it(q_BTHK[:, :5])
    assert not takes_it(jnp.concatenate([q_BTHK] * 17, axis=-1))
    for capability, found in (("7.5", False), ("10.0", True), ("gfx942", False)):
        a_gpu(capability)
        assert takes_it(q_BTHK) == found
