"""The power of paired seeds: Holm's correction, the smallest detectable effect, the number of seeds it needs."""

import math
from collections.abc import Mapping

LEVEL = 0.05  # of a two-sided test
POWER = 0.8
MOST = 100_000  # pairs; an effect that needs more is out of reach


def holm(p_values: Mapping[str, float | None], planned: int | None = None) -> dict[str, float]:
    """Correct the p values of a family of tests by Holm's step-down rule (1979).

    Args:
        p_values: p values by name. None, for a test that cannot be computed, counts as 1.
        planned: size of the family, including tests that are not computed yet. None: the size of `p_values`.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    known = {name: 1.0 if p is None or math.isnan(p) else p for name, p in p_values.items()}
    left, highest = max(planned or 0, len(known)), 0.0
    corrected = {}
    for rank, name in enumerate(sorted(known, key=lambda name: known[name])):
        # The running maximum keeps corrected values in the order of the plain ones.
        highest = corrected[name] = min(1.0, max(highest, (left - rank) * known[name]))
    return {name: corrected[name] for name in known}


def power(effect: float, std: float, pairs: int, level: float = LEVEL) -> float:
    """Return the power of a two-sided paired t test, by the noncentral t distribution.

    Args:
        effect: the true mean of the differences.
        std: the standard deviation of the differences, in the same unit.
        pairs: number of pairs, at least 2.
        level: level of the test.
    """
    from scipy.stats import nct, t  # half a second, for those who compare

    free, shift = pairs - 1, abs(effect) / std * math.sqrt(pairs)
    limit = t.ppf(1 - level / 2, free)
    # The far tail is below 1e-9 for all but the smallest shifts, and scipy's nct.cdf is inaccurate there.
    return float(nct.sf(limit, free, shift) + (nct.cdf(-limit, free, shift) if shift < 5 else 0.0))


def smallest_effect(std: float, pairs: int, level: float = LEVEL) -> float:
    """Return the smallest effect that `pairs` pairs detect with 80 % power, in the unit of `std`."""
    from scipy.optimize import brentq

    if std == 0:
        return 0.0
    high = std
    while power(high, std, pairs, level) < POWER:
        high *= 2
    return float(brentq(lambda effect: power(effect, std, pairs, level) - POWER, 0.0, high, xtol=1e-6 * std))


def pairs_needed(effect: float, std: float, level: float = LEVEL) -> int | None:
    """Return the number of pairs, at least 2, that detect an effect with 80 % power. None if above 100,000."""
    if std == 0:
        return 2
    low, high = 1, 2  # the power grows with the pairs: double, then halve the gap
    while power(effect, std, high, level) < POWER:
        low, high = high, 2 * high
        if high > 2 * MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(effect, std, middle, level) < POWER else (low, middle)
    return high if high <= MOST else None
