"""Learning rates against their formulas, written out here a second time in Python's float64.

The peaks of noam are those of the paper's models, to the four digits that were published.
"""

import itertools
import math

import jax
import numpy as np
import optax
import pytest

from dialogpt_jax.training import schedules
from dialogpt_jax.training.schedules import SCHEDULES, UnknownSchedule, make_schedule, noam, noamwd, trapezoid

# float32: a handful of operations on numbers without cancellation.
TOLERANCE = 2e-6

STEPS, WARMUP, RATE, WIDTH = 50, 8, 3e-3, 96


def rates(schedule, steps=STEPS + 3):
    """All of them in one call, as no caller does, and so a check that the schedule is elementwise."""
    return np.asarray(jax.vmap(schedule)(np.arange(steps, dtype=np.int32)), np.float64)


def made(name, **numbers):
    numbers = {"learning_rate": RATE, "steps": STEPS, "warmup": WARMUP, "d_model": WIDTH} | numbers
    return make_schedule(name, **numbers)


def rise(s, warmup=WARMUP):
    return min((s + 1) / warmup, 1) if warmup else 1


def fallen(s, warmup=WARMUP):
    return min(max(s - warmup, 0) / (STEPS - warmup), 1)


FORMULAS = {
    "constant": lambda s: RATE * rise(s),
    "linear": lambda s: RATE * rise(s) * (1 - fallen(s)),
    "cosine": lambda s: RATE * rise(s) * (1 + math.cos(math.pi * fallen(s))) / 2,
    "noam": lambda s: RATE * 1e4 * WIDTH**-0.5 * min((s + 1) ** -0.5, (s + 1) * WARMUP**-1.5),
    "noamwd": lambda s: FORMULAS["noam"](s) * 0.5 ** (max(s + 1 - 500 + 1000, 0) // 1000),
    "trapezoid": lambda s: RATE * min(rise(s), max((STEPS - s) / 10, 0)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_is_its_formula(name):
    np.testing.assert_allclose(
        rates(made(name)), [FORMULAS[name](s) for s in range(STEPS + 3)], rtol=TOLERANCE, atol=1e-9
    )


@pytest.mark.parametrize("name", [name for name in SCHEDULES if not name.startswith("noam")])
def test_the_rate_never_starts_at_zero_reaches_its_peak_at_the_warm_ups_end_and_falls(name):
    found = rates(made(name), STEPS)
    assert found[0] == pytest.approx(RATE / WARMUP, rel=TOLERANCE)
    assert found[WARMUP - 1] == pytest.approx(RATE, rel=TOLERANCE) == found.max()
    assert (np.diff(found[:WARMUP]) > 0).all()
    assert (np.diff(found[WARMUP:]) <= 0).all()
    assert found[-1] > 0


@pytest.mark.parametrize("name", ["linear", "cosine", "trapezoid"])
def test_the_rate_is_zero_at_the_end_and_stays_there(name):
    assert rates(made(name))[STEPS:] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "trapezoid"])
def test_without_a_warm_up_the_first_step_has_the_peak(name):
    assert float(made(name, warmup=0)(0)) == pytest.approx(RATE, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("warmup", "peaks"),
    [(16_000, (2.853e-5, 2.471e-5, 2.210e-5)), (4_000, (5.705e-5, 4.941e-5, 4.419e-5))],
)
def test_the_peaks_of_noam_for_small_medium_and_large(warmup, peaks):
    for d_model, peak in zip((768, 1024, 1280), peaks, strict=True):
        schedule = jax.vmap(noam(1e-5, warmup=warmup, d_model=d_model))
        found = np.asarray(schedule(np.arange(warmup - 3, warmup + 3, dtype=np.int32)), np.float64)
        assert float(f"{found.max():.3e}") == peak
        assert found.argmax() == 2  # t = step + 1 = warm-up


def test_noamwd_halves_at_500_1500_2500_whatever_the_warm_up():
    for warmup in (10, 4000):
        numbers = {"warmup": warmup, "d_model": WIDTH}
        share = rates(noamwd(RATE, **numbers), 2600) / rates(noam(RATE, **numbers), 2600)
        at = [step + 1 for step, (a, b) in enumerate(itertools.pairwise(share), 1) if b < 0.9 * a]
        assert at == [500, 1500, 2500]
        np.testing.assert_allclose(share[[0, 499, 1499, 2499]], [1, 0.5, 0.25, 0.125], rtol=TOLERANCE)


def test_decay_is_noamwds_distance_and_trapezoids_fall():
    share = rates(made("noamwd", decay=5), 520) / rates(made("noam"), 520)
    np.testing.assert_allclose(share[[497, 498, 499, 503, 504]], [1, 1, 0.5, 0.5, 0.25], rtol=TOLERANCE)
    assert (rates(made("trapezoid", decay=20))[:31] / RATE)[WARMUP - 1 :] == pytest.approx(1)
    assert rates(made("trapezoid", decay=20))[40] == pytest.approx(RATE / 2, rel=TOLERANCE)


def test_the_trapezoid_is_bit_for_bit_what_trained_the_bundled_model():
    """The same three pieces, joined here by hand."""
    steps, warmup, decay, peak = 40, 6, 15, 0.02
    found = trapezoid(peak, steps=steps, warmup=warmup, decay=decay)
    pieces = (
        optax.linear_schedule(peak / warmup, peak, warmup - 1),
        optax.constant_schedule(peak),
        optax.linear_schedule(peak, 0.0, decay),
    )
    for s in range(steps):
        piece, start = (0, 0) if s < warmup else (1, warmup) if s < steps - decay else (2, steps - decay)
        assert np.float32(found(np.int32(s))) == np.float32(pieces[piece](np.int32(s - start))), s


def test_an_unknown_name_is_told_which_there_are():
    with pytest.raises(
        UnknownSchedule, match="no schedule is called 'nome'; there are constant, linear, cosine, noam,"
    ):
        made("nome")
    assert issubclass(UnknownSchedule, ValueError)


@pytest.mark.parametrize(
    ("name", "numbers", "told"),
    [
        ("linear", {"warmup": 50}, "warm-up has 50 steps and the run 50"),
        ("cosine", {"warmup": -1}, "warmup is -1; it must be a whole number, at least 0"),
        ("noam", {"warmup": 0}, "which has 0 steps"),
        ("noamwd", {"warmup": 0}, "which has 0 steps"),
        ("noamwd", {"decay": 0}, "decay is 0; it must be a whole number, at least 1"),
        ("trapezoid", {"decay": 43}, "50 steps does not hold a warm-up of 8 and a fall of 43"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(name, numbers, told):
    with pytest.raises(ValueError, match=told):
        made(name, **numbers)


def test_a_large_step_is_no_overflow():
    late = float(noam(1e-5, warmup=16_000, d_model=768)(np.int32(2**31 - 2)))
    assert late == pytest.approx(1e-5 * 1e4 * 768**-0.5 * 2.0**-15.5, rel=1e-5)
    assert 0 <= float(schedules.noamwd(1e-5, warmup=16_000, d_model=768)(np.int32(2**31 - 2000))) < 1e-30


def test_numbers_of_a_schedule_are_numbers_and_numpy_s_will_do():
    given = {"learning_rate": 1e-3, "steps": 20, "warmup": 4, "d_model": 64}
    for wrong, said in (
        ({"steps": 1.5}, "steps is 1.5; it must be a whole number"),
        ({"steps": 0}, "steps is 0; it must be a whole number"),
        ({"warmup": -1}, "warmup is -1; it must be a whole number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be a finite number"),
        ({"decay": 0}, "decay is 0; it must be a whole number"),
    ):
        with pytest.raises(ValueError, match=said):
            make_schedule("linear", **(given | wrong))
    numpy_s = {"learning_rate": np.float64(1e-3), "steps": np.int64(20), "warmup": np.int32(4)}
    found = [float(make_schedule("linear", **(given | numbers))(7)) for numbers in ({}, numpy_s)]
    assert found[0] == found[1] > 0
