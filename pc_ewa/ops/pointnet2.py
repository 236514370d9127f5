"""The CUDA kernels of pointnet2_ops, if they are installed and chosen (PC_EWA_OPS=pointnet2).

They break ties in another order, and always skip points near the origin: they sample only for `skip_near_origin`.
Ops that they lack go to the next backend.
"""

import importlib.util
import math

import torch
from torch import Tensor


def unavailable(device: str) -> str | None:
    """Say why this backend cannot serve a type of device; None if it can."""
    if device != "cuda":
        return "pointnet2_ops runs on CUDA devices"
    if importlib.util.find_spec("pointnet2_ops") is None:
        return "pointnet2_ops is not installed (see docs/performance.md)"
    try:
        importlib.import_module("pointnet2_ops.pointnet2_utils")
    except (ImportError, OSError) as error:  # built for another torch, as a rule
        return f"pointnet2_ops does not load: {error}"
    return None


def farthest_point_sample(
    points: Tensor, n: int, start: Tensor | None, lengths: Tensor | None, skip_near_origin: bool
) -> Tensor:
    """As `reference.farthest_point_sample`, but for the order of ties."""
    from pointnet2_ops import pointnet2_utils

    if points.dtype != torch.float32 or start is not None or lengths is not None or not skip_near_origin:
        return NotImplemented
    return pointnet2_utils.furthest_point_sample(points, n).long()


def ball_query(queries: Tensor, points: Tensor, squared_radius: float, k: int, lengths: Tensor | None) -> Tensor:
    """As `reference.ball_query`."""
    from pointnet2_ops import pointnet2_utils

    if points.dtype != torch.float32 or lengths is not None:
        return NotImplemented
    # The kernel squares it again, in single precision, and comes to the same number.
    return pointnet2_utils.ball_query(math.sqrt(squared_radius), k, points, queries).long()


def knn(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `reference.knn`, for k = 3 alone."""
    from pointnet2_ops import pointnet2_utils

    if points.dtype != torch.float32 or lengths is not None or k != 3:
        return NotImplemented
    index = pointnet2_utils.three_nn(queries, points)[1].long()
    neighbours = points.gather(1, index.flatten(1)[..., None].expand(-1, -1, 3)).view(*index.shape, 3)
    # The distances that it returns are square roots; squared again they would not be those of the reference.
    x, y, z = (queries[:, :, None] - neighbours).unbind(-1)
    return x * x + y * y + z * z, index
