"""Farthest point sampling, and gathering of points by index."""

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from pc_ewa.ops import registry
from pc_ewa.ops.checks import check_cloud, check_count, integers


def farthest_point_sample(
    points: Tensor,
    n: int,
    *,
    start: int | Sequence[int] | Tensor = 0,
    lengths: Tensor | Sequence[int] | None = None,
    skip_near_origin: bool = False,
) -> Tensor:
    """Sample points one by one, each the farthest from all before it.

    Args:
        points: clouds (B, N, 3).
        n: number of points to sample, 1 <= n <= N and every length.
        start: index of the first point, one for all clouds or one for each.
        lengths: number of points of each cloud, (B,). The rest is padding. None means all N.
        skip_near_origin: skip points with x² + y² + z² <= 1e-3 after the first, as pointnet2_ops does. The official
            ScanObjectNN results need it. Index 0 is repeated when no point is left.

    Returns:
        Indices (B, n), int64. Ties go to the lowest index.

    Raises:
        ValueError: a wrong shape or type, n, start or a length out of range, NaN or inf.

    Example:
        >>> line = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [9, 0, 0]]])
        >>> pc_ewa.ops.farthest_point_sample(line, 3)
        tensor([[0, 3, 2]])
    """
    points = check_cloud("points", points)
    check_count(f"n={n} points", n, points.shape[1])
    first = _first(start, points)
    lengths = integers("lengths", lengths, points)
    return registry.farthest_point_sample(points.detach(), n, first, lengths, skip_near_origin)


def _first(start: int | Sequence[int] | Tensor, points: Tensor) -> Tensor | None:
    """Return the first index of each cloud. None stands for index 0 in all clouds."""
    if isinstance(start, bool):
        raise ValueError(f"start={start}; expected an index")
    try:
        single = operator.index(start)  # type: ignore[arg-type]
    except TypeError:
        return integers("start", start, points)  # type: ignore[arg-type]
    return None if single == 0 else torch.full(points.shape[:1], single, dtype=torch.int64, device=points.device)


def gather_points(points: Tensor, index: Tensor) -> Tensor:
    """Gather points by index: points (B, N, C) and an index (B, ...) give (B, ..., C).

    The result is differentiable in the points.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> index = pc_ewa.ops.farthest_point_sample(points := torch.rand(2, 1024, 3), 64)
        >>> pc_ewa.ops.gather_points(points, index).shape
        torch.Size([2, 64, 3])
    """
    if points.dim() != 3 or index.shape[:1] != points.shape[:1]:
        raise ValueError(
            f"points {tuple(points.shape)} and index {tuple(index.shape)}; expected (batch, points, channels) and "
            "(batch, ...)"
        )
    # The number of indices is computed, not -1: reshape cannot infer a size of an empty index.
    flat = index.reshape(index.shape[0], math.prod(index.shape[1:]), 1).expand(-1, -1, points.shape[-1])
    return points.gather(1, flat).reshape(*index.shape, points.shape[-1])
