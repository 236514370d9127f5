"""What all evaluations share: the mode of the model, the share of each process, the points."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor, nn

from pc_ewa.data.transforms import normalize_unit_sphere, subsample_eval
from pc_ewa.progress import progress


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluate, and restore the mode of every part of the model afterwards.

    A model that is in evaluation already stays as it is: `routed_experts` may have set parts of it to training.
    """
    modes = {module: module.training for module in model.modules()}
    if model.training:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def my_batches(count: int, batch_size: int, title: str) -> Iterator[range]:
    """Positions of the shapes of each batch; under torchrun each process has some of these same batches."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    yield from progress(batches[rank::size], title, show=rank == 0)


def prepare_eval(points: Tensor, num_points: int, normalize: bool) -> Tensor:
    """What evaluation does to clouds (B, N, 3): centre and scale each into the unit sphere, then cut it by FPS."""
    return subsample_eval(normalize_unit_sphere(points) if normalize else points, num_points)


def add_up(sums: dict[str, float]) -> dict[str, float]:
    """Add the sums of all processes, some of which may have had nothing to add."""
    if not dist.is_initialized():
        return sums
    gathered: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, sums)
    names = {name: None for part in gathered for name in part}
    return {name: sum(part.get(name, 0.0) for part in gathered) for name in names}
