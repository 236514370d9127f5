"""The CUDA kernels of pointnet2_ops, if they are installed and selected (PC_EWA_OPS=pointnet2).

Their sampling breaks ties in another order, and always skips points near the origin, so it is used only with
`skip_near_origin`. Ops that they do not have run on the next backend.
"""

import importlib.util
import math

import torch
from torch import Tensor


def unavailable(device: str) -> str | None:
    """Return the reason why this backend cannot serve a type of device. None means that it can."""
    if device != "cuda":
        return "pointnet2_ops runs on CUDA devices"
    if importlib.util.find_spec("pointnet2_ops") is None:
        return "pointnet2_ops is not installed (see docs/performance.md)"
    try:
        importlib.import_module("pointnet2_ops.pointnet2_utils")
    except (ImportError, OSError) as error:  # usually built for another version of torch
        return f"pointnet2_ops does not load: {error}"
    return None


def farthest_point_sample(
    points: Tensor, n: int, start: Tensor | None, lengths: Tensor | None, skip_near_origin: bool
) -> Tensor:
    """Compute `reference.farthest_point_sample`, except for the order of ties."""
    from pointnet2_ops import pointnet2_utils

    if points.dtype != torch.float32 or start is not None or lengths is not None or not skip_near_origin:
        return NotImplemented
    return pointnet2_utils.furthest_point_sample(points, n).long()


def ball_query(queries: Tensor, points: Tensor, squared_radius: float, k: int, lengths: Tensor | None) -> Tensor:
    """Compute `reference.ball_query`."""
    from pointnet2_ops import pointnet2_utils

    if points.dtype != torch.float32 or lengths is not None:
        return NotImplemented
    # The kernel squares the radius again in float32, which gives the same float32 number.
    return pointnet2_utils.ball_query(math.sqrt(squared_radius), k, points, queries).long()


def knn(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute `reference.knn` for k = 3."""
    from pointnet2_ops import pointnet2_utils

    if points.dtype != torch.float32 or lengths is not None or k != 3:
        return NotImplemented
    index = pointnet2_utils.three_nn(queries, points)[1].long()
    neighbours = points.gather(1, index.flatten(1)[..., None].expand(-1, -1, 3)).view(*index.shape, 3)
    # The kernel returns square roots, and their squares would differ from the reference by rounding.
    x, y, z = (queries[:, :, None] - neighbours).unbind(-1)
    return x * x + y * y + z * z, index
