"""The ops on the CPU by our C++ kernels (csrc/): exact, vectorised, on the threads of torch."""

import ctypes
import functools
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pc_ewa.ops.compiled import Scalar, UnavailableError, library
from pc_ewa.ops.reference import NEAR_ORIGIN

_WORTH_THREADS = 2**17  # distances; they take about 20 microseconds, as long as waking the other threads


class Norm(NamedTuple):
    """A batch norm with the statistics of its batch."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    eps: float


def unavailable(device: str) -> str | None:
    """Return the reason why this backend cannot serve a type of device. None means that it can."""
    if device != "cpu":
        return "the compiled kernels run on the CPU"
    try:
        library("float")
    except UnavailableError as error:
        return str(error)
    return None


def farthest_point_sample(
    points: Tensor, n: int, start: Tensor | None, lengths: Tensor | None, skip_near_origin: bool
) -> Tensor:
    """Compute `reference.farthest_point_sample`."""
    batch, count, _ = points.shape
    chosen = torch.empty(batch, n, dtype=torch.int64)
    # Points with a squared norm up to `skip` are skipped: none for -1.
    skip = ctypes.c_double(NEAR_ORIGIN if skip_near_origin else -1)
    _call("farthest_point_sample", n * count * batch, points, batch, count, n, start, lengths, skip, chosen)
    return chosen


def knn(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute `reference.knn`."""
    batch, number, _ = queries.shape
    distances = queries.new_empty(batch, number, k)
    indices = torch.empty(distances.shape, dtype=torch.int64)
    _call(
        "knn",
        batch * number * points.shape[1],
        queries,
        points,
        batch,
        number,
        points.shape[1],
        k,
        lengths,
        distances,
        indices,
    )
    return distances, indices


def ball_query(queries: Tensor, points: Tensor, squared_radius: float, k: int, lengths: Tensor | None) -> Tensor:
    """Compute `reference.ball_query`."""
    batch, number, _ = queries.shape
    indices = torch.empty(batch, number, k, dtype=torch.int64)
    radius = ctypes.c_double(squared_radius)
    _call(
        "ball_query",
        batch * number * points.shape[1],
        queries,
        points,
        batch,
        number,
        points.shape[1],
        radius,
        k,
        lengths,
        indices,
    )
    return indices


def nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `reference.nearest`."""
    return *_nearest(x, y, x_lengths, y_lengths), *_nearest(y, x, y_lengths, x_lengths)


def nearest_backward(
    grad_x: Tensor, grad_y: Tensor, x: Tensor, y: Tensor, x_index: Tensor, y_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `reference.nearest_backward`."""
    to_x, to_y = torch.zeros_like(x), torch.zeros_like(y)  # zeros, because the kernel adds to them
    sizes = (*x.shape[:2], y.shape[1])
    _call(
        "nearest_backward",
        8 * (grad_x.numel() + grad_y.numel()),
        grad_x,
        grad_y,
        x,
        y,
        x_index,
        y_index,
        *sizes,
        to_x,
        to_y,
    )
    return to_x, to_y


