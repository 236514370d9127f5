"""Statistics of mixtures: how far apart their experts are."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pc_ewa.ewa.experts import Mixture


class LayerStatistics(NamedTuple):
    """Distance of the experts of one mixture, over all their weights taken as vectors W_i with mean W̄.

    `spread` is the mean of ‖W_i - W̄‖ / ‖W̄‖; `cosine` the mean cosine of two different experts; `share_rate` the
    rate β of the latest averaging.
    """

    spread: float
    cosine: float
    share_rate: float


def measure(layer: Mixture, share_rate: float) -> LayerStatistics:
    """Measure one mixture; under sharding, the part of the weights on this rank."""
    experts = torch.cat([stack.detach().flatten(1).double() for stack in local_stacks(layer)], dim=1)
    mean = experts.mean(0)
    spread = ((experts - mean).norm(dim=1) / mean.norm().clamp_min(torch.finfo(mean.dtype).tiny)).mean()
    unit = torch.nn.functional.normalize(experts, dim=1)
    cosines = unit @ unit.T
    count = layer.num_experts
    cosine = (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
    return LayerStatistics(spread.item(), cosine.item(), share_rate)


def local_stacks(layer: Mixture) -> Iterator[Tensor]:
    """Give the stacked parameters of a mixture, without a gate's; of sharded ones (DTensor), the part on this rank."""
    for stack in layer.experts.parameters():
        placements = getattr(stack, "placements", None)
        if placements is None:
            yield stack
        elif any(placement.is_shard(0) for placement in placements):
            raise ValueError("experts sharded on axis 0; pass shard_placement_fn=expert_shard_placement to fully_shard")
        else:
            yield stack.to_local()  # type: ignore[attr-defined]
