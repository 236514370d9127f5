"""The definition of correct: every op in plain torch, on any device, in at least single precision."""

from typing import Literal

import torch
from torch import Tensor


def _check_cloud(name: str, points: Tensor) -> Tensor:
    """Return (B, N, 3) points in float32 or float64; a wrong shape or type raises ValueError."""
    if points.dim() != 3 or points.shape[-1] != 3:
        raise ValueError(f"{name} has shape {tuple(points.shape)}; expected (batch, points, 3)")
    if not points.is_floating_point():
        raise ValueError(f"{name} is {points.dtype}; expected floating-point coordinates")
    return points if points.dtype in (torch.float32, torch.float64) else points.float()


def _check_same_batch(x_name: str, x: Tensor, y_name: str, y: Tensor) -> None:
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"{x_name} has a batch of {x.shape[0]}, {y_name} of {y.shape[0]}; they must be equal")


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances (B, M, N) of every pair, from differences: |a|² + |b|² - 2ab cancels off centre."""
    distances = (x[:, :, None, 0] - y[:, None, :, 0]).square_()
    for axis in (1, 2):
        distances += (x[:, :, None, axis] - y[:, None, :, axis]).square_()
    return distances


@torch.no_grad()
def farthest_point_sample(points: Tensor, n: int) -> Tensor:
    """Choose points one by one, each the farthest from all chosen before it, starting at index 0.

    Args:
        points: clouds (B, N, 3).
        n: how many points to choose, 1 <= n <= N.

    Returns:
        Indices (B, n), int64. Ties go to the lowest index.

    Raises:
        ValueError: a wrong shape, or n out of range.
    """
    points = _check_cloud("points", points)
    batch, count, _ = points.shape
    if not 1 <= n <= count:
        raise ValueError(f"n={n} points asked of clouds of {count}; choose 1 to {count}")
    x, y, z = points.unbind(-1)
    chosen = torch.zeros(batch, n, dtype=torch.int64, device=points.device)
    nearest = torch.full((batch, count), torch.inf, dtype=points.dtype, device=points.device)
    last = chosen[:, :1]
    for i in range(1, n):
        distance = (x - x.gather(1, last)).square_()
        distance += (y - y.gather(1, last)).square_()
        distance += (z - z.gather(1, last)).square_()
        nearest = torch.minimum(nearest, distance)
        last = nearest.argmax(1, keepdim=True)
        chosen[:, i : i + 1] = last
    return chosen


def knn(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k nearest points of every query.

    Args:
        queries: (B, M, 3).
        points: (B, N, 3).
        k: neighbours per query, 1 <= k <= N. A query that is one of the points counts as its own neighbour.

    Returns:
        Squared distances (B, M, k), differentiable, and indices (B, M, k), int64, nearest first; ties go to
        the lowest index.

    Raises:
        ValueError: a wrong shape, different batches, or k out of range.
    """
    queries, points = _check_cloud("queries", queries), _check_cloud("points", points)
    _check_same_batch("queries", queries, "points", points)
    if not 1 <= k <= points.shape[1]:
        raise ValueError(f"k={k} neighbours asked of clouds of {points.shape[1]}; choose 1 to {points.shape[1]}")
    with torch.no_grad():
        indices = _smallest(_squared_distances(queries, points), k)
    distances = (queries[:, :, None] - gather_points(points, indices)).square().sum(-1)
    return distances, indices


def _smallest(distances: Tensor, k: int) -> Tensor:
    """Indices of the k smallest values >= 0 along the last axis, ascending, ties to the lowest index."""
    if distances.dtype != torch.float32:
        return distances.sort(dim=-1, stable=True).indices[..., :k].contiguous()
    # topk leaves the order of ties open. The bits of non-negative floats sort as integers: with the index in
    # the low half no two keys tie, at a fifth of the cost of a stable sort.
    index = torch.arange(distances.shape[-1], device=distances.device)
    keys = (distances.view(torch.int32).long() << 32) | index
    return keys.topk(k, largest=False).values & 0xFFFFFFFF


def gather_points(points: Tensor, index: Tensor) -> Tensor:
    """Pick rows of each cloud: points (B, N, C) and index (B, ...) give (B, ..., C); differentiable in points."""
    if points.dim() != 3 or index.shape[:1] != points.shape[:1]:
        raise ValueError(
            f"points {tuple(points.shape)} and index {tuple(index.shape)}; expected (batch, points, channels) and "
            "(batch, ...)"
        )
    flat = index.reshape(index.shape[0], -1, 1).expand(-1, -1, points.shape[-1])
    return points.gather(1, flat).reshape(*index.shape, points.shape[-1])


def chamfer_distance(x: Tensor, y: Tensor, norm: Literal["l1", "l2"] = "l2") -> Tensor:
    """Chamfer distance as Point-MAE defines it, averaged over the batch and its points.

    With d(a, B) the squared distance from a to the nearest point of B: "l2" is mean d(x, Y) + mean d(y, X);
    "l1" is (mean sqrt d(x, Y) + mean sqrt d(y, X)) / 2.

    Args:
        x: clouds (B, N, 3).
        y: clouds (B, M, 3).
        norm: "l1" or "l2".

    Returns:
        A scalar, differentiable in both clouds.

    Raises:
        ValueError: a wrong shape, different batches, an empty cloud, or an unknown norm.
    """
    x, y = _check_cloud("x", x), _check_cloud("y", y)
    _check_same_batch("x", x, "y", y)
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm={norm!r}; choose 'l1' or 'l2'")
    if 0 in (x.shape[0], x.shape[1], y.shape[1]):
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)}: the distance of an empty cloud is undefined")
    with torch.no_grad():
        squared = _squared_distances(x, y)
        to_y, to_x = squared.argmin(2), squared.argmin(1)
    x_to_y = (x - gather_points(y, to_y)).square().sum(-1)
    y_to_x = (y - gather_points(x, to_x)).square().sum(-1)
    if norm == "l2":
        return x_to_y.mean() + y_to_x.mean()
    # sqrt has no gradient at 0, where two points coincide: take 0 there, as the limit from either side averages.
    return (_safe_sqrt(x_to_y).mean() + _safe_sqrt(y_to_x).mean()) / 2


def _safe_sqrt(values: Tensor) -> Tensor:
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1).sqrt(), 0)
