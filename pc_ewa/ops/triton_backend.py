"""The ops as fused Triton kernels, for CUDA devices: float32, nothing as large as N x M in memory.

Same functions as `reference`, same arguments, same results bit for bit. What they leave to it: float64, and k > 512.
"""

import contextlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from pc_ewa.ops.checks import valid
from pc_ewa.ops.reference import NEAR_ORIGIN

# Registers hold three coordinates and a distance for each point: of 8192 that is half of what a multiprocessor has.
_LARGEST_IN_REGISTERS = 8192
# With twice as many keys to sort, one warp runs out of registers and the compiler out of breath.
_LARGEST_K = 512


def unavailable(device: str) -> str | None:
    """Say why this backend cannot serve a type of device; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device != "cuda" and not (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return "Triton runs on CUDA devices"
    import triton  # a third of a second, for those whose device it serves

    if not hasattr(triton, "constexpr_function"):
        return f"Triton {triton.__version__} is too old: the kernels need 3.5, which comes with torch 2.9"
    return None


def farthest_point_sample(
    points: Tensor, n: int, start: Tensor | None, lengths: Tensor | None, skip_near_origin: bool
) -> Tensor:
    """As `reference.farthest_point_sample`."""
    if points.dtype != torch.float32:
        return NotImplemented
    from pc_ewa.ops import triton_kernels

    batch, count, _ = points.shape
    chosen = torch.empty(batch, n, dtype=torch.int64, device=points.device)
    if count <= _LARGEST_IN_REGISTERS:
        # A round is a chain of waits: 8 points a thread are enough to hide them behind work. At most 16 warps, which
        # leaves 128 registers a thread, and 64 of them hold the points of the largest cloud.
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
    # Each round reads 16 bytes a point and writes 4: all the warps there can be, each with many loads on their way.
    _launch(
        triton_kernels.farthest_point_sample_streaming,
        batch,
        (points.transpose(1, 2).contiguous(), nearest, start, chosen, count, n),
        num_warps=32,
        TILE=8192,
    )
    return chosen


def knn(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `reference.knn`."""
    if queries.dtype != torch.float32 or k > _LARGEST_K:
        return NotImplemented
    from pc_ewa.ops import triton_kernels

    batch, rows, _ = queries.shape
    count = points.shape[1]
    distances = queries.new_empty(batch, rows, k)
    indices = torch.empty(batch, rows, k, dtype=torch.int64, device=queries.device)
    # A warp for each query: it sorts by shuffles, and never waits for another. At 512 points a tile a thread sorts 16
    # keys of two registers, and merging the tile's best with those so far is little beside it.
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
    """As `reference.ball_query`."""
    if queries.dtype != torch.float32:
        return NotImplemented
    from pc_ewa.ops import triton_kernels

    batch, rows, _ = queries.shape
    indices = torch.empty(batch, rows, k, dtype=torch.int64, device=queries.device)
    # A warp for each query, so that each stops where it has found enough.
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
    """As `reference.nearest`."""
    if x.dtype != torch.float32:
        return NotImplemented
    return *_nearest(x, y, x_lengths, y_lengths), *_nearest(y, x, y_lengths, x_lengths)


def nearest_backward(
    grad_x: Tensor, grad_y: Tensor, x: Tensor, y: Tensor, x_index: Tensor, y_index: Tensor
) -> tuple[Tensor, Tensor]:
    """As `reference.nearest_backward`, up to rounding: pulls on one point add up in any order."""
    if x.dtype != torch.float32 or torch.are_deterministic_algorithms_enabled():
        return NotImplemented
    to_x, to_y = torch.empty_like(x), torch.empty_like(y)
    # Each gradient is stored before anything is added to it.
    _pull(x, y, x_index, grad_x, to_x, to_y, keep=True, give=False)
    _pull(y, x, y_index, grad_y, to_y, to_x, keep=True, give=True)
    _pull(x, y, x_index, grad_x, to_x, to_y, keep=False, give=True)
    return to_x, to_y


def _nearest(x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    from pc_ewa.ops import triton_kernels

    distances = x.new_empty(x.shape[:2])
    indices = torch.empty(x.shape[:2], dtype=torch.int64, device=x.device)
    # A warp for 16 points of x: a thread compares all of them with its point of y, three loads for 16 distances.
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
    """Run a kernel on the device of its first argument, each product and each sum rounded by itself."""
    device = arguments[0].device
    # Lengths may come expanded from one number.
    dense = (argument.contiguous() if isinstance(argument, Tensor) else argument for argument in arguments)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](*dense, enable_fp_fusion=False, **settings)


def _power_of_two(count: int) -> int:
    """Round up to a power of two, as Triton wants its tiles."""
    return 1 << (count - 1).bit_length()
