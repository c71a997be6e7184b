"""Intervals that hold what they promise; comparisons of two systems that find differences and do not invent them."""

import numpy as np
import pytest

from dialogpt_jax.evaluation.diversity import diversity, leave_one_out
from dialogpt_jax.evaluation.intervals import Estimate, compare, estimates, interval, resample, standard_error
from dialogpt_jax.evaluation.measures import measure

NAMES = ("mean", "second")


def mean_of(values_BN, *, seed=0, resamples=2000):
    return estimates(NAMES, lambda sums: sums / len(values_BN), (values_BN,), resamples=resamples, seed=seed)


def test_bootstrap_of_a_mean_has_its_standard_error():
    values_BN = np.random.default_rng(1).normal(3.0, [1.0, 2.0], (400, 2))
    for n, found in enumerate(mean_of(values_BN)):
        low, high = interval(found)
        error = values_BN[:, n].std() / 20
        assert found.value == pytest.approx(values_BN[:, n].mean())
        assert (low + high) / 2 == pytest.approx(found.value, abs=0.3 * error)
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_every_resample_draws_as_many_lines_as_there_are():
    scores = resample(lambda sums: sums, (np.ones((7, 1)),), resamples=120, seed=0)
    np.testing.assert_array_equal(scores, np.full((120, 1), 7.0))


def test_seed_decides():
    values_BN = np.random.default_rng(1).normal(size=(50, 2))
    one, same, other = (mean_of(values_BN, seed=seed)[0].replicates_R for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_system_against_itself_is_no_difference():
    found = mean_of(np.random.default_rng(1).normal(size=(50, 2)))[0]
    assert compare(found, found) == ("mean", 0.0, 0.0, 0.0, 1.0)


def test_a_pair_is_compared_line_by_line():
    """Lines differ by 10, systems by 0.1 in every line: only a paired comparison can see it."""
    draw = np.random.default_rng(1)
    lines_BN = draw.normal(0, 10, (200, 2))
    better_BN = lines_BN + draw.normal(0.1, 0.01, (200, 2))
    better, worse = mean_of(better_BN)[0], mean_of(lines_BN)[0]
    found = compare(better, worse)
    assert 0.09 < found.low < found.value < found.high < 0.11
    assert found.p == pytest.approx(1 / 2001)
    back = compare(worse, better)
    np.testing.assert_allclose([back.value, back.low, back.high], [-found.value, -found.high, -found.low])


@pytest.mark.parametrize("kind", ["bootstrap", "jackknife"])
def test_equal_systems_seldom_look_different(kind):
    """Of 300 pairs of equal systems about 15 have p < 0.05: between 4 and 29 but for one case in a thousand."""
    draw = np.random.default_rng(2)
    found = []
    for trial in range(300):
        pair = draw.normal(size=(2, 60, 2))
        if kind == "bootstrap":
            first, second = (mean_of(values_BN, seed=trial, resamples=300)[0] for values_BN in pair)
        else:
            sums = pair[:, :, 0].sum(axis=1)
            left_out = (sums[:, None] - pair[:, :, 0]) / 59
            first, second = (Estimate("mean", sums[i] / 60, "jackknife", left_out[i]) for i in range(2))
        found.append(compare(first, second).p)
    assert 4 <= sum(p < 0.05 for p in found) <= 29
    assert 0.42 < np.mean(found) < 0.58


def test_jackknife_of_a_mean_is_exact():
    values_B = np.random.default_rng(1).normal(size=40)
    left_out_B = (values_B.sum() - values_B) / 39
    assert standard_error(left_out_B) == pytest.approx(values_B.std(ddof=1) / np.sqrt(40))
    assert np.isnan(standard_error(values_B[:1]))


def sample(draw, num=150):
    """Lines of 3 to 14 words of a vocabulary with a long tail."""
    return [[str(word) for word in draw.zipf(1.4, draw.integers(3, 15))] for _ in range(num)]


def test_intervals_of_ent_and_dist_hold_the_expected_value():
    """Of 120 sets of lines at least 85 % of the intervals hold the mean over all sets (expected: 95 %, less the
    jackknife's own error), where the percentiles of lines drawn with replacement hold it never.
    """
    draw = np.random.default_rng(3)
    sets = [sample(draw) for _ in range(120)]
    values = np.asarray([diversity(lines, orders=2) for lines in sets])  # (sets, Ent or Dist, order)
    covered = np.zeros((2, 2))
    for lines, value in zip(sets, values, strict=True):
        for kind, left_out_BN in enumerate(leave_one_out(lines, orders=2)):
            for n in range(2):
                low, high = interval(Estimate("", value[kind, n], "jackknife", left_out_BN[:, n]))
                covered[kind, n] += low <= values[:, kind, n].mean() <= high
    assert (covered / len(sets) >= 0.85).all(), covered
    lines = sets[0]
    drawn = [diversity([lines[i] for i in draw.integers(0, 150, 150)], orders=2)[1][1] for _ in range(50)]
    assert max(drawn) < values[:, 1, 1].mean()


def test_measures_come_in_the_order_of_the_papers_tables():
    texts, references = ["a b c d e", "f g"], [["a b c d"], ["f", "f g h"]]
    found = measure(texts, references, resamples=20, meteor=0.5)
    names = [f"{kind}-{n}" for kind in ("NIST", "BLEU") for n in range(1, 5)]
    names += ["METEOR 1.5", *(f"{kind}-{n}" for kind in ("Ent", "Dist") for n in range(1, 5)), "length", "repetition"]
    assert [estimate.name for estimate in found] == names
    assert [e.name for e in measure(texts, resamples=0)] == names[9:]
    by_name = {e.name: e for e in found}
    assert by_name["length"].value == 3.5
    assert by_name["BLEU-1"].replicates_R.shape == (20,)
    assert np.isnan(interval(by_name["METEOR 1.5"])).all(), "there is none"
    with pytest.raises(ValueError, match="no hypothesis"):
        measure([])


def test_an_interval_of_bleu_holds_bleu():
    draw = np.random.default_rng(4)
    references = [[" ".join(line)] for line in sample(draw, 200)]
    texts = [" ".join(word for word in line[0].split() if draw.random() < 0.9) for line in references]
    for estimate in measure(texts, references, resamples=200):
        low, high = interval(estimate)
        assert low <= estimate.value <= high
        if estimate.name.startswith(("NIST", "BLEU")):
            assert 0 < high - low < 0.3 * estimate.value
