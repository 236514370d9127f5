"""An interval that covers seeds and test samples alike, by drawing both anew."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pc_ewa.compare.difference import CONFIDENCE

DRAWS = 2000
_AT_ONCE = 250  # draws: the largest array is (250, samples)


def interval_over_both(
    right: npt.NDArray[np.bool_], baseline: npt.NDArray[np.bool_], draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Compute a 95 % percentile interval of a difference of accuracies, over seeds and test samples.

    Every draw takes as many seeds and as many samples, both with replacement, and the mean of what they cross in. That
    is on the safe side where both vary (Owen, "The pigeonhole bootstrap", 2007), but for the seeds alone, which it
    takes for (S - 1)/S of their variance: read it beside the t interval, which is of the seeds and has no such lack.

    Args:
        right: (S, M), which of M samples the model of each of S seeds gets right.
        baseline: the same of what it is compared with.
        draws: how many.
        seed: of the draws: the same numbers on any machine.

    Returns:
        Both ends, as a share: 0.01 is a point.

    Raises:
        ValueError: other shapes.
    """
    if right.shape != baseline.shape or right.ndim != 2 or not right.size:
        raise ValueError(f"right is {right.shape}, baseline {baseline.shape}; both must be (seeds, samples)")
    change = right.astype(np.float64) - baseline
    means = np.concatenate([*_draw(change, draws, np.random.RandomState(seed))])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _draw(
    change: npt.NDArray[np.float64], draws: int, random: np.random.RandomState
) -> Iterator[npt.NDArray[np.float64]]:
    """Draw means, some at once; sums of whole numbers are exact, in whatever order a machine adds them."""
    seeds, samples = change.shape
    for begin in range(0, draws, _AT_ONCE):
        count = min(_AT_ONCE, draws - begin)
        of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), count).astype(np.float64)
        of_samples = random.multinomial(samples, np.full(samples, 1 / samples), count)
        yield (of_seeds @ change * of_samples).sum(1) / (seeds * samples)
