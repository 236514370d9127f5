"""Precision and memory: our ops beside torch.cdist and the expansion |a|² + |b|² - 2ab."""

import multiprocessing
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pc_ewa import ops
from pc_ewa.benchmark.chamfer_peers import Loss, both_ways, cdist, expanded, plain_cdist
from pc_ewa.benchmark.contest import OURS, REFERENCE, ops_backend, synchronize
from pc_ewa.benchmark.exact import exact_chamfer, exact_distances, matches
from pc_ewa.benchmark.memory import can_weigh, peak_of
from pc_ewa.benchmark.peers import cdist_knn, expansion_knn, plain_cdist_knn

OFFSETS = (0, 1000)
EXPANSION = "torch, |a|²+|b|²-2ab"
PLAIN_CDIST = "torch.cdist (no matmul)"


class Precision(NamedTuple):
    """The precision of one implementation, with a value for each offset in OFFSETS.

    Attributes:
        neighbours: the share of neighbours found.
        chamfer: the relative error of the Chamfer distance.
    """

    neighbours: list[float]
    chamfer: list[float]


def reference_knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Return the indices of the k nearest points, computed in plain torch."""
    with ops_backend("reference"):
        return ops.knn(queries, points, k)[1]


def reference_chamfer(x: Tensor, y: Tensor) -> Tensor:
    """Return the Chamfer distance, computed in plain torch."""
    with ops_backend("reference"):
        return ops.chamfer_distance(x, y)


KNN: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    OURS: lambda queries, points, k: ops.knn(queries, points, k)[1],
    REFERENCE: reference_knn,
    "torch.cdist": lambda *inputs: cdist_knn(*inputs)[0](),
    PLAIN_CDIST: lambda *inputs: plain_cdist_knn(*inputs)[0](),
    EXPANSION: lambda *inputs: expansion_knn(*inputs)[0](),
}
CHAMFER: dict[str, Loss] = {
    OURS: ops.chamfer_distance,
    REFERENCE: reference_chamfer,
    "torch.cdist": cdist,
    PLAIN_CDIST: plain_cdist,
    EXPANSION: expanded,
}


def precision(clouds: int, count: int, k: int, device: torch.device) -> dict[str, Precision]:
    """Compare all implementations with float64, on clouds of unit scale at each offset.

    Clouds are rounded to float32 first, so that only errors of the computation count.
    """
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, clouds, count, 3, generator=random).to(device)
    found: dict[str, Precision] = {name: Precision([], []) for name in KNN}
    for offset in OFFSETS:
        queries, points = x + offset, y + offset
        distances, value = exact_distances(queries, points, k), exact_chamfer(queries, points)
        for name, measured in found.items():
            right = matches(KNN[name](queries, points, k), queries, points, distances)
            measured.neighbours.append(right.double().mean().item())
            measured.chamfer.append(abs(CHAMFER[name](queries, points).item() / value - 1))
    return found


def memory(shape: tuple[int, int], device: torch.device, names: Sequence[str]) -> dict[str, float]:
    """Measure the peak memory of Chamfer forward and backward by name, in MB beyond the clouds."""
    # Each in a fresh process (maxtasksperchild=1): an allocator that has freed memory to reuse would hide the peak.
    if device.type == "cpu" and not can_weigh():
        return {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(peak, [(name, shape, str(device)) for name in names], chunksize=1)
    return dict(zip(names, peaks, strict=True))


def peak(name: str, shape: tuple[int, int], where: str) -> float:
    """Measure the peak memory of one implementation in this process, in MB beyond the clouds."""
    device = torch.device(where)
    small, large = torch.rand(2, 2, 2, 32, 3, device=device)[0], torch.rand(2, *shape, 3, device=device)
    both_ways(CHAMFER[name], *small)[0]()  # loads and compiles, which should not count
    call, _ = both_ways(CHAMFER[name], *large)
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    return peak_of(call)
