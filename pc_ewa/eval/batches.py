"""The evaluation loop: mode of the model, share of each process, presentation of clouds, precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.errors import OutputError
from pc_ewa.eval.settings import EvalSettings
from pc_ewa.progress import progress


class EvalBatch:
    """A batch of clouds of a dataset, on the device.

    Attributes:
        number: number of the batch in the dataset. It does not depend on the number of processes.
        indices: positions of the clouds in the dataset.
        stored: clouds (B, P, 3) as the dataset has them.
        labels: classes of the clouds (B,).
    """

    def __init__(self, number: int, clouds: Clouds, settings: EvalSettings, device: torch.device) -> None:
        start = number * settings.batch_size
        self.number, self.settings = number, settings
        self.indices = range(start, min(start + settings.batch_size, len(clouds)))
        self.stored, self.labels = (tensor.to(device) for tensor in clouds.batch(self.indices))

    @property
    def points(self) -> Tensor:
        """Points as the settings present them to the model, (B, N, 3)."""
        return self._presented[0]

    @property
    def point_index(self) -> Tensor:
        """Positions of these points in the stored clouds, (B, N)."""
        return self._presented[1]

    @cached_property
    def _presented(self) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.stored.device.type, enabled=False):  # coordinates keep their precision
            return self.settings.present(self.stored)


@contextmanager
def evaluation(
    model: nn.Module,
    clouds: Clouds,
    settings: EvalSettings,
    *,
    device: torch.device | None = None,
    title: str = "evaluating",
    shared: bool = True,
) -> Iterator[Iterator[EvalBatch]]:
    """Hold a model in evaluation mode in a `with` block and yield the batches.

    Gradients are off, and the precision is that of the settings. The mode of every submodule is restored afterwards. A
    model in evaluation mode stays as it is, because `routed_experts` may have set submodules of it to training.

    Args:
        model: the model.
        clouds: the dataset.
        settings: the presentation of the clouds.
        device: the device of the batches. None: that of the model.
        title: title of the progress bar.
        shared: under torchrun each process gets its share of the batches. False: this process gets all batches.
    """
    device = device or next(model.parameters()).device
    with evaluation_mode(model, device, settings):
        yield _batches(clouds, settings, device, title, shared)


@contextmanager
def evaluation_mode(model: nn.Module, device: torch.device, settings: EvalSettings) -> Iterator[None]:
    """Hold a model in evaluation mode in a `with` block, without gradients, in the precision of the settings."""
    # Mode by mode: model.train() afterwards would also switch on frozen submodules, such as a tokenizer.
    modes = {module: module.training for module in model.modules()}
    if model.training:
        model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _batches(
    clouds: Clouds, settings: EvalSettings, device: torch.device, title: str, shared: bool
) -> Iterator[EvalBatch]:
    rank, size = (dist.get_rank(), dist.get_world_size()) if shared and dist.is_initialized() else (0, 1)
    # Whole batches are dealt out, not samples: a batch has the same clouds, and so the same rounding and random draws,
    # for any number of processes.
    mine = range(-(-len(clouds) // settings.batch_size))[rank::size]
    for number in progress(mine, title, show=rank == 0):
        yield EvalBatch(number, clouds, settings, device)


def sum_over_processes(sums: dict[str, float]) -> dict[str, float]:
    """Add the sums of all processes. A process without batches may have none."""
    if not dist.is_initialized():
        return sums
    # Objects instead of an all_reduce: a process without batches does not have the names.
    gathered: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, sums)
    names = {name: None for part in gathered for name in part}
    return {name: sum(part.get(name, 0.0) for part in gathered) for name in names}


class Finite:
    """A check that all outputs of a model are finite, without waiting for the GPU at each batch.

    Args:
        device: device of the outputs.
    """

    def __init__(self, device: torch.device) -> None:
        self._bad = torch.zeros((), dtype=torch.int64, device=device)

    def seen(self, output: Tensor) -> Tensor:
        """Record whether an output is finite, and return the output."""
        self._bad += ~output.isfinite().all()
        return output

    def check(self, model: nn.Module, clouds: Clouds, shared: bool = True) -> None:
        """Check all recorded outputs, of all processes if they share the work.

        Raises:
            OutputError: an output with NaN or inf. Without this check argmax would return a class for it.
        """
        if shared and dist.is_initialized():
            dist.all_reduce(self._bad)
        if self._bad:
            raise OutputError(
                f"{type(model).__name__} puts out NaN or inf on {clouds.name}: there is no score; look at its weights, "
                "or use precision=fp32"
            )