def norm_statistics(x: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each channel of x + shift, for x (P, K, C) and shift (P, C).

    `shift` is that of each patch; None is 0. All tensors are contiguous, here and below.
    """
    mean, variance = x.new_empty(x.shape[2]), x.new_empty(x.shape[2])
    _call("norm_statistics", x.numel(), x, shift, *x.shape, _parts(x), mean, variance)
    return mean, variance


def norm_relu(x: Tensor, shift: Tensor | None, norm: Norm) -> Tensor:
    """Return relu(norm(x + shift))."""
    y = torch.empty_like(x)
    _call("norm_relu", x.numel(), x, shift, *norm[:4], *x.shape, ctypes.c_double(norm.eps), y)
    return y


def norm_relu_backward(
    grad: Tensor, x: Tensor, shift: Tensor | None, norm: Norm, in_place: bool = False
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return the gradients of x, shift, weight and bias; `in_place` writes that of x over `grad`."""
    grad_x, grad_shift = grad if in_place else torch.empty_like(x), None if shift is None else torch.empty_like(shift)
    grad_weight, grad_bias = torch.empty_like(norm.weight), torch.empty_like(norm.bias)
    sizes = (*x.shape, ctypes.c_double(norm.eps))
    gradients = (grad_x, grad_shift, grad_weight, grad_bias)
    _call("norm_relu_backward", x.numel(), grad, x, shift, *norm[:4], *sizes, _parts(x), *gradients)
    return gradients


def largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest value of each channel over the points of a patch, (P, K, C) to (P, C), and its index."""
    patches, _, channels = x.shape
    values = x.new_empty(patches, channels)
    # Integers as wide as the values, so that a vector of one has as many lanes as a vector of the other.
    winners = torch.empty(values.shape, dtype=torch.int32 if x.dtype == torch.float32 else torch.int64)
    _call("largest", x.numel(), x, *x.shape, values, winners)
    return values, winners


def largest_backward(grad: Tensor, winners: Tensor, size: int) -> Tensor:
    """Return the gradient of x, which is `grad` at the largest value and 0 elsewhere."""
    grad_x = grad.new_empty(grad.shape[0], size, grad.shape[1])
    _call("largest_backward", grad_x.numel(), grad, winners, *grad_x.shape, grad_x)
    return grad_x


def _parts(x: Tensor) -> Tensor:
    """Return memory for two sums per channel of each block of rows. There are at most as many blocks as patches."""
    return x.new_empty(2 * x.shape[0] * x.shape[2])


def _nearest(x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    distances = x.new_zeros(x.shape[:2])
    indices = torch.zeros(x.shape[:2], dtype=torch.int64)
    _call(
        "nearest",
        x.shape[:2].numel() * y.shape[1],
        x,
        y,
        *x.shape[:2],
        y.shape[1],
        x_lengths,
        y_lengths,
        distances,
        indices,
    )
    return distances, indices


def _call(kernel: str, cost: int, points: Tensor, *arguments: Any) -> None:
    """Call a kernel, with tensors as pointers and int as int64. It uses threads if `cost`, in distances, is high."""
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{kernel}: {points.dtype}; the kernels read float32 and float64")
    scalar: Scalar = "float" if points.dtype == torch.float32 else "double"
    function = getattr(library(scalar), kernel)
    threads = ctypes.c_int64(torch.get_num_threads() if cost >= _WORTH_THREADS else 1)
    if function(*(_as_c(argument) for argument in (points, *arguments)), _parallel(), threads):
        raise MemoryError(f"{kernel}: out of memory")


def _as_c(argument: Any) -> Any:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_int64(argument) if isinstance(argument, int) else argument


@functools.cache
def _parallel() -> ctypes.c_void_p:
    """Find `GOMP_parallel` of the OpenMP runtime that torch has loaded. A null pointer means one thread."""
    # The kernels run on the threads that torch has already started. A library compiled with -fopenmp would bring a
    # second OpenMP runtime into the process: twice the threads on the same cores.
    # `GOMP_parallel(function, data, threads, flags)` is an entry point that the GNU, Intel and LLVM runtimes share, so
    # its address is enough. /proc/self/maps lists the libraries of this process. Wheels of torch have their runtime in
    # a folder of torch. It is tried first, because another package may have loaded a runtime too.
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
            paths = [line.split(maxsplit=5)[-1].strip() for line in lines]
    except OSError:
        return ctypes.c_void_p(None)
    runtimes = sorted({path for path in paths if re.search(r"/lib(gomp|iomp5|omp)[^/]*$", path)}, key=_not_of_torch)
    for path in runtimes:
        try:
            return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
    return ctypes.c_void_p(None)


def _not_of_torch(path: str) -> bool:
    return "/torch" not in path
