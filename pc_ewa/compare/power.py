"""What paired seeds can show: Holm's correction, the smallest effect that they see, the seeds that one needs."""

import math
from collections.abc import Mapping

LEVEL = 0.05  # of a two-sided test
POWER = 0.8
MOST = 100_000  # pairs; an effect that needs more is out of reach


def holm(p_values: Mapping[str, float | None], planned: int | None = None) -> dict[str, float]:
    """Correct the p values of a family of tests by Holm's step-down rule (1979): never below the plain ones.

    Args:
        p_values: by name; None, of a test that cannot be made, counts as 1.
        planned: the size of the family, where some of its tests are still to come; None is all that are here.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    known = {name: 1.0 if p is None or math.isnan(p) else p for name, p in p_values.items()}
    left, highest = max(planned or 0, len(known)), 0.0
    corrected = {}
    for rank, name in enumerate(sorted(known, key=lambda name: known[name])):
        highest = corrected[name] = min(1.0, max(highest, (left - rank) * known[name]))
    return {name: corrected[name] for name in known}


def power(effect: float, std: float, pairs: int, level: float = LEVEL) -> float:
    """Return the probability that a two-sided paired t test of `pairs` pairs sees an effect, by the noncentral t.

    Args:
        effect: the true mean of the differences.
        std: their standard deviation, in the same unit.
        pairs: how many; 2 at least.
        level: the level of the test.
    """
    from scipy.stats import nct, t  # half a second, for those who compare

    free, shift = pairs - 1, abs(effect) / std * math.sqrt(pairs)
    limit = t.ppf(1 - level / 2, free)
    # The far tail is below 1e-9 for all but the smallest shifts, and nct loses digits there.
    return float(nct.sf(limit, free, shift) + (nct.cdf(-limit, free, shift) if shift < 5 else 0.0))


def smallest_effect(std: float, pairs: int, level: float = LEVEL) -> float:
    """Return the smallest effect that so many pairs see with 80 % power; the unit is that of `std`."""
    from scipy.optimize import brentq

    if std == 0:
        return 0.0
    high = std
    while power(high, std, pairs, level) < POWER:
        high *= 2
    return float(brentq(lambda effect: power(effect, std, pairs, level) - POWER, 0.0, high, xtol=1e-6 * std))


def pairs_needed(effect: float, std: float, level: float = LEVEL) -> int | None:
    """Return how many pairs see an effect with 80 % power, 2 at least; None if that is more than 100,000."""
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
