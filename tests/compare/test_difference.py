"""Differences against the textbook's formula and quantiles of t, and what is said of them."""

import math
import statistics

import numpy as np
import pytest

from pc_ewa.compare.difference import Difference, difference, interval, mean_and_std, verdict
from pc_ewa.eval.metric import ACCURACY, LOSS

# The 97.5 % quantiles of Student's t with n - 1 degrees of freedom by n: two closed forms, and a table's.
QUANTILES = {2: math.tan(0.475 * math.pi), 3: 0.95 / math.sqrt(2 * 0.975 * 0.025), 10: 2.262157162798205}


@pytest.mark.parametrize("seeds", QUANTILES)
def test_the_interval_is_that_of_the_paired_t_test(seeds: int) -> None:
    random = np.random.RandomState(seeds)
    a, b = random.rand(seeds), random.rand(seeds)
    found = difference(dict(enumerate(a)), dict(enumerate(b)))
    pairs = [float(mine - theirs) for mine, theirs in zip(a, b, strict=True)]
    mean, half = statistics.fmean(pairs), QUANTILES[seeds] * statistics.stdev(pairs) / math.sqrt(seeds)
    assert found is not None
    assert found.seeds == seeds
    assert found[:3] == pytest.approx((mean, mean - half, mean + half), rel=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("gain", "words"), [(0.0, "no difference"), (0.125, "+12.5 points on each of 3 seeds")])
def test_pairs_that_all_differ_by_the_same_have_no_width(gain: float, words: str) -> None:
    baseline = {0: 0.25, 1: 0.5, 2: 0.75}
    found = difference({seed: score + gain for seed, score in baseline.items()}, baseline)
    assert found[:4] == (gain, gain, gain, 3)
    assert verdict(found, ACCURACY).startswith(words)


def test_a_score_that_is_not_finite_says_so() -> None:
    assert verdict(difference({0: math.nan, 1: 0.5}, {0: 0.5, 1: 0.5}), ACCURACY) == "a score is not finite"


def test_only_seeds_that_both_have_are_paired() -> None:
    found = difference({0: 0.5, 2: 0.75, 7: 0.0}, {2: 0.25, 0: 0.25, 3: 1.0})
    assert found is not None
    assert (found.mean, found.seeds) == (0.375, 2)
    assert difference({0: 0.5}, {1: 0.5}) is None
    assert difference({0: 0.5, 1: 0.1}, {1: 0.25}) == Difference(0.1 - 0.25, None, None, 1)


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
    assert verdict(found, ACCURACY) == words


def test_a_lower_loss_is_a_gain() -> None:
    found = Difference(-0.002, -0.003, -0.001, 4)
    assert verdict(found, LOSS) == "gain of 0.002000 (0.001000 to 0.003000)"
    assert interval(found, LOSS) == "+0.002000 (+0.001000 to +0.003000)"
    worse = Difference(0.002, -0.001, 0.005, 4)
    assert "noise: -0.002000 (-0.005000 to +0.001000)" in verdict(worse, LOSS)


def test_scores_that_differ_by_rounding_alone_are_the_same() -> None:
    """0.1 + 0.2 - 0.3 is no effect."""
    found = difference({0: 0.1 + 0.2, 1: 0.5}, {0: 0.3, 1: 0.5})
    assert verdict(found, ACCURACY) == "no difference: the same score on each of 2 seeds"


def test_the_deviation_is_that_of_a_sample() -> None:
    assert mean_and_std([0.5, 0.6, 0.7], ACCURACY) == "60.0 ± 10.0"
    assert mean_and_std([0.5], ACCURACY) == "50.0"


def test_the_margin_is_the_far_end_of_the_90_percent_interval() -> None:
    """The 95 % quantile of t with 2 degrees of freedom is 0.9 / sqrt(2 * 0.95 * 0.05)."""
    found = difference({0: 0.51, 1: 0.53, 2: 0.55}, {0: 0.5, 1: 0.5, 2: 0.5})
    assert found is not None
    half = 0.9 / math.sqrt(2 * 0.95 * 0.05) * 0.02 / math.sqrt(3)
    assert found.std == pytest.approx(0.02)
    assert found.margin == pytest.approx(0.03 + half)
    assert found.p is not None
    assert 0.05 < found.p < 0.15


@pytest.mark.parametrize(
    ("found", "p", "effect", "words"),
    [
        (Difference(0.012, 0.003, 0.021, 4, margin=0.02), 0.04, 0.005, "gain of 1.2 points (0.3 to 2.1)"),
        (
            Difference(-0.012, -0.021, -0.003, 4, margin=0.02),
            0.06,
            0.005,
            "no difference beyond noise after Holm's correction: -1.2 points (-2.1 to -0.3)",
        ),
        (
            Difference(0.001, -0.003, 0.005, 9, margin=0.0042),
            0.5,
            0.005,
            "the same within 0.5 points: +0.1 points (-0.3 to +0.5)",
        ),
        (  # surely there, and surely too small to matter
            Difference(0.002, 0.0005, 0.0035, 9, margin=0.0032),
            0.001,
            0.005,
            "gain of 0.2 points (0.1 to 0.4)",
        ),
        (Difference(0.001, -0.003, 0.005, 9, margin=0.0042), 0.5, None, "no difference beyond noise: +0.1"),
    ],
)
def test_a_verdict_is_corrected_and_knows_what_is_of_interest(
    found: Difference, p: float, effect: float | None, words: str
) -> None:
    assert verdict(found, ACCURACY, p, effect).startswith(words)


def test_scores_that_are_not_finite_have_no_deviation() -> None:
    assert mean_and_std([math.inf, 0.5], ACCURACY) == "inf ± nan"
