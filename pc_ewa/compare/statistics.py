"""Means over seeds, paired differences with their interval, and what these say in words."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """Mean of the paired differences over `seeds` seeds, and its interval; None with fewer than two seeds."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


class Unit(NamedTuple):
    """How metrics are written: times `scale`, with `digits` digits, and the `name` of a difference."""

    scale: float
    digits: int
    name: str
    percent: bool

    def plain(self, value: float) -> str:
        """A figure alone."""
        return f"{self.scale * value:.{self.digits}f}"


POINTS = Unit(100, 1, " points", True)
RAW = Unit(1, 6, "", False)


def unit_of(main_metric: str) -> Unit:
    """PretrainingLoss are written as they are, all else in percent."""
    return RAW if main_metric == "loss" else POINTS


def mean_and_std(values: Sequence[float], unit: Unit) -> str:
    """Mean ± sample standard deviation, without a unit; one value has no deviation."""
    deviation = f" ± {unit.plain(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{unit.plain(statistics.fmean(values))}{deviation}"


def difference(scores: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Paired difference over the seeds that both have: mean and 95 % t interval with n - 1 degrees of freedom.

    Args:
        scores: score by seed.
        baseline: the same of what it is compared with.

    Returns:
        The difference `scores - baseline`; None when they have no seed in common.
    """
    seeds = sorted(scores.keys() & baseline.keys())
    if not seeds:
        return None
    pairs = [scores[seed] - baseline[seed] for seed in seeds]
    mean = statistics.fmean(pairs)
    if len(pairs) == 1:
        return Difference(mean, None, None, 1)
    from scipy.stats import t  # half a second, for those who compare

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1)) * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Difference(mean, mean - half, mean + half, len(pairs))


def better_positive(found: Difference, higher_is_better: bool) -> Difference:
    """Turn a difference so that above 0 is better."""
    if higher_is_better:
        return found
    low, high = (None if bound is None else -bound for bound in (found.high, found.low))
    return Difference(-found.mean, low, high, found.seeds)


def verdict(found: Difference | None, unit: Unit, higher_is_better: bool) -> str:
    """Say what a difference shows: a gain, a loss, or nothing beyond noise; + is better."""
    if found is None:
        return "no seed in common"
    mean, low, high, seeds = better_positive(found, higher_is_better)
    if low is None or high is None:
        return f"one seed: {_signed(mean, unit, unit.digits)}{unit.name}, no interval"
    if high - low <= 1e-9 * max(1.0, abs(mean)):  # equal on all seeds but for rounding; a t interval cannot tell
        if abs(mean) <= 1e-9:
            return f"no difference: the same score on each of {seeds} seeds"
        return f"{_signed(mean, unit, unit.digits)}{unit.name} on each of {seeds} seeds: no interval"
    digits = _digits(low, high, unit)
    if low <= 0 <= high:
        bounds = " to ".join(_signed(bound, unit, digits) for bound in (low, high))
        return f"no difference beyond noise: {_signed(mean, unit, digits)}{unit.name} ({bounds})"
    word, near, far = ("gain", low, high) if low > 0 else ("loss", -high, -low)
    sizes = [f"{unit.scale * size:.{digits}f}" for size in (abs(mean), near, far)]
    return f"{word} of {sizes[0]}{unit.name} ({sizes[1]} to {sizes[2]})"


def interval(found: Difference | None, unit: Unit, higher_is_better: bool) -> str:
    """The difference in metrics alone; + is better."""
    if found is None:
        return ""
    mean, low, high, _ = better_positive(found, higher_is_better)
    if low is None or high is None:
        return _signed(mean, unit, unit.digits)
    digits = _digits(low, high, unit)
    return f"{_signed(mean, unit, digits)} ({_signed(low, unit, digits)} to {_signed(high, unit, digits)})"


def _digits(low: float, high: float, unit: Unit) -> int:
    """As many digits as show on which side of 0 both bounds are."""
    digits = unit.digits
    while digits < unit.digits + 3 and any(
        bound != 0 and round(unit.scale * bound, digits) == 0 for bound in (low, high)
    ):
        digits += 1
    return digits


def _signed(value: float, unit: Unit, digits: int) -> str:
    return f"{round(unit.scale * value, digits) + 0.0:+.{digits}f}"  # + 0.0: no -0.0
