"""Statistics of mixtures: the distance between their experts."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pc_ewa.ewa.experts import Mixture
from pc_ewa.ewa.sharding import local_stack

_CACHED_WEIGHTS = 2**16  # weights of each expert that are processed together on the CPU


class LayerStatistics(NamedTuple):
    """Distance of the experts of one mixture, where all weights of expert i form a vector W_i, with mean W̄.

    `spread` is the mean of ‖W_i - W̄‖ / ‖W̄‖. `cosine` is the mean cosine of two different experts. `share_rate` is
    the rate β of the latest averaging.
    """

    spread: float
    cosine: float
    share_rate: float


@torch.no_grad()
def measure(layer: Mixture, share_rate: float) -> LayerStatistics:
    """Measure one mixture over all of its weights. Under sharding all processes must call it together."""
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
    """Yield each stacked parameter of a mixture, without those of a gate, and its local part (N, ...).

    Raises:
        ValueError: experts that are sharded otherwise than by `expert_shard_placement`.
    """
    if callable(reshard := getattr(layer, "reshard", None)):
        reshard()  # after a forward without a backward FSDP2 leaves unsharded copies in place of the parameters
    for stack in layer.experts.parameters():
        yield stack, local_stack(stack, layer.num_experts)


def _sums(stack: Tensor) -> Tensor:
    """Return the sums that add up over parts of the weights: ‖W̄‖², all ‖W_i - W̄‖² and all products W_i·W_j."""
    experts = stack.detach().flatten(1)
    # On the CPU one part at a time, small enough to stay in its cache in double precision. It is several times as fast.
    size = _CACHED_WEIGHTS if experts.device.type == "cpu" else max(1, experts.shape[1])
    return torch.stack([_sums_of(part.double()) for part in torch.split(experts, size, dim=1)]).sum(0)


def _sums_of(experts: Tensor) -> Tensor:
    mean = experts.mean(0)
    # Not from the products, as ‖W_i‖² - 2 W_i·W̄ + ‖W̄‖²: for experts that are close that cancels to rounding errors.
    deviations = (experts - mean).square().sum(1)
    return torch.cat([mean.square().sum()[None], deviations, (experts @ experts.T).flatten()])


def _over_shards(stack: Tensor, sums: Tensor) -> Tensor:
    """Add up the sums of all processes among which a stack is sharded. Processes that hold copies count once."""
    if not hasattr(stack, "placements"):
        return sums
    from torch.distributed.tensor import DTensor, Partial, Replicate

    assert isinstance(stack, DTensor)
    # Partial marks the local sums as terms of a total, and full_tensor() adds them up over the processes. A mesh axis
    # that replicates the stack must not add its copies.
    placements = [Replicate() if placement.is_replicate() else Partial() for placement in stack.placements]
    return DTensor.from_local(sums, stack.device_mesh, placements, run_check=False).full_tensor()
