"""Neighbour search: k nearest, ball query, patches around farthest points, interpolation from neighbours."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pc_ewa.ops import registry
from pc_ewa.ops.checks import check_cloud, check_count, check_pair, integers
from pc_ewa.ops.sampling import farthest_point_sample, gather_points


def knn(
    queries: Tensor, points: Tensor, k: int, *, lengths: Tensor | Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Find the k nearest points of each query.

    Args:
        queries: (B, M, 3).
        points: (B, N, 3).
        k: neighbours per query, 1 <= k <= N and every length. A query that is one of the points is its own neighbour.
        lengths: number of points of each cloud, (B,). The rest is padding. None means all N.

    Returns:
        Squared distances (B, M, k), differentiable, and indices (B, M, k), int64, nearest first. Ties go to the lowest
        index.

    Raises:
        ValueError: a wrong shape or type, different batch sizes, k or a length out of range, NaN or inf.

    Example:
        >>> line = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]])
        >>> pc_ewa.ops.knn(line, line, k=2)[1]
        tensor([[[0, 1],
                 [1, 0],
                 [2, 1]]])
    """
    queries, points = check_pair("queries", queries, "points", points)
    check_count(f"k={k} neighbours", k, points.shape[1])
    distances, index = registry.knn(queries, points, k, integers("lengths", lengths, points))
    # Custom ops have no rule for forward-mode AD and drop tangents silently. Plain torch at the same indices has one.
    return registry.distances_to(queries, points, index) if registry.forward_mode() else distances, index


def three_nn(
    queries: Tensor, points: Tensor, *, lengths: Tensor | Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Find the 3 nearest points of each query. It is `knn` with k=3, under the name that pointnet2_ops uses.

    Unlike in pointnet2_ops, the distances are squared, as in the usual weights 1 / (d² + 1e-8).

    Example:
        >>> distances, index = pc_ewa.ops.three_nn(torch.rand(2, 100, 3), torch.rand(2, 20, 3))
        >>> distances.shape, index.shape
        (torch.Size([2, 100, 3]), torch.Size([2, 100, 3]))
    """
    return knn(queries, points, 3, lengths=lengths)


def three_interpolate(features: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Compute weighted sums of the features of neighbours.

    Features (B, N, C), an index (B, M, 3) and weights (B, M, 3) give (B, M, C). Another number of neighbours than 3 is
    allowed. The result is differentiable in features and weights.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> distances, index = pc_ewa.ops.three_nn(torch.rand(2, 100, 3), torch.rand(2, 20, 3))
        >>> weights = torch.softmax(-distances, dim=2)
        >>> pc_ewa.ops.three_interpolate(torch.rand(2, 20, 16), index, weights).shape
        torch.Size([2, 100, 16])
    """
    fits = features.dim() == index.dim() == 3 and index.shape == weights.shape and index.shape[0] == features.shape[0]
    if not fits or index.shape[2] == 0:
        raise ValueError(
            f"features {tuple(features.shape)}, index {tuple(index.shape)}, weights {tuple(weights.shape)}; expected "
            "(batch, points, channels) and twice (batch, queries, neighbours)"
        )
    dtype = torch.promote_types(features.dtype, weights.dtype)
    wide = torch.promote_types(dtype, torch.float32)  # half precision is summed in float32
    # One neighbour at a time: all at once would take three times the memory of the result.
    neighbours = zip(index.unbind(2), weights.to(wide).unbind(2), strict=True)
    first, *rest = (gather_points(features, i) * w[..., None] for i, w in neighbours)
    return sum(rest, first).to(dtype)


def ball_query(
    queries: Tensor, points: Tensor, radius: float, k: int, *, lengths: Tensor | Sequence[int] | None = None
) -> Tensor:
    """Find the first k points, in the order of their indices, within a radius of each query (PointNet++).

    Args:
        queries: (B, M, 3).
        points: (B, N, 3), N >= 1.
        radius: in the unit of the points. A point at exactly this distance is outside.
        k: number of indices per query.
        lengths: number of points of each cloud, (B,). The rest is padding. None means all N.

    Returns:
        Indices (B, M, k), int64, ascending. As in pointnet2_ops, the first is repeated if fewer than k points are
        inside, and all are 0 if none is.

    Raises:
        ValueError: a wrong shape or type, different batch sizes, a radius or k that is not positive, NaN or inf.

    Example:
        >>> line = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]])
        >>> pc_ewa.ops.ball_query(line[:, :1], line, radius=1.5, k=4)
        tensor([[[0, 1, 0, 0]]])
    """
    queries, points = check_pair("queries", queries, "points", points)
    if not 0 < radius < float("inf") or k < 1 or points.shape[1] == 0:
        raise ValueError(
            f"radius={radius} and k={k} in clouds of {points.shape[1]}; radius must be positive and finite, k and the "
            "clouds at least 1"
        )
    return registry.ball_query(queries.detach(), points.detach(), radius, k, integers("lengths", lengths, points))


def group(
    points: Tensor,
    num_groups: int,
    group_size: int,
    *,
    start: int | Sequence[int] | Tensor = 0,
    lengths: Tensor | Sequence[int] | None = None,
    skip_near_origin: bool = False,
) -> tuple[Tensor, Tensor]:
    """Split clouds into patches (`Group` of Point-BERT): the nearest neighbours of farthest points.

    Args:
        points: (B, N, 3).
        num_groups: G, patches per cloud, at most N and every length.
        group_size: K, points per patch, at most N and every length.
        start: as in `farthest_point_sample`.
        lengths: as in `farthest_point_sample`.
        skip_near_origin: as in `farthest_point_sample`.

    Returns:
        Groups (B, G, K, 3), relative to their centers, nearest first, and centers (B, G, 3), in the dtype of the
        points. Half precision is subtracted in float32.

    Raises:
        ValueError: as in `farthest_point_sample` and `knn`.

    Example:
        >>> groups, centers = pc_ewa.ops.group(torch.rand(2, 1024, 3), num_groups=64, group_size=32)
        >>> groups.shape, centers.shape
        (torch.Size([2, 64, 32, 3]), torch.Size([2, 64, 3]))
    """
    clouds = check_cloud("points", points)
    chosen = farthest_point_sample(clouds, num_groups, start=start, lengths=lengths, skip_near_origin=skip_near_origin)
    centers = gather_points(clouds, chosen)
    # Detached: only the indices are used, and the gradient flows through gather_points.
    _, index = knn(centers.detach(), clouds.detach(), group_size, lengths=lengths)
    groups = gather_points(clouds, index) - centers[:, :, None]
    return groups.to(points.dtype), centers.to(points.dtype)
