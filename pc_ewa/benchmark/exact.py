"""Exact results in float64, and verdicts on other results by them."""

import math

import torch
from torch import Tensor

from pc_ewa import ops
from pc_ewa.benchmark.contest import Verdict, ops_backend
from pc_ewa.ops.reference import nearest

TIE = 1e-6  # relative difference of two distances below which float32 cannot order them
CHUNK = 2**24  # distances in memory at a time


def exact_distances(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Return the k smallest squared distances (B, M, k), ascending, in float64."""
    rows = max(1, CHUNK // (points.shape[0] * points.shape[1]))
    wide = points.double()
    parts = []
    for part in torch.split(queries.double(), rows, dim=1):
        # Subtract, axis by axis: the expansion |a|² + |b|² - 2ab would cancel, in float64 too.
        squared = sum((part[:, :, None, axis] - wide[:, None, :, axis]).square_() for axis in range(3))
        parts.append(torch.as_tensor(squared).topk(k, largest=False).values)
    return torch.cat(parts, dim=1)


def matches(index: Tensor, queries: Tensor, points: Tensor, distances: Tensor) -> Tensor:
    """Return True for each neighbour (B, M, k) that is one of the k nearest. Any of several tied points counts."""
    index = index.sort(-1).values
    neighbours = ops.gather_points(points.double(), index)
    squared = (neighbours - queries.double()[:, :, None]).square().sum(-1)
    # Equal distances alone would accept one index k times. Sorted, a repeated index equals the one before.
    again = torch.nn.functional.pad(index[..., 1:] == index[..., :-1], (1, 0))
    return (squared <= distances[..., -1:] * (1 + TIE)) & ~again


def exact_chamfer(x: Tensor, y: Tensor) -> float:
    """Return the Chamfer distance computed in float64."""
    to_y, _, to_x, _ = nearest(x.double(), y.double(), None, None)
    return (to_y.mean() + to_x.mean()).item()


def judge_fps(index: Tensor, points: Tensor) -> Verdict:
    """Judge sampled points. They are exact if the reference chooses the same set from the same first point."""
    with ops_backend("reference"):
        right = ops.farthest_point_sample(points, index.shape[1], start=index[:, 0].to(points.device))
    same = (right.cpu().sort(1).values == index.cpu().sort(1).values).double().mean().item()
    if same < 1:
        return Verdict(False, f"no, {percent(same)} of the points")
    return Verdict(True, "yes, from a start of its own" if bool(index[:, 0].any()) else "yes")


def judge_knn(index: Tensor, queries: Tensor, points: Tensor, distances: Tensor) -> Verdict:
    """Judge neighbours. They are exact if all sets are those found in float64."""
    share = matches(index.to(points.device), queries, points, distances).all(-1).double().mean().item()
    return Verdict(share == 1, "yes" if share == 1 else f"no, {percent(share)} of the sets")


def judge_chamfer(value: Tensor, exact: float) -> Verdict:
    """Judge a Chamfer distance. It is exact if its relative difference from float64 is below 1e-5."""
    error = abs(value.item() / exact - 1)
    return Verdict(error < 1e-5, "yes" if error < 1e-5 else f"no, off by {relative(error)}")


def relative(error: float) -> str:
    """Format a relative error, a small one by its order of magnitude."""
    return f"{error:.0e}" if error < 1e-3 else f"{100 * error:.3g} %"


def percent(share: float) -> str:
    """Format a share with enough digits to distinguish it from 100 %."""
    if share == 1:
        return "100 %"
    # Round down: 0.999999 must not be printed as 100 %.
    digits = 1 if share < 0.999 else 5
    return f"{math.floor(share * 100 * 10**digits) / 10**digits:.{digits}f} %"
