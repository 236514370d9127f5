"""Augmentation and subsampling of a batch (B, N, 3) on its device. No function changes its input.

Random functions take a `torch.Generator` on the device of the points, and draw separate values for every sample.
"""

import math

import torch
from torch import Tensor

from pc_ewa import ops
from pc_ewa.data.clouds import UpAxis

# Number of farthest points from which Point-MAE draws the training subset.
_CANDIDATES = {1024: 1200, 2048: 2400, 4096: 4800, 8192: 8192}


def normalize_unit_sphere(points: Tensor) -> Tensor:
    """Centre each cloud at its mean and scale it to the unit sphere. A cloud of one repeated point becomes zeros."""
    # In float64: the rounding error of a float32 mean of a repeated point would be scaled up to radius 1.
    centred = points - points.mean(dim=1, keepdim=True, dtype=torch.float64)
    radius = centred.norm(dim=2, keepdim=True).amax(dim=1, keepdim=True)
    return (centred / torch.where(radius > 0, radius, 1.0)).to(points.dtype)


def scale_and_translate(
    points: Tensor,
    generator: torch.Generator,
    scale: tuple[float, float] = (2 / 3, 3 / 2),
    shift: float = 0.2,
    isotropic: bool = False,
) -> Tensor:
    """Scale and translate each cloud at random along each axis: the augmentation of Point-MAE.

    Args:
        points: clouds (B, N, 3).
        generator: random generator on the device of the points.
        scale: bounds of the uniform scale factor.
        shift: bound of the uniform translation in either direction, in the units of the points.
        isotropic: use one factor for all axes, as in part segmentation.
    """
    factor = _uniform(points, scale[0], scale[1], generator)
    # Three factors are drawn either way, so that the stream of the generator does not depend on `isotropic`.
    factor = factor[..., :1] if isotropic else factor
    return points * factor + _uniform(points, -shift, shift, generator)


def rotate(points: Tensor, generator: torch.Generator, axis: UpAxis) -> Tensor:
    """Rotate each cloud about `axis` by a uniform random angle."""
    turn = torch.rand(points.shape[0], 1, dtype=points.dtype, device=points.device, generator=generator)
    angle = 2 * math.pi * turn
    cos, sin = angle.cos(), angle.sin()
    # The two other axes in cyclic order, so that the rotation is right-handed about every axis.
    up = "xyz".index(axis)
    first, second = (up + 1) % 3, (up + 2) % 3
    coordinates = list(points.unbind(-1))
    u, v = coordinates[first], coordinates[second]
    coordinates[first], coordinates[second] = cos * u - sin * v, sin * u + cos * v
    return torch.stack(coordinates, dim=-1)


def rotate_freely(points: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate each cloud by a uniform random rotation of space, from a normal quaternion (Marsaglia 1972)."""
    drawn = torch.randn(points.shape[0], 4, dtype=points.dtype, device=points.device, generator=generator)
    w, x, y, z = (drawn / drawn.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    ]
    return points @ torch.stack([torch.stack(row, dim=1) for row in rows], dim=2)


def jitter(points: Tensor, generator: torch.Generator, std: float = 0.01, clip: float = 0.05) -> Tensor:
    """Add normal noise of standard deviation `std` to every coordinate, clipped to [-clip, clip]."""
    noise = torch.randn(points.shape, dtype=points.dtype, device=points.device, generator=generator)
    return points + (std * noise).clamp_(-clip, clip)


def random_subset(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` distinct points of each cloud, in random order; ValueError if there are fewer."""
    return ops.gather_points(points, random_index(points, count, generator))


def subsample_train(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sample `count` points of each cloud as in the training of Point-MAE.

    A larger number of farthest points is selected first, from which `count` points are drawn at random.

    Args:
        points: clouds (B, N, 3). They are returned unchanged if N == count.
        count: number of points, 1 <= count <= N.
        generator: random generator on the device of the points.

    Raises:
        ValueError: count out of range.
    """
    return ops.gather_points(points, train_index(points, count, generator)) if points.shape[1] != count else points


def subsample_eval(points: Tensor, count: int) -> Tensor:
    """Select `count` points of each cloud by farthest point sampling; ValueError if there are fewer."""
    return ops.gather_points(points, eval_index(points, count)) if points.shape[1] != count else points


def random_index(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the indices (B, count) that `random_subset` draws."""
    _check_count(points, count)
    # Sorting random keys draws a permutation of each row in one call; `torch.randperm` has no batch dimension. The
    # stable sort makes ties, which float32 keys have, give the same order on every device.
    keys = torch.rand(points.shape[:2], device=points.device, generator=generator)
    return keys.argsort(dim=1, stable=True)[:, :count]


def train_index(points: Tensor, count: int, generator: torch.Generator, shared_draw: bool = False) -> Tensor:
    """Return the indices (B, count) that `subsample_train` draws.

    With `shared_draw` one draw of ranks among the farthest points is used for the whole batch, as in the official
    code by accident. Without it, every sample has a separate draw.
    """
    _check_count(points, count)
    available = points.shape[1]
    if available == count:
        return _in_order(points)
    candidates = min(_CANDIDATES.get(count, int(1.2 * count)), available)
    # The farthest N of N points are all points, so the sampling, the costly step, is skipped.
    farthest = ops.farthest_point_sample(points, candidates) if candidates < available else _in_order(points)
    chosen = random_index(farthest[:1] if shared_draw else farthest, count, generator)
    return farthest.gather(1, chosen.expand(points.shape[0], -1))


def eval_index(points: Tensor, count: int) -> Tensor:
    """Return the indices (B, count) that `subsample_eval` keeps."""
    _check_count(points, count)
    return _in_order(points) if points.shape[1] == count else ops.farthest_point_sample(points, count)


def _uniform(points: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw uniform numbers (B, 1, 3) between low and high, for each sample and axis."""
    shape = (points.shape[0], 1, 3)
    drawn = torch.rand(shape, dtype=points.dtype, device=points.device, generator=generator)
    return low + (high - low) * drawn


def _in_order(points: Tensor) -> Tensor:
    return torch.arange(points.shape[1], device=points.device).expand(points.shape[0], -1)


def _check_count(points: Tensor, count: int) -> None:
    if not 1 <= count <= points.shape[1]:
        available = points.shape[1]
        raise ValueError(f"{count} points asked of clouds of {available}; choose 1 to {available}")
