"""Statistics of mixtures: how far apart their experts are."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pc_ewa.ewa.experts import Mixture
from pc_ewa.ewa.sharding import local_stack

_CACHED_WEIGHTS = 2**16  # of each expert


class LayerStatistics(NamedTuple):
    """Distance of the experts of one mixture, over all their weights taken as vectors W_i with mean W̄.

    `spread` is the mean of ‖W_i - W̄‖ / ‖W̄‖; `cosine` the mean cosine of two different experts; `share_rate` the
    rate β of the latest averaging.
    """

    spread: float
    cosine: float
    share_rate: float


@torch.no_grad()
def measure(layer: Mixture, share_rate: float) -> LayerStatistics:
    """Measure one mixture; under sharding by all processes together, and over all of its weights."""
    count = layer.num_experts
    parts = [_over_shards(stack, _sums(local)) for stack, local in local_stacks(layer)]
    mean, deviations, products = torch.split(torch.stack(parts).sum(0), [1, count, count * count])
    spread = (deviations.sqrt() / mean.sqrt().clamp_min(torch.finfo(mean.dtype).tiny)).mean()
    products = products.view(count, count)
    norms = products.diagonal().sqrt().clamp_min(1e-12)
    cosines = products / norms / norms[:, None]
    cosine = (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
    return LayerStatistics(spread.item(), cosine.item(), share_rate)


def local_stacks(layer: Mixture) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the stacked parameters of a mixture, without a gate's, and what this process holds of them (N, ...).

    Raises:
        ValueError: experts that are sharded otherwise than by `expert_shard_placement`.
    """
    if callable(reshard := getattr(layer, "reshard", None)):
        reshard()  # after a forward without a backward FSDP2 leaves copies in the place of the parameters
    for stack in layer.experts.parameters():
        yield stack, local_stack(stack, layer.num_experts)


def _sums(stack: Tensor) -> Tensor:
    """Return what adds up over parts of the weights: ‖W̄‖², all ‖W_i - W̄‖² and all products W_i·W_j."""
    experts = stack.detach().flatten(1)
    # On the CPU a part at a time, which stays in its cache in double precision: several times as fast.
    size = _CACHED_WEIGHTS if experts.device.type == "cpu" else max(1, experts.shape[1])
    return torch.stack([_sums_of(part.double()) for part in torch.split(experts, size, dim=1)]).sum(0)


def _sums_of(experts: Tensor) -> Tensor:
    mean = experts.mean(0)
    # Not from the products: of experts that are close, nothing would be left of the difference.
    deviations = (experts - mean).square().sum(1)
    return torch.cat([mean.square().sum()[None], deviations, (experts @ experts.T).flatten()])


def _over_shards(stack: Tensor, sums: Tensor) -> Tensor:
    """Add up the sums of all processes among which a stack is sharded; those that hold copies count once."""
    if not hasattr(stack, "placements"):
        return sums
    from torch.distributed.tensor import DTensor, Partial, Replicate

    assert isinstance(stack, DTensor)
    placements = [Replicate() if placement.is_replicate() else Partial() for placement in stack.placements]
    return DTensor.from_local(sums, stack.device_mesh, placements, run_check=False).full_tensor()
