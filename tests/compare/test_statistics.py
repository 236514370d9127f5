"""Differences against scipy's paired t test, and what is said of them."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from pc_ewa.compare.statistics import POINTS, RAW, Difference, difference, interval, mean_and_std, verdict


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_the_interval_is_that_of_the_paired_t_test(seeds: int) -> None:
    random = np.random.RandomState(seeds)
    a, b = random.rand(seeds), random.rand(seeds)
    found = difference(dict(enumerate(a)), dict(enumerate(b)))
    expected = ttest_rel(a, b).confidence_interval(0.95)
    assert found is not None
    assert found.seeds == seeds
    assert found[:3] == pytest.approx((np.mean(a - b), expected.low, expected.high), rel=1e-12)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = difference({0: 0.5, 2: 0.75, 7: 0.0}, {2: 0.25, 0: 0.25, 3: 1.0})
    assert found is not None
    assert (found.mean, found.seeds) == (0.375, 2)
    assert difference({0: 0.5}, {1: 0.5}) is None
    assert difference({0: 0.5, 1: 0.1}, {1: 0.25}) == (0.1 - 0.25, None, None, 1)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Difference(0.012, 0.003, 0.021, 4), "gain of 1.2 points (0.3 to 2.1)"),
        (Difference(-0.012, -0.021, -0.003, 4), "loss of 1.2 points (0.3 to 2.1)"),
        (Difference(0.002, -0.005, 0.009, 4), "no difference beyond noise: +0.2 points (-0.5 to +0.9)"),
        (Difference(0.005, 0.0002, 0.0098, 4), "gain of 0.50 points (0.02 to 0.98)"),  # not "0.0 to 1.0"
        (Difference(0.002, None, None, 1), "one seed: +0.2 points, no interval"),
        (Difference(0.0, 0.0, 0.0, 3), "no difference: the same score on each of 3 seeds"),
        (Difference(0.01, 0.01, 0.01, 2), "+1.0 points on each of 2 seeds: no interval"),
        (None, "no seed in common"),
    ],
)
def test_the_verdict_in_words(found: Difference | None, words: str) -> None:
    assert verdict(found, POINTS, higher_is_better=True) == words


def test_a_lower_loss_is_a_gain() -> None:
    found = Difference(-0.002, -0.003, -0.001, 4)
    assert verdict(found, RAW, higher_is_better=False) == "gain of 0.002000 (0.001000 to 0.003000)"
    assert interval(found, RAW, higher_is_better=False) == "+0.002000 (+0.001000 to +0.003000)"
    worse = Difference(0.002, -0.001, 0.005, 4)
    assert "noise: -0.002000 (-0.005000 to +0.001000)" in verdict(worse, RAW, higher_is_better=False)


def test_scores_that_differ_by_rounding_alone_are_the_same() -> None:
    """0.1 + 0.2 - 0.3 is no effect."""
    found = difference({0: 0.1 + 0.2, 1: 0.5}, {0: 0.3, 1: 0.5})
    assert verdict(found, POINTS, higher_is_better=True) == "no difference: the same score on each of 2 seeds"


def test_the_deviation_is_that_of_a_sample() -> None:
    assert mean_and_std([0.5, 0.6, 0.7], POINTS) == "60.0 ± 10.0"
    assert mean_and_std([0.5], POINTS) == "50.0"
