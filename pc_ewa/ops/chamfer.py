"""Chamfer distance between clouds, as in Point-MAE, and the nearest distances that it is computed from."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pc_ewa.ops import registry
from pc_ewa.ops.checks import check_pair, integers, valid

Lengths = Tensor | Sequence[int] | None


def nearest_distances(
    x: Tensor, y: Tensor, *, x_lengths: Lengths = None, y_lengths: Lengths = None
) -> tuple[Tensor, Tensor]:
    """Compute the squared distance of each point to the nearest point of the other cloud, in both directions.

    With a compiled kernel it takes O(N + M) memory.

    Args:
        x: clouds (B, N, 3), N >= 1.
        y: clouds (B, M, 3), M >= 1.
        x_lengths: number of points of each cloud of x, (B,). The rest is padding. None means all N.
        y_lengths: the same for y.

    Returns:
        Distances (B, N) from x to y and (B, M) from y to x, differentiable in both clouds. They are 0 for padding.

    Raises:
        ValueError: a wrong shape or type, different batch sizes, an empty cloud, a length out of range, NaN or inf.

    Example:
        >>> x, y = torch.tensor([[[0.0, 0, 0], [5, 0, 0]]]), torch.tensor([[[0.0, 0, 1]]])
        >>> pc_ewa.ops.nearest_distances(x, y)
        (tensor([[ 1., 26.]]), tensor([[1.]]))
    """
    x, y = check_pair("x", x, "y", y)
    if 0 in (x.shape[1], y.shape[1]):
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)}: the distance of an empty cloud is undefined")
    x_count, y_count = integers("x_lengths", x_lengths, x), integers("y_lengths", y_lengths, y)
    x_to_y, x_index, y_to_x, y_index = registry.nearest(x, y, x_count, y_count)
    if registry.forward_mode():  # as in `knn`: recompute the distances in plain torch, which keeps tangents
        x_to_y, y_to_x = registry.distances_to(x, y, x_index), registry.distances_to(y, x, y_index)
        x_to_y = x_to_y if x_count is None else torch.where(valid(x, x_count), x_to_y, 0)
        y_to_x = y_to_x if y_count is None else torch.where(valid(y, y_count), y_to_x, 0)
    return x_to_y, y_to_x


def chamfer_distance(
    x: Tensor,
    y: Tensor,
    norm: Literal["l1", "l2"] = "l2",
    *,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
) -> Tensor:
    """Compute the Chamfer distance of Point-MAE, averaged over each cloud, then over the batch.

    With d(a, B) the squared distance from a to the nearest point of B: "l2" is mean d(x, Y) + mean d(y, X);
    "l1" is (mean sqrt d(x, Y) + mean sqrt d(y, X)) / 2.

    Args:
        x: clouds (B, N, 3).
        y: clouds (B, M, 3).
        norm: "l1" (CDL1) or "l2" (CDL2).
        x_lengths: number of points of each cloud of x, (B,). The rest is padding. None means all N.
        y_lengths: the same for y.

    Returns:
        A scalar, differentiable in both clouds.

    Raises:
        ValueError: as in `nearest_distances`, an empty batch, or an unknown norm.

    Example:
        >>> x, y = torch.tensor([[[0.0, 0, 0], [5, 0, 0]]]), torch.tensor([[[0.0, 0, 1]]])
        >>> pc_ewa.ops.chamfer_distance(x, y, norm="l2")
        tensor(14.5000)
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm={norm!r}; choose 'l1' or 'l2'")
    if x.shape[:1] == (0,):
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)}: the distance of an empty batch is undefined")
    x_to_y, y_to_x = nearest_distances(x, y, x_lengths=x_lengths, y_lengths=y_lengths)
    if norm == "l2":
        return _mean(x_to_y, x_lengths) + _mean(y_to_x, y_lengths)
    return (_mean(_safe_sqrt(x_to_y), x_lengths) + _mean(_safe_sqrt(y_to_x), y_lengths)) / 2


def _mean(distances: Tensor, lengths: Lengths) -> Tensor:
    """Return the mean over the batch of the mean over each cloud."""
    # Without lengths all clouds have the same number of points, and the mean of means is the mean of all.
    counts = integers("lengths", lengths, distances)
    return distances.mean() if counts is None else (distances.sum(1) / counts).mean()


def _safe_sqrt(values: Tensor) -> Tensor:
    # The gradient of sqrt is infinite at 0, where two points coincide, and 0 · inf is NaN. Take the gradient 0 there,
    # the average of the limits from both sides. The inner `where` keeps inf out of the backward of the outer one.
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1).sqrt(), 0)
