"""Each quirk of microsoft/DialoGPT against a second description of it in NumPy: faithful is that, and fixed is not.

`Reference` is that code's optimiser and loop in float64, from its description; where a quirk is fixed it does the usual.

Letters: B rows, T tokens.
"""

import dataclasses

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dialogpt_jax.data.batches import SortedWindows
from dialogpt_jax.likelihood import token_losses
from dialogpt_jax.training.loss import loss
from dialogpt_jax.training.optim import adamw
from dialogpt_jax.training.recipes import (
    QUIRKS,
    Numbers,
    Recipe,
    UnknownQuirk,
)

# float32 against float64 in parameters that moved by about 0.1: Adam's 1 − 0.999^n is good to 6e-5 in float32.
TOLERANCE = {"rtol": 2e-5, "atol": 6e-6}
# How far apart the two choices are at the least, in the same parameters.
APART = 100 * TOLERANCE["atol"]

WIDTH = 16
PARAMS = {
    "ln_f": {"scale": jnp.linspace(0.5, 1.5, WIDTH), "bias": jnp.linspace(-1.0, 1.0, WIDTH)},
    "h_0": {"kernel": jnp.linspace(-2.0, 2.0, 5 * WIDTH).reshape(5, WIDTH)},
}
# Rates large enough to be seen in a few steps: noam's peak is lr · 10⁴ / √(16 · 2) = 0.035.
PAPER = Recipe.paper().with_numbers(learning_rate=2e-5, warmup=2, accumulate=2, steps=20, weight_decay=0.3)
STEPS = 5


def named(tree):
    return {f"{a}.{b}": np.asarray(x, np.float64) for a, group in tree.items() for b, x in group.items()}


def part_gradient(step, part):
    """The gradient of the mean loss of one part of a batch: of norm about 3 in one parameter, 0.01 in the others."""
    rng = np.random.default_rng([step, part])
    return {
        name: rng.normal(size=x.shape) * (0.5 if name == "h_0.kernel" else 0.002 if "bias" in name else 5e-6)
        for name, x in named(PARAMS).items()
    }


def mean_gradient(step, parts):
    return {name: np.mean([part_gradient(step, part)[name] for part in range(parts)], axis=0) for name in named(PARAMS)}


def reference(recipe, d_model=WIDTH, steps=STEPS):
    """`lsp_model/optim.py`'s Adam in the loop of `LSP_train.py`, the parts all of equal weight."""
    n, p = recipe.numbers, named(PARAMS)
    m, v = ({name: np.zeros_like(x) for name, x in p.items()} for _ in range(2))
    parts = n.accumulate
    for step in range(steps):
        t, faithful = step + 1, lambda quirk: getattr(recipe, quirk) == "faithful"
        noam = min(t**-0.5, t * n.warmup**-1.5)
        rate = n.learning_rate * noam * (1e4 * d_model**-0.5 if faithful("rate") else n.warmup**0.5)
        g = {name: sum(part_gradient(step, part)[name] for part in range(parts)) for name in p}
        g = {name: x if faithful("accumulation") else x / n.accumulate for name, x in g.items()}
        whole = np.sqrt(sum((x**2).sum() for x in g.values()))
        for name in p:
            norm = np.sqrt((g[name] ** 2).sum()) + 1e-6 if faithful("clip") else whole
            grad = g[name] * min(1, n.clip / norm)
            m[name] = 0.9 * m[name] + 0.1 * grad
            v[name] = 0.999 * v[name] + 0.001 * grad**2
            corrections = (1, 1) if faithful("bias_correction") else (1 - 0.9**t, 1 - 0.999**t)
            eps = 1e-6 if faithful("epsilon") else 1e-8
            update = m[name] / corrections[0] / (np.sqrt(v[name] / corrections[1]) + eps)
            if faithful("decay") or name.endswith("kernel"):
                update = update + n.weight_decay * p[name]
            p[name] = p[name] - rate * update
    return p


