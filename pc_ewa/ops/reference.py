"""The reference implementation: every op in plain torch, on any device. Other backends may only be faster.

These functions do not check their arguments: float32 or float64 clouds of matching shapes, finite, lengths in range.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pc_ewa.ops.checks import valid

# The official CUDA kernel treats points within this squared distance of the origin as padding.
NEAR_ORIGIN = 1e-3

_CHUNK = 2**24  # distances in memory at a time


def farthest_point_sample(
    points: Tensor, n: int, start: Tensor | None, lengths: Tensor | None, skip_near_origin: bool
) -> Tensor:
    """Return indices (B, n), int64: first `start`, or index 0, then each time the point farthest from all before."""
    batch, count, _ = points.shape
    # Coordinates apart: each step then reads three contiguous rows, and the sum has the order (x² + y²) + z², which is
    # the definition for all backends.
    x, y, z = points.unbind(-1)
    chosen = torch.zeros(batch, n, dtype=torch.int64, device=points.device)
    if start is not None:
        chosen[:, 0] = start
    # Squared distance to the nearest chosen point. It is -1 for points that must not be chosen: below any distance, and
    # `minimum` leaves it so.
    nearest = torch.full((batch, count), torch.inf, dtype=points.dtype, device=points.device)
    if lengths is not None:
        nearest.masked_fill_(~valid(points, lengths), -1)
    if skip_near_origin:
        nearest.masked_fill_(x * x + y * y + z * z <= NEAR_ORIGIN, -1)
    last = chosen[:, :1]
    for i in range(1, n):
        distance = (x - x.gather(1, last)).square_()
        distance += (y - y.gather(1, last)).square_()
        distance += (z - z.gather(1, last)).square_()
        nearest = torch.minimum(nearest, distance)
        last = nearest.argmax(1, keepdim=True)
        chosen[:, i : i + 1] = last
    return chosen


def knn(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return squared distances and indices (B, M, k) of the k nearest points, nearest first.

    Ties go to the lowest index.
    """
    distances = queries.new_empty(*queries.shape[:2], k)
    indices = torch.empty(distances.shape, dtype=torch.int64, device=queries.device)
    for rows, squared in _rows_of_distances(queries, points, lengths):
        indices[:, rows] = _smallest(squared, k)
        distances[:, rows] = squared.gather(2, indices[:, rows])
    return distances, indices


def ball_query(queries: Tensor, points: Tensor, squared_radius: float, k: int, lengths: Tensor | None) -> Tensor:
    """Return indices (B, M, k) of the first k points inside the ball.

    The first is repeated if there are fewer, and all are 0 if there is none.
    """
    count = points.shape[1]
    found = torch.empty(*queries.shape[:2], k, dtype=torch.int64, device=queries.device)
    index = torch.arange(count, device=queries.device)
    for rows, squared in _rows_of_distances(queries, points, lengths):
        # Points outside get the index `count`, larger than any, so that the k smallest indices are the first k inside.
        inside = torch.where(squared < squared_radius, index, count)
        first = inside.topk(min(k, count), largest=False, sorted=True).values
        first = torch.nn.functional.pad(first, (0, k - first.shape[2]), value=count)
        # `% count` leaves a first index as it is, and makes 0 of `count`, which stands where no point is inside.
        found[:, rows] = torch.where(first < count, first, first[..., :1] % count)
    return found


def nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the squared distance and index of the nearest point, for x (B, N) in y and for y (B, M) in x.

    Ties go to the lowest index. Distance and index are 0 for padding.
    """
    return *_nearest(x, y, x_lengths, y_lengths), *_nearest(y, x, y_lengths, x_lengths)


def nearest_backward(
    grad_x: Tensor, grad_y: Tensor, x: Tensor, y: Tensor, x_index: Tensor, y_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the squared distances of `nearest` with respect to x and y."""
    # d|x - y|²/dx = 2 (x - y), and the opposite for y. A point of y can be the nearest of several x, so scatter_add.
    to_y = 2 * grad_x[..., None] * (x - _take(y, x_index))
    to_x = 2 * grad_y[..., None] * (y - _take(x, y_index))
    return (
        to_y.scatter_add(1, y_index[..., None].expand_as(to_x), -to_x),
        to_x.scatter_add(1, x_index[..., None].expand_as(to_y), -to_y),
    )


def _nearest(x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    distances, indices = (result.squeeze(-1) for result in knn(x, y, 1, y_lengths))
    if x_lengths is not None:
        padding = ~valid(x, x_lengths)
        distances, indices = distances.masked_fill(padding, 0), indices.masked_fill(padding, 0)
    return distances, indices


def _take(points: Tensor, index: Tensor) -> Tensor:
    return points.gather(1, index[..., None].expand(-1, -1, 3))


def _rows_of_distances(queries: Tensor, points: Tensor, lengths: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the queries with their squared distances (B, rows, N), which are inf beyond the length."""
    # From differences. The usual |a|² + |b|² - 2ab, one matrix product, cancels for clouds far from the origin: at
    # 1,000 units two neighbouring float32 values of |a|² differ by 0.06.
    step = max(1, _CHUNK // max(1, points.shape[0] * points.shape[1]))
    for begin in range(0, queries.shape[1], step):
        rows = slice(begin, begin + step)
        squared = (queries[:, rows, None, 0] - points[:, None, :, 0]).square_()
        for axis in (1, 2):
            squared += (queries[:, rows, None, axis] - points[:, None, :, axis]).square_()
        if lengths is not None:
            squared.masked_fill_(~valid(points, lengths)[:, None], torch.inf)
        yield rows, squared


def _smallest(distances: Tensor, k: int) -> Tensor:
    """Return the indices of the k smallest values >= 0 along the last axis, ascending, ties to the lowest index."""
    if k == 1:
        return distances.argmin(-1, keepdim=True)
    if distances.dtype != torch.float32:
        return distances.sort(dim=-1, stable=True).indices[..., :k]
    # topk does not define the order of ties. The bits of non-negative floats sort like integers. With the index in the
    # low half no two keys are equal, and topk on them takes a fifth of the time of a stable sort.
    index = torch.arange(distances.shape[-1], device=distances.device)
    keys = (distances.view(torch.int32).long() << 32) | index
    return keys.topk(k, largest=False).values & 0xFFFFFFFF
