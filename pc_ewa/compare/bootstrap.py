"""A bootstrap interval over seeds and test samples."""

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

    Every draw resamples S seeds and M samples with replacement, and takes the mean over all their pairs. The interval
    is conservative where both vary (Owen, "The pigeonhole bootstrap", 2007). The variance of the
    seeds alone enters with a factor (S - 1)/S, which is too small. The t interval over seeds does not have that bias.

    Args:
        right: (S, M), True where the model of a seed classifies a sample correctly.
        baseline: the same for the baseline.
        draws: number of bootstrap draws.
        seed: seed of the draws. The result is the same on any machine.

    Returns:
        Both ends as shares: 0.01 is one point.

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
    """Yield means of draws, `_AT_ONCE` at a time."""
    seeds, samples = change.shape
    for begin in range(0, draws, _AT_ONCE):
        count = min(_AT_ONCE, draws - begin)
        # Drawing S seeds with replacement is the same as drawing how often each occurs, by a multinomial. The mean over
        # pairs is then a product of matrices. All terms are whole numbers, so that their float64 sums are exact in any
        # order.
        of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), count).astype(np.float64)
        of_samples = random.multinomial(samples, np.full(samples, 1 / samples), count)
        yield (of_seeds @ change * of_samples).sum(1) / (seeds * samples)