def trained(recipe, steps=STEPS):
    """What `recipe.optimizer` makes of the gradients of the batch's mean loss, all parts being of equal weight."""
    optimizer = recipe.optimizer(WIDTH)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for n in range(steps):
        mean = mean_gradient(n, recipe.numbers.accumulate)
        grads = {a: {b: jnp.asarray(mean[f"{a}.{b}"], jnp.float32) for b in group} for a, group in PARAMS.items()}
        params, state = step(params, state, grads)
    return named(params)


def distance(one, other):
    return max(np.abs(one[name] - other[name]).max() for name in one)


def check(found, expected):
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, err_msg=name, **TOLERANCE)


# Those that the optimiser alone decides on. Where the one hides behind another (a sum of gradients is nothing to Adam
# unless something is clipped; eps is nothing to gradients far above it), the base has the other fixed.
BY_OPTIMIZER = {
    "rate": PAPER,
    "accumulation": PAPER.fixed("clip").with_numbers(clip=8.0),
    "clip": PAPER,
    "bias_correction": PAPER,
    "epsilon": PAPER,
    "decay": PAPER,
}


@pytest.mark.parametrize("quirk", BY_OPTIMIZER)
def test_a_quirk_of_the_optimiser_is_the_references_and_fixed_is_not(quirk):
    base = BY_OPTIMIZER[quirk]
    faithful, fixed = base.faithful(quirk), base.fixed(quirk)
    assert (getattr(faithful, quirk), getattr(fixed, quirk)) == ("faithful", "fixed")
    assert distance(reference(faithful), reference(fixed)) > APART  # so the next two lines can tell
    check(trained(faithful), reference(faithful))
    check(trained(fixed), reference(fixed))


def test_all_fixed_is_plain_adamw():
    fixed = PAPER.fixed()
    check(trained(fixed), reference(fixed))
    own = fixed.optimizer(WIDTH)
    plain = adamw(fixed.schedule(WIDTH), weight_decay=0.3, clip=1.0)
    assert jax.eval_shape(own.init, PARAMS) == jax.eval_shape(plain.init, PARAMS)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    one, other = (jax.jit(lambda g, o=o: o.update(g, o.init(PARAMS), PARAMS)[0])(grads) for o in (own, plain))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_clip_and_decay_of_nothing_are_absent():
    bare = PAPER.with_numbers(clip=0, weight_decay=0)
    assert len(bare.optimizer(WIDTH).init(PARAMS)) == len(PAPER.optimizer(WIDTH).init(PARAMS)) - 2


def test_the_schedule_is_noam_unless_another_is_asked_for():
    rates = [float(PAPER.schedule(WIDTH)(step)) for step in range(3)]
    peak = 2e-5 * 1e4 / np.sqrt(WIDTH * 2)
    np.testing.assert_allclose(rates, [peak / 2, peak, peak * np.sqrt(2 / 3)], rtol=1e-6)
    assert float(PAPER.fixed("rate").schedule(WIDTH)(1)) == pytest.approx(2e-5)
    assert float(PAPER.with_numbers(schedule="constant").schedule(WIDTH)(5)) == pytest.approx(2e-5)


# The parts of a batch: what each row counts, and whose mean is taken.

CONFIG = fakes.no_dropout(dataclasses.replace(fakes.TINY, n_layer=1))
ROWS, LENGTH = 12, 9
TOKENS_BT = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (ROWS, LENGTH)).astype(np.int32)
LENGTHS_B = np.array([9, 3, 8, 4, 2, 9, 5, 7, 9, 2, 6, 3])
WEIGHTS_BT = np.where(
    np.arange(LENGTH) < LENGTHS_B[:, None], np.random.default_rng(1).choice([0.3, 1.0, 2.5], (ROWS, LENGTH)), 0
).astype(np.float32)
WEIGHTS_BT[:, 0] = 0


@pytest.fixture(scope="module")
def model():
    """(parameters, each token's loss in float64)."""
    params = fakes.draw_params(CONFIG)
    params["ln_f"] = {name: 20 * x for name, x in params["ln_f"].items()}  # losses from 0 to 20, so that means differ
    losses_BT = jax.jit(token_losses, static_argnums=1)(params, CONFIG, jnp.asarray(TOKENS_BT))
    return params, np.asarray(losses_BT, np.float64)


