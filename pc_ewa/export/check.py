"""Comparison of an exported model with PyTorch."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pc_ewa.export.trace import inputs

TOLERANCE = 1e-4  # of a difference of scores; relative to the largest score if that is above 1


def random_clouds(count: int, num_points: int, generator: torch.Generator) -> Tensor:
    """Draw clouds (count, num_points, 3) in the unit ball."""
    points = torch.randn(count, num_points, 3, generator=generator)
    return points / points.norm(dim=2).amax(dim=1)[:, None, None]


def with_ties(count: int, num_points: int, generator: torch.Generator) -> Tensor:
    """Draw clouds of points on a coarse grid, where most distances occur many times."""
    return torch.randint(-3, 4, (count, num_points, 3), generator=generator).float() / 4


def with_duplicates(count: int, num_points: int, generator: torch.Generator) -> Tensor:
    """Draw clouds in which every point occurs about eight times. The last cloud is a single point, repeated."""
    few = random_clouds(count, max(1, num_points // 8), generator)
    clouds = few.repeat(1, -(-num_points // few.shape[1]), 1)[:, :num_points]
    clouds[-1] = clouds[-1, :1].clone()
    return clouds


def far_away(count: int, num_points: int, generator: torch.Generator) -> Tensor:
    """Draw clouds around (1000, 1000, 1000)."""
    return random_clouds(count, num_points, generator) + 1000


KINDS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "random": random_clouds,
    "ties": with_ties,
    "duplicates": with_duplicates,
    "far": far_away,
}


def largest_difference(model: nn.Module, exported: nn.Module, clouds: Iterable[Tensor]) -> float:
    """Return the largest difference of scores over batches (B, N, 3), to be compared with TOLERANCE.

    It is infinite if scores are NaN or have another shape.
    """
    worst = 0.0
    with torch.no_grad():
        for points in clouds:
            expected = model(*inputs(model, points))
            found = exported(*inputs(model, points))
            if found.shape != expected.shape:
                return math.inf
            difference = (found - expected).abs() / max(1.0, float(expected.abs().max()))
            # NaN is handled before `max`, which would ignore it or not depending on the order of its arguments.
            worst = max(worst, math.inf if bool(difference.isnan().any()) else float(difference.max()))
    return worst
