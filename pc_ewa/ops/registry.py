"""The ops registered with torch (`torch.ops.pc_ewa.*`): one schema for all backends, fake tensors, gradients.

So torch.compile does not break its graph at an op, and the gradient does not depend on the backend of the forward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pc_ewa.ops import dispatch, reference
from pc_ewa.ops.checks import check_values, valid


@torch.library.custom_op("pc_ewa::farthest_point_sample", mutates_args=())
def farthest_point_sample(
    points: Tensor, n: int, start: Tensor | None, lengths: Tensor | None, skip_near_origin: bool
) -> Tensor:
    """Return indices (B, n). See `pc_ewa.ops.farthest_point_sample`."""
    points = check_values("points", points, lengths, needed=n)
    if start is not None and start.numel():
        ends = points.shape[1] if lengths is None else lengths
        outside = (start < 0) | (start >= ends)
        if bool(outside.any()):
            raise ValueError(f"start={int(start[outside][0])} is outside of its cloud; choose 0 to its length - 1")
    if points.shape[0] == 0:
        return torch.empty(0, n, dtype=torch.int64, device=points.device)
    return dispatch.call("farthest_point_sample", points.device, points, n, start, lengths, skip_near_origin)


# A fake implementation returns tensors of the right shape and dtype without computing. torch.compile and torch.export
# trace with it. It must agree with every backend.
@farthest_point_sample.register_fake
def _(points: Tensor, n: int, start: Tensor | None, lengths: Tensor | None, skip_near_origin: bool) -> Tensor:
    return points.new_empty(points.shape[0], n, dtype=torch.int64)


@torch.library.custom_op("pc_ewa::knn", mutates_args=())
def knn(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return squared distances and indices (B, M, k). See `pc_ewa.ops.knn`."""
    queries = check_values("queries", queries)
    points = check_values("points", points, lengths, needed=k)
    if 0 in queries.shape:
        return queries.new_empty(*queries.shape[:2], k), queries.new_empty(*queries.shape[:2], k, dtype=torch.int64)
    return dispatch.call("knn", points.device, queries, points, k, lengths)


@knn.register_fake
def _(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = (*queries.shape[:2], k)
    return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("pc_ewa::ball_query", mutates_args=())
def ball_query(queries: Tensor, points: Tensor, radius: float, k: int, lengths: Tensor | None) -> Tensor:
    """Return indices (B, M, k). See `pc_ewa.ops.ball_query`."""
    queries = check_values("queries", queries)
    points = check_values("points", points, lengths)
    if 0 in queries.shape:
        return queries.new_empty(*queries.shape[:2], k, dtype=torch.int64)
    # Squared in the precision of the points, as in the CUDA kernel. In double precision other points would be inside.
    squared = torch.tensor(radius, dtype=points.dtype).square().item()
    return dispatch.call("ball_query", points.device, queries, points, squared, k, lengths)


@ball_query.register_fake
def _(queries: Tensor, points: Tensor, radius: float, k: int, lengths: Tensor | None) -> Tensor:
    return queries.new_empty(*queries.shape[:2], k, dtype=torch.int64)


@torch.library.custom_op("pc_ewa::nearest", mutates_args=())
def nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the squared distance and index of the nearest point, both ways. See `pc_ewa.ops.nearest_distances`."""
    x, y = check_values("x", x, x_lengths), check_values("y", y, y_lengths)
    if x.shape[0] == 0:
        nothing = (x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2], dtype=torch.int64))
        return *nothing, y.new_empty(y.shape[:2]), y.new_empty(y.shape[:2], dtype=torch.int64)
    return dispatch.call("nearest", x.device, x, y, x_lengths, y_lengths)


@nearest.register_fake
def _(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    to_y, to_x = x.new_empty(x.shape[:2]), y.new_empty(y.shape[:2])
    return to_y, to_y.new_empty(to_y.shape, dtype=torch.int64), to_x, to_x.new_empty(to_x.shape, dtype=torch.int64)


@torch.library.custom_op("pc_ewa::nearest_backward", mutates_args=())
def nearest_backward(
    grad_x: Tensor, grad_y: Tensor, x: Tensor, y: Tensor, x_index: Tensor, y_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the squared distances of `nearest` with respect to x and y."""
    if x.shape[0] == 0:
        return torch.zeros_like(x), torch.zeros_like(y)
    return dispatch.call("nearest_backward", x.device, grad_x, grad_y, x, y, x_index, y_index)


@nearest_backward.register_fake
def _(grad_x: Tensor, grad_y: Tensor, x: Tensor, y: Tensor, x_index: Tensor, y_index: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _save_knn(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, points, _, _ = inputs
    ctx.save_for_backward(queries, points, output[1])


def _knn_backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    queries, points, index = ctx.saved_tensors
    flat = index.flatten(1)[..., None].expand(-1, -1, 3)
    difference = queries[:, :, None] - points.gather(1, flat).view(*index.shape, 3)
    pull = 2 * grad[..., None] * difference
    return pull.sum(2), torch.zeros_like(points).scatter_add(1, flat, -pull.flatten(1, 2)), None, None


def _save_nearest(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, x_lengths, y_lengths = inputs
    ctx.save_for_backward(x, y, output[1], output[3], x_lengths, y_lengths)


def _nearest_backward(ctx: Any, grad_x: Tensor, _: None, grad_y: Tensor, __: None) -> tuple[Tensor | None, ...]:
    x, y, x_index, y_index, x_lengths, y_lengths = ctx.saved_tensors
    # Padding gets no gradient. It may be NaN, and 0 · NaN is NaN, so it is replaced instead of multiplied by 0.
    if x_lengths is not None:
        inside = valid(x, x_lengths)
        x, grad_x = torch.where(inside[..., None], x, 0), grad_x * inside
    if y_lengths is not None:
        inside = valid(y, y_lengths)
        y, grad_y = torch.where(inside[..., None], y, 0), grad_y * inside
    # A second derivative (create_graph=True) needs plain torch, because the kernels have no derivative themselves.
    backward = reference.nearest_backward if torch.is_grad_enabled() else nearest_backward
    return *backward(grad_x, grad_y, x, y, x_index, y_index), None, None


def forward_mode() -> bool:
    """Return True inside torch.func.jvp, where custom ops would drop the tangents silently."""
    # There is no public function for this; the counter is that of torch 2.6 to 2.13.
    return forward_ad._current_level >= 0


def distances_to(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """Compute squared distances from x (B, N, 3) to y (B, M, 3) at an index (B, N) or (B, N, k), in plain torch."""
    flat = index.flatten(1)[..., None].expand(-1, -1, 3)
    neighbours = y.gather(1, flat).view(*index.shape, 3)
    return ((x if index.dim() == 2 else x[:, :, None]) - neighbours).square().sum(-1)


knn.register_autograd(_knn_backward, setup_context=_save_knn)
nearest.register_autograd(_nearest_backward, setup_context=_save_nearest)
