"""Power against published values and simulation; Holm's rule against its definition; both sources of noise."""

import math

import numpy as np
import pytest
import torch

from pc_ewa.compare.bootstrap import interval_over_both
from pc_ewa.compare.power import holm, pairs_needed, power, smallest_effect
from pc_ewa.eval.right import pack_right, unpack_right


@pytest.mark.parametrize(("ratio", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_the_pairs_that_an_effect_needs_are_those_of_cohens_tables(ratio: float, pairs: int) -> None:
    """80 % power, 5 % two-sided, paired: the figures that G*Power and textbooks give."""
    assert pairs_needed(ratio, 1.0) == pairs
    assert power(ratio, 1.0, pairs) >= 0.8 > power(ratio, 1.0, pairs - 1)


@pytest.mark.parametrize("pairs", [2, 3, 10, 100])
def test_the_smallest_effect_has_80_percent_power(pairs: int) -> None:
    effect = smallest_effect(0.7, pairs)
    assert power(effect, 0.7, pairs) == pytest.approx(0.8, abs=1e-4)
    assert power(-effect, 0.7, pairs) == pytest.approx(0.8, abs=1e-4)
    assert smallest_effect(7.0, pairs) == pytest.approx(10 * effect, rel=1e-4)


def test_without_an_effect_the_power_is_the_level() -> None:
    assert power(0.0, 1.0, 5) == pytest.approx(0.05)


def test_what_is_out_of_reach_and_what_has_no_noise() -> None:
    assert pairs_needed(1e-4, 1.0) is None
    assert pairs_needed(0.5, 0.0) == 2
    assert smallest_effect(0.0, 5) == 0.0


def test_holm_steps_down_and_never_goes_back() -> None:
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert holm({"a": 0.02}) == {"a": 0.02}
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}


def test_holm_counts_tests_that_are_still_to_come_or_impossible() -> None:
    assert holm({"a": 0.01}, planned=4) == {"a": 0.04}
    assert holm({"a": 0.01, "b": None, "c": math.nan}) == pytest.approx({"a": 0.03, "b": 1.0, "c": 1.0})


def test_the_interval_covers_seeds_and_samples() -> None:
    """Seeds that agree leave the noise of the samples; samples that agree leave that of the seeds."""
    random = np.random.RandomState(0)
    baseline = np.zeros((6, 400), bool)
    of_samples = np.tile(random.rand(400) < 0.5, (6, 1))
    low, high = interval_over_both(of_samples, baseline)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.15)
    of_seeds = np.tile((np.arange(6) % 2 == 0)[:, None], (1, 400))
    low, high = interval_over_both(of_seeds, baseline)
    assert (low, high) == (pytest.approx(1 / 6), pytest.approx(5 / 6))
    assert interval_over_both(of_samples, of_samples) == (0.0, 0.0)
    assert interval_over_both(of_seeds, baseline) == (low, high)  # the draws are seeded
    with pytest.raises(ValueError, match="must be"):
        interval_over_both(of_seeds, baseline[:5])


def test_what_is_right_is_kept_to_the_sample() -> None:
    right = torch.rand(2468, generator=torch.Generator().manual_seed(0)) < 0.8
    text = pack_right(right)
    assert len(text) < 420
    assert torch.equal(unpack_right(text), right)
    for damaged in ("", "9:oA==", "3:o", "x:oA=="):
        with pytest.raises(ValueError, match=r"."):
            unpack_right(damaged)
