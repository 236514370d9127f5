"""The ops as fused Triton kernels for CUDA devices, in float32, without a matrix of N x M distances in memory.

They have the functions, arguments and bit-for-bit results of `reference`. float64 and k > 512 are left to it.
"""

import contextlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from pc_ewa.ops.checks import valid
from pc_ewa.ops.reference import NEAR_ORIGIN

# Registers hold three coordinates and a distance for each point. For 8192 points that is half of the registers of a
# multiprocessor.
_LARGEST_IN_REGISTERS = 8192
# With twice as many keys to sort, one warp runs out of registers, and compilation takes very long.
_LARGEST_K = 512


def unavailable(device: str) -> str | None:
    """Return the reason why this backend cannot serve a type of device. None means that it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device != "cuda" and not (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return "Triton runs on CUDA devices"
    import triton  # takes a third of a second, so only after the checks above

    if not hasattr(triton, "constexpr_function"):
        return f"Triton {triton.__version__} is too old: the kernels need 3.5, which comes with torch 2.9"
    return None


def farthest_point_sample(
    points: Tensor, n: int, start: Tensor | None, lengths: Tensor | None, skip_near_origin: bool
) -> Tensor:
    """Compute `reference.farthest_point_sample`."""
    if points.dtype != torch.float32:
        return NotImplemented
    from pc_ewa.ops import triton_kernels

    batch, count, _ = points.shape
    chosen = torch.empty(batch, n, dtype=torch.int64, device=points.device)
    if count <= _LARGEST_IN_REGISTERS:
        # Each round waits for the one before. With 8 points per thread there is enough work to hide the latencies. At
        # most 16 warps leave 128 registers per thread, of which 64 hold the points of the largest cloud.
        block = max(32, _power_of_two(count))
        _launch(
            triton_kernels.farthest_point_sample,
            batch,
            (points, start, lengths, chosen, count, n, NEAR_ORIGIN if skip_near_origin else -1.0),
            num_warps=min(max(block // 256, 1), 16),
            BLOCK=block,
        )
        return chosen
    nearest = points.new_full((batch, count), torch.inf)
    if lengths is not None:
        nearest.masked_fill_(~valid(points, lengths), -1)
    if skip_near_origin:
        x, y, z = points.unbind(-1)
        nearest.masked_fill_(x * x + y * y + z * z <= NEAR_ORIGIN, -1)
    # Each round reads 16 bytes per point and writes 4. It is limited by memory, so it uses as many warps as a block can
    # have, each with many loads in flight.
    _launch(
        triton_kernels.farthest_point_sample_streaming,
        batch,
        (points.transpose(1, 2).contiguous(), nearest, start, chosen, count, n),
        num_warps=32,
        TILE=8192,
    )
    return chosen


def knn(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute `reference.knn`."""
    if queries.dtype != torch.float32 or k > _LARGEST_K:
        return NotImplemented
    from pc_ewa.ops import triton_kernels

    batch, rows, _ = queries.shape
    count = points.shape[1]
    distances = queries.new_empty(batch, rows, k)
    indices = torch.empty(batch, rows, k, dtype=torch.int64, device=queries.device)
    # One warp per query: it sorts by shuffles, and never waits for another warp. With tiles of 512 points a thread
    # sorts 16 keys of two registers each. Merging the best of a tile with those so far is little work beside that.
    best = max(2, _power_of_two(k))
    _launch(
        triton_kernels.knn,
        batch * rows,
        (queries, points, lengths, distances, indices, rows, count, k),
        num_warps=1,
        K=best,
        TILE=max(32, best, min(512, _power_of_two(count))),
    )
    return distances, indices


def ball_query(queries: Tensor, points: Tensor, squared_radius: float, k: int, lengths: Tensor | None) -> Tensor:
    """Compute `reference.ball_query`."""
    if queries.dtype != torch.float32:
        return NotImplemented
    from pc_ewa.ops import triton_kernels

    batch, rows, _ = queries.shape
    indices = torch.empty(batch, rows, k, dtype=torch.int64, device=queries.device)
    # One warp per query, so that each query stops as soon as it has found enough points.
    _launch(
        triton_kernels.ball_query,
        batch * rows,
        (queries, points, lengths, indices, rows, points.shape[1], squared_radius, k),
        num_warps=1,
        TILE=128,
    )
    return indices


def nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `reference.nearest`."""
    if x.dtype != torch.float32:
        return NotImplemented
    return *_nearest(x, y, x_lengths, y_lengths), *_nearest(y, x, y_lengths, x_lengths)


def nearest_backward(
    grad_x: Tensor, grad_y: Tensor, x: Tensor, y: Tensor, x_index: Tensor, y_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `reference.nearest_backward`, up to rounding."""
    # Atomic additions to one point run in any order, and float sums depend on the order. So deterministic algorithms
    # use the reference.
    if x.dtype != torch.float32 or torch.are_deterministic_algorithms_enabled():
        return NotImplemented
    to_x, to_y = torch.empty_like(x), torch.empty_like(y)
    # The first two launches store the gradients of x and y, so they need no zeroed memory. The second and the third add
    # to the gradient of the other cloud, which must be stored by then: kernels of one stream run in order.
    _pull(x, y, x_index, grad_x, to_x, to_y, keep=True, give=False)
    _pull(y, x, y_index, grad_y, to_y, to_x, keep=True, give=True)
    _pull(x, y, x_index, grad_x, to_x, to_y, keep=False, give=True)
    return to_x, to_y


def _nearest(x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    from pc_ewa.ops import triton_kernels

    distances = x.new_empty(x.shape[:2])
    indices = torch.empty(x.shape[:2], dtype=torch.int64, device=x.device)
    # One warp per 16 points of x: a thread compares all 16 with its point of y, three loads for 16 distances.
    rows = 16
    _launch(
        triton_kernels.nearest,
        x.shape[0] * -(-x.shape[1] // rows),
        (x, y, x_lengths, y_lengths, distances, indices, x.shape[1], y.shape[1]),
        num_warps=1,
        ROWS=rows,
        TILE=32,
    )
    return distances, indices


def _pull(
    x: Tensor, y: Tensor, index: Tensor, grad: Tensor, to_x: Tensor, to_y: Tensor, *, keep: bool, give: bool
) -> None:
    from pc_ewa.ops import triton_kernels

    block = 256
    _launch(
        triton_kernels.nearest_pull,
        x.shape[0] * -(-x.shape[1] // block),
        (x, y, index, grad, to_x, to_y, x.shape[1], y.shape[1]),
        num_warps=4,
        KEEP=keep,
        GIVE=give,
        BLOCK=block,
    )


def _launch(kernel: Any, programs: int, arguments: tuple[Any, ...], **settings: Any) -> None:
    """Run a kernel on the device of its first argument, without fused multiply-add."""
    device = arguments[0].device
    # `lengths` may be expanded from one number, with stride 0.
    dense = (argument.contiguous() if isinstance(argument, Tensor) else argument for argument in arguments)
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](*dense, enable_fp_fusion=False, **settings)


def _power_of_two(count: int) -> int:
    """Round up to a power of two, as Triton needs for the sizes of tiles."""
    return 1 << (count - 1).bit_length()