SIX = PAPER.with_numbers(accumulate=6)
GROUPS = {
    SIX: 6,
    SIX.fixed("weights"): 6,
    PAPER: 2,
    PAPER.with_numbers(accumulate=3): 3,
    PAPER.fixed("accumulation"): 1,
    PAPER.fixed(): 1,
}


def mean_of_means(losses_BT, recipe):
    counts_BT = WEIGHTS_BT if recipe.weights == "fixed" else WEIGHTS_BT > 0
    parts = zip(np.split(losses_BT, GROUPS[recipe]), np.split(counts_BT, GROUPS[recipe]), strict=True)
    return np.mean([(part * count).sum() / count.sum() for part, count in parts])


@pytest.mark.parametrize("recipe", GROUPS)
def test_weighed_rows_give_the_mean_of_each_groups_own_mean(model, recipe):
    params, losses_BT = model
    weighed_BT = jax.jit(lambda w: recipe.weigh(w))(jnp.asarray(WEIGHTS_BT))
    found = jax.jit(loss, static_argnums=1)(params, CONFIG, jnp.asarray(TOKENS_BT), weighed_BT)[0]
    assert recipe.groups == GROUPS[recipe]
    assert float(found) == pytest.approx(mean_of_means(losses_BT, recipe), rel=1e-5)
    others = [mean_of_means(losses_BT, other) for other in GROUPS if other != recipe]
    assert all(abs(float(found) / other - 1) > 1e-3 for other in others)  # each of the six is a number of its own


def test_a_weight_of_a_third_counts_as_one_or_as_a_third():
    weights_BT = jnp.asarray([[0, 0.3, 1.0, 0.0]])
    np.testing.assert_array_equal(PAPER.fixed("accumulation").weigh(weights_BT), [[0, 1, 1, 0]])
    np.testing.assert_array_equal(PAPER.fixed().weigh(weights_BT), weights_BT)


def test_a_part_without_targets_stays_without():
    weights_BT = jnp.asarray([[0, 1.0, 1.0], [0, 0, 0]])
    np.testing.assert_array_equal(PAPER.weigh(weights_BT), [[0, 0.5, 0.5], [0, 0, 0]])


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="a batch of 12 rows does not divide into 8 equal parts"):
        PAPER.with_numbers(accumulate=8).weigh(jnp.asarray(WEIGHTS_BT))


# Data.


def test_batches_are_cut_from_sorted_windows_and_padded_to_a_multiple_of_8():
    recipe = Recipe.paper().with_numbers(batch_size=4, accumulate=2)
    sizes = np.random.default_rng(2).integers(2, 41, 1003)
    plan = recipe.planner()(sizes, np.random.default_rng(0))
    span = 100 * 4 // 2  # 100 parts of 2
    order, expected = np.random.default_rng(0).permutation(len(sizes)).tolist(), []
    while order:
        window, order = sorted(order[:span], key=lambda i: -sizes[i]), order[span:]
        while len(window) >= 4:
            members, window = window[:4], window[4:]
            length = max(sizes[i] for i in members)
            while length % 8:
                length += 1
            expected.append((int(length), tuple(members)))
    found = {(batch.length, tuple(batch.members_B.tolist())) for batch in plan}
    assert found > set(expected)
    ((length, members),) = found - set(expected)  # the last three of the last window, which theirs drops, and a fourth
    assert len(found) == len(plan) == 251
    assert set(window) < set(members)
    assert len(set(members)) == 4
    assert 0 <= length - max(sizes[i] for i in members) < 8


def test_fixed_padding_goes_to_the_longest_and_fixed_batching_is_the_callers():
    recipe = Recipe.paper().with_numbers(batch_size=4, accumulate=2)
    sizes = np.random.default_rng(2).integers(2, 41, 100)
    plan = recipe.fixed("padding").planner()(sizes, np.random.default_rng(0))
    assert all(batch.length == sizes[batch.members_B].max() for batch in plan)
    assert any(batch.length % 8 for batch in plan)
    assert recipe.fixed("batching").planner() is None
    assert (recipe.sort_window, recipe.fixed("batching").sort_window) == (200, None)
    assert Recipe.paper().planner() == SortedWindows(512, window=12, pad_multiple=8)  # 6,400 examples hold 12 batches


