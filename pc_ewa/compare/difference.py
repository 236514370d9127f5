"""Paired differences over seeds with their interval, and what these say in words."""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pc_ewa.eval.metric import Metric

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """Mean of the paired differences over `seeds` seeds, and its interval; None with fewer than two seeds."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def difference(scores: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Compute the paired difference over the seeds that both have: mean and 95 % t interval (n - 1 degrees of freedom).

    Args:
        scores: score by seed.
        baseline: the same of what it is compared with.

    Returns:
        The difference `scores - baseline`; None when they have no seed in common.
    """
    seeds = sorted(scores.keys() & baseline.keys())
    if not seeds:
        return None
    mine, theirs = ([side[seed] for seed in seeds] for side in (scores, baseline))
    mean = statistics.fmean(a - b for a, b in zip(mine, theirs, strict=True))
    if len(seeds) == 1:
        return Difference(mean, None, None, 1)
    from scipy.stats import ttest_rel  # half a second, for those who compare

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pairs that are nearly identical, which `verdict` tells
        low, high = ttest_rel(mine, theirs).confidence_interval(CONFIDENCE)
    return Difference(mean, float(low), float(high), len(seeds))


def write_score(value: float, metric: Metric, digits: int | None = None, sign: str = "") -> str:
    """Write a score without a unit: times 100 where the metric is in percent, else as it is."""
    digits = _least_digits(metric) if digits is None else digits
    return f"{round((100 if metric.percent else 1) * value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no -0.0


def mean_and_std(values: Sequence[float], metric: Metric) -> str:
    """Write mean ± sample standard deviation, without a unit; one value has no deviation."""
    deviation = f" ± {write_score(statistics.stdev(values), metric)}" if len(values) > 1 else ""
    return f"{write_score(statistics.fmean(values), metric)}{deviation}"


def verdict(found: Difference | None, metric: Metric) -> str:
    """Say what a difference shows: a gain, a loss, or nothing beyond noise; + is better."""
    if found is None:
        return "no seed in common"
    mean, low, high, seeds = _better_positive(found, metric)
    unit = " points" if metric.percent else ""
    if low is None or high is None:
        return f"one seed: {write_score(mean, metric, sign='+')}{unit}, no interval"
    if not math.isfinite(mean):
        return "a score is not finite"
    if high - low <= 1e-9 * max(1.0, abs(mean)):  # equal on all seeds but for rounding; a t interval cannot tell
        if abs(mean) <= 1e-9:
            return f"no difference: the same score on each of {seeds} seeds"
        return f"{write_score(mean, metric, sign='+')}{unit} on each of {seeds} seeds: no interval"
    digits = _digits(low, high, metric)
    if low <= 0 <= high:
        shown, *bounds = (write_score(value, metric, digits, "+") for value in (mean, low, high))
        return f"no difference beyond noise: {shown}{unit} ({' to '.join(bounds)})"
    word, near, far = ("gain", low, high) if low > 0 else ("loss", -high, -low)
    shown, *bounds = (write_score(size, metric, digits) for size in (abs(mean), near, far))
    return f"{word} of {shown}{unit} ({' to '.join(bounds)})"


def interval(found: Difference | None, metric: Metric) -> str:
    """Write a difference and its interval in numbers alone; + is better."""
    if found is None:
        return ""
    mean, low, high, _ = _better_positive(found, metric)
    if low is None or high is None:
        return write_score(mean, metric, sign="+")
    shown, *bounds = (write_score(value, metric, _digits(low, high, metric), "+") for value in (mean, low, high))
    return f"{shown} ({' to '.join(bounds)})"


def _better_positive(found: Difference, metric: Metric) -> Difference:
    """Turn a difference so that above 0 is better."""
    if metric.higher_is_better:
        return found
    low, high = (None if bound is None else -bound for bound in (found.high, found.low))
    return Difference(-found.mean, low, high, found.seeds)


def _digits(low: float, high: float, metric: Metric) -> int:
    """Choose as many digits as show on which side of 0 both bounds are."""
    least = _least_digits(metric)
    for digits in range(least, least + 3):
        if all(bound == 0 or float(write_score(bound, metric, digits)) != 0 for bound in (low, high)):
            return digits
    return least + 3


def _least_digits(metric: Metric) -> int:
    return 1 if metric.percent else 6
