"""Paired differences over seeds, their intervals, and verdicts in words."""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pc_ewa.compare.power import LEVEL
from pc_ewa.eval.metric import Metric

CONFIDENCE = 1 - LEVEL


class Difference(NamedTuple):
    """The mean of the paired differences over `seeds` pairs, with a t test of n - 1 degrees of freedom.

    `low` and `high` are its 95 % interval. `std` is the standard deviation of the differences. `p` is the p value of
    the two-sided t test. `margin` is the end of the 90 % interval farther from 0: by two one-sided tests of 5 % (TOST)
    the absolute true difference is smaller. All of these are None with fewer than two pairs.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    std: float | None = None
    p: float | None = None
    margin: float | None = None


def difference(scores: Mapping[Any, float], baseline: Mapping[Any, float]) -> Difference | None:
    """Compute the paired difference over the seeds, or seeds and folds, that both sides have.

    Args:
        scores: score by seed.
        baseline: score by seed of the baseline.

    Returns:
        The difference `scores - baseline`. None without a seed in common.
    """
    seeds = sorted(scores.keys() & baseline.keys())
    if not seeds:
        return None
    mine, theirs = ([side[seed] for seed in seeds] for side in (scores, baseline))
    mean = statistics.fmean(a - b for a, b in zip(mine, theirs, strict=True))
    if len(seeds) == 1:
        return Difference(mean, None, None, 1)
    std = deviation([a - b for a, b in zip(mine, theirs, strict=True)])
    from scipy.stats import ttest_rel  # half a second, for those who compare

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about nearly identical pairs, which `verdict` handles
        test = ttest_rel(mine, theirs)
        low, high = map(float, test.confidence_interval(CONFIDENCE))
        # Two one-sided tests at 5 % are the same as looking whether the 90 % interval lies within the limits.
        margin = max(map(abs, map(float, test.confidence_interval(2 * CONFIDENCE - 1))))
    p = float(test.pvalue)
    sound = math.isfinite(p)  # NaN if all differences are equal: their deviation is 0
    return Difference(mean, low, high, len(seeds), std, p if sound else None, margin if sound else None)


def write_score(value: float, metric: Metric, digits: int | None = None, sign: str = "") -> str:
    """Write a score without a unit, times 100 if the metric is in percent."""
    digits = _least_digits(metric) if digits is None else digits
    return f"{round((100 if metric.percent else 1) * value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no -0.0


def deviation(values: Sequence[float]) -> float:
    """Compute the sample standard deviation of two values or more, or NaN if one of them is not finite."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def mean_and_std(values: Sequence[float], metric: Metric) -> str:
    """Write mean ± sample standard deviation without a unit. A single value has no deviation."""
    width = f" ± {write_score(deviation(values), metric)}" if len(values) > 1 else ""
    return f"{write_score(statistics.fmean(values), metric)}{width}"


def verdict(found: Difference | None, metric: Metric, p: float | None = None, effect: float | None = None) -> str:
    """Return the verdict on a difference: a gain, a loss, the same, or no difference beyond noise. + is better.

    Args:
        found: the difference. None: the two sides have no seed in common.
        metric: metric of the scores.
        p: p value, corrected for all comparisons of the family. None: the interval alone decides.
        effect: smallest difference of interest. A difference that is surely smaller is "the same". None: no
            difference is called the same.
    """
    if found is None:
        return "no seed in common"
    mean, low, high, seeds = _better_positive(found, metric)[:4]
    unit = " points" if metric.percent else ""
    if low is None or high is None:
        return f"one seed: {write_score(mean, metric, sign='+')}{unit}, no interval"
    if not math.isfinite(mean):
        return "a score is not finite"
    if high - low <= 1e-9 * max(1.0, abs(mean)):  # equal on all seeds but for rounding: the t interval is not defined
        if abs(mean) <= 1e-9:
            return f"no difference: the same score on each of {seeds} seeds"
        return f"{write_score(mean, metric, sign='+')}{unit} on each of {seeds} seeds: no interval"
    digits = _digits(low, high, metric)
    weak = p is not None and p > LEVEL
    if low <= 0 <= high or weak:
        shown, *bounds = (write_score(value, metric, digits, "+") for value in (mean, low, high))
        within = effect is not None and found.margin is not None and found.margin < effect
        limit = write_score(effect or 0.0, metric)
        words = f"the same within {limit}{unit}" if within else "no difference beyond noise"
        corrected = "" if low <= 0 <= high or within else " after Holm's correction"
        return f"{words}{corrected}: {shown}{unit} ({' to '.join(bounds)})"
    word, near, far = ("gain", low, high) if low > 0 else ("loss", -high, -low)
    shown, *bounds = (write_score(size, metric, digits) for size in (abs(mean), near, far))
    return f"{word} of {shown}{unit} ({' to '.join(bounds)})"


def interval(found: Difference | None, metric: Metric) -> str:
    """Write a difference and its interval in numbers alone. + is better."""
    if found is None:
        return ""
    mean, low, high = _better_positive(found, metric)[:3]
    if low is None or high is None:
        return write_score(mean, metric, sign="+")
    shown, *bounds = (write_score(value, metric, _digits(low, high, metric), "+") for value in (mean, low, high))
    return f"{shown} ({' to '.join(bounds)})"


def _better_positive(found: Difference, metric: Metric) -> Difference:
    """Change the sign of a difference, if lower is better, so that above 0 is better."""
    if metric.higher_is_better:
        return found
    low, high = (None if bound is None else -bound for bound in (found.high, found.low))
    return found._replace(mean=-found.mean, low=low, high=high)


def _digits(low: float, high: float, metric: Metric) -> int:
    """Choose the digits so that rounding does not turn a bound into 0."""
    least = _least_digits(metric)
    for digits in range(least, least + 3):
        if all(bound == 0 or float(write_score(bound, metric, digits)) != 0 for bound in (low, high)):
            return digits
    return least + 3


def _least_digits(metric: Metric) -> int:
    return 1 if metric.percent else 6