def test_there_was_no_dropout():
    assert (Recipe.paper().dropout_rate, Recipe.paper().fixed("dropout").dropout_rate) == (0.0, 0.1)


def test_a_masked_score_of_minus_1e4_is_nothing_in_float32():
    """Why that one is no choice here: −1e4 and the least float32 give the same weights, bit for bit."""
    scores = jnp.asarray(np.random.default_rng(3).normal(scale=300, size=(50, 20)), jnp.float32)
    hidden = jnp.arange(20)[None] >= jnp.arange(1, 51)[:, None]
    both = [jax.nn.softmax(jnp.where(hidden, value, scores)) for value in (-1e4, jnp.finfo(jnp.float32).min)]
    np.testing.assert_array_equal(*both)
    assert np.asarray(both[0])[5].any()
    assert not np.asarray(both[0])[np.asarray(hidden)].any()


# Resuming.


def test_faithfully_resumed_the_moments_are_gone_and_the_schedule_goes_on():
    recipe = PAPER.faithful("resume")
    optimizer = recipe.optimizer(WIDTH)
    grads = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), PARAMS)
    update = jax.jit(optimizer.update)
    state = optimizer.init(PARAMS)
    for _ in range(3):
        before = state
        _, state = update(grads, state, PARAMS)
    resumed = recipe.resumed(state, optimizer, PARAMS, 3)
    fresh, _ = update(grads, resumed, PARAMS)
    # At step 3, t = 4; m and v from 0; the norm of each gradient is below 1 but the kernel's, 0.1 · √80.
    rate = 2e-5 * 1e4 / np.sqrt(WIDTH) * min(4**-0.5, 4 * 2**-1.5)
    for name, p in named(PARAMS).items():
        g = 0.2 * (min(1, 1 / (0.2 * np.sqrt(p.size))))  # two parts, summed
        expected = -rate * (0.1 * g / (np.sqrt(0.001) * g + 1e-6) + 0.3 * p)
        np.testing.assert_allclose(named(fresh)[name], expected, err_msg=name, rtol=1e-4, atol=1e-6)
    exact, _ = update(grads, PAPER.resumed(state, optimizer, PARAMS, 3), PARAMS)
    assert distance(named(exact), named(fresh)) > 1e-3
    assert PAPER.resumed(state, optimizer, PARAMS, 3) is state is not before
    assert jax.tree.structure(resumed) == jax.tree.structure(state)


# The recipe itself.


def test_the_paper_is_faithful_but_for_resuming_and_has_the_numbers_of_the_demo():
    paper = Recipe.paper()
    assert {name for name in QUIRKS if getattr(paper, name) == "fixed"} == {"resume"}
    n = paper.numbers
    assert (n.batch_size, n.accumulate, n.steps, n.validate_every, n.max_length) == (512, 8, 10_000, 5000, 128)
    assert (n.schedule, n.learning_rate, n.warmup, n.seed, n.clip) == ("noam", 1e-5, 4000, 42, 1.0)
    assert float(paper.schedule(768)(3999)) == pytest.approx(5.705e-5, rel=1e-4)
    assert n == Numbers()


def test_every_quirk_can_be_chosen_by_name_and_no_other():
    for name in QUIRKS:
        fixed = Recipe.paper().faithful().fixed(name)
        assert [quirk for quirk in QUIRKS if getattr(fixed, quirk) == "fixed"] == [name]
    assert all(getattr(Recipe.paper().fixed(), name) == "fixed" for name in QUIRKS)
    for choose in (Recipe.paper().fixed, Recipe.paper().faithful):
        with pytest.raises(UnknownQuirk, match="no quirk is called 'numbers'; there are rate, weights,"):
            choose("clip", "numbers")
    assert hash(Recipe.paper()) == hash(Recipe.paper())
