"""The Chamfer distance of other libraries, forward and backward (see peers.py)."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pc_ewa.benchmark.peers import Peer, Prepared, expansion

Loss = Callable[[Tensor, Tensor], Tensor]


def both_ways(loss: Loss, x: Tensor, y: Tensor) -> Prepared:
    """Return a call that computes the value and the gradients of both clouds, and returns the value."""

    def call() -> Tensor:
        # Fresh leaves in each call: a leaf that is used again would accumulate gradients, and time an extra addition.
        leaves = x.detach().requires_grad_(), y.detach().requires_grad_()
        value = loss(*leaves)
        torch.autograd.grad(value, leaves)
        return value.detach()

    return call, lambda value: value


def cdist(x: Tensor, y: Tensor) -> Tensor:
    """Compute distances by torch.cdist, and square them after the minimum."""
    # Squaring is monotonic, so that the minima are the same: N + M squares in place of N * M.
    distances = torch.cdist(x, y)
    return distances.min(2).values.square().mean() + distances.min(1).values.square().mean()


def plain_cdist(x: Tensor, y: Tensor) -> Tensor:
    """Compute distances by torch.cdist without its matrix product: by subtraction."""
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.min(2).values.square().mean() + distances.min(1).values.square().mean()


def expanded(x: Tensor, y: Tensor) -> Tensor:
    """Expand |a - b|² into one matrix product, then take two minima."""
    squared = expansion(x, y)
    return squared.min(2).values.mean() + squared.min(1).values.mean()


def load_keops() -> Loss:
    """Return a loss that finds the nearest points by KeOps, which never stores the distances, and then subtracts."""
    os.environ.setdefault("KEOPS_VERBOSE", "0")  # it prints that there is no GPU
    from pykeops.torch import LazyTensor

    def side(x: Tensor, y: Tensor) -> Tensor:
        # The gradient of a minimum is that of its argument: find the argument without gradients, then differentiate.
        distances = LazyTensor(x.detach()[:, :, None]).sqdist(LazyTensor(y.detach()[:, None]))
        nearest = distances.argmin(2).view(len(x), -1, 1).expand(-1, -1, 3)
        return (x - y.gather(1, nearest)).square().sum(-1).mean()

    return lambda x, y: side(x, y) + side(y, x)


def load_chamferdist() -> Loss:
    """Return the loss of the package chamferdist."""
    import chamferdist

    distance = chamferdist.ChamferDistance()

    def loss(x: Tensor, y: Tensor) -> Any:
        return distance(x, y, bidirectional=True, batch_reduction="mean", point_reduction="mean")

    return loss


CHAMFER = (
    Peer("torch.cdist + min", "", lambda x, y: both_ways(cdist, x, y), gpu=True),
    Peer("torch.cdist (no matmul) + min", "", lambda x, y: both_ways(plain_cdist, x, y), gpu=True),
    Peer("torch, |a|²+|b|²-2ab + min", "", lambda x, y: both_ways(expanded, x, y), gpu=True),
    Peer("pykeops", "pykeops", lambda x, y: both_ways(load_keops(), x, y), gpu=True),
    Peer("chamferdist", "chamferdist", lambda x, y: both_ways(load_chamferdist(), x, y), gpu=True),
)
