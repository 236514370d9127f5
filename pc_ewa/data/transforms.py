"""Augmentation and subsampling of a batch (B, N, 3) on its device; nothing is changed in place.

What is random takes a `torch.Generator` on the device of the points, and is drawn anew for every sample.
"""

import math

import torch
from torch import Tensor

from pc_ewa import ops
from pc_ewa.data.clouds import UpAxis

# Point-MAE keeps this many farthest points before it draws the training subset.
_CANDIDATES = {1024: 1200, 2048: 2400, 4096: 4800, 8192: 8192}


def normalize_unit_sphere(points: Tensor) -> Tensor:
    """Subtract each cloud's mean, divide by its largest norm; a cloud of one repeated point becomes zeros."""
    # In double, as rounding in the mean of a repeated point would be blown up to radius 1.
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
    """Stretch and move each cloud, per axis: the augmentation of Point-MAE.

    Args:
        points: clouds (B, N, 3).
        generator: on the device of the points.
        scale: lowest and highest factor, drawn uniformly.
        shift: largest move either way, in the units of the points, drawn uniformly.
        isotropic: one factor for all axes, as for part segmentation.
    """
    factor = _uniform(points, scale[0], scale[1], generator)
    factor = factor[..., :1] if isotropic else factor
    return points * factor + _uniform(points, -shift, shift, generator)


def rotate(points: Tensor, generator: torch.Generator, axis: UpAxis) -> Tensor:
    """Turn each cloud about `axis` by an angle drawn uniformly from the full circle."""
    turn = torch.rand(points.shape[0], 1, dtype=points.dtype, device=points.device, generator=generator)
    angle = 2 * math.pi * turn
    cos, sin = angle.cos(), angle.sin()
    up = "xyz".index(axis)
    first, second = (up + 1) % 3, (up + 2) % 3
    coordinates = list(points.unbind(-1))
    u, v = coordinates[first], coordinates[second]
    coordinates[first], coordinates[second] = cos * u - sin * v, sin * u + cos * v
    return torch.stack(coordinates, dim=-1)


def jitter(points: Tensor, generator: torch.Generator, std: float = 0.01, clip: float = 0.05) -> Tensor:
    """Move every point by normal noise of deviation `std`, cut off at `clip` on each axis."""
    noise = torch.randn(points.shape, dtype=points.dtype, device=points.device, generator=generator)
    return points + (std * noise).clamp_(-clip, clip)


def random_subset(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` different points of each cloud, in random order; ValueError if there are fewer."""
    return ops.gather_points(points, random_index(points, count, generator))


def subsample_train(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Reduce each cloud to `count` points as Point-MAE trains: farthest points, some to spare, then a draw.

    Args:
        points: clouds (B, N, 3); with N == count they are returned as they are.
        count: 1 <= count <= N.
        generator: on the device of the points.

    Raises:
        ValueError: count out of range.
    """
    return ops.gather_points(points, train_index(points, count, generator)) if points.shape[1] != count else points


def subsample_eval(points: Tensor, count: int) -> Tensor:
    """Keep the `count` farthest points of each cloud, all if N == count; ValueError if there are fewer."""
    return ops.gather_points(points, eval_index(points, count)) if points.shape[1] != count else points


def random_index(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Positions (B, count) that `random_subset` draws."""
    _check_count(points, count)
    keys = torch.rand(points.shape[:2], device=points.device, generator=generator)
    return keys.argsort(dim=1, stable=True)[:, :count]


def train_index(points: Tensor, count: int, generator: torch.Generator, shared_draw: bool = False) -> Tensor:
    """Positions (B, count) that `subsample_train` draws.

    With `shared_draw` the farthest points of the same ranks are drawn for the whole batch, as the official code does by
    accident; here every sample has its own.
    """
    _check_count(points, count)
    available = points.shape[1]
    if available == count:
        return _in_order(points)
    candidates = min(_CANDIDATES.get(count, int(1.2 * count)), available)
    # The farthest N of N points are all of them.
    farthest = ops.farthest_point_sample(points, candidates) if candidates < available else _in_order(points)
    chosen = random_index(farthest[:1] if shared_draw else farthest, count, generator)
    return farthest.gather(1, chosen.expand(points.shape[0], -1))


def eval_index(points: Tensor, count: int) -> Tensor:
    """Positions (B, count) that `subsample_eval` keeps."""
    _check_count(points, count)
    return _in_order(points) if points.shape[1] == count else ops.farthest_point_sample(points, count)


def _uniform(points: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw (B, 1, 3) numbers between low and high, for each sample and axis."""
    shape = (points.shape[0], 1, 3)
    drawn = torch.rand(shape, dtype=points.dtype, device=points.device, generator=generator)
    return low + (high - low) * drawn


def _in_order(points: Tensor) -> Tensor:
    return torch.arange(points.shape[1], device=points.device).expand(points.shape[0], -1)


def _check_count(points: Tensor, count: int) -> None:
    if not 1 <= count <= points.shape[1]:
        available = points.shape[1]
        raise ValueError(f"{count} points asked of clouds of {available}; choose 1 to {available}")
