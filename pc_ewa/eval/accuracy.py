"""Classification accuracy from one confusion matrix: overall, mean over classes, per class."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.data.transforms import normalize_unit_sphere, subsample_eval
from pc_ewa.progress import progress


@dataclass(frozen=True)
class Accuracy:
    """A confusion matrix (true class, predicted class) of counts, and what follows from it."""

    confusion: Tensor

    @property
    def shapes(self) -> int:
        """Number of shapes."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Number of shapes classified correctly."""
        return int(self.confusion.trace())

    @property
    def overall(self) -> float:
        """Share of shapes classified correctly ("OA")."""
        return self.correct / self.shapes

    @property
    def mean_class(self) -> float:
        """Mean over the classes present of the share classified correctly ("mAcc")."""
        per_class = self.confusion.sum(1)
        present = per_class > 0
        return float((self.confusion.diagonal()[present] / per_class[present]).mean())

    @property
    def standard_error(self) -> float:
        """Binomial standard error of `overall` for this number of shapes."""
        return math.sqrt(self.overall * (1 - self.overall) / self.shapes)


@torch.no_grad()
def evaluate_classifier(
    model: nn.Module,
    clouds: Clouds,
    num_points: int,
    *,
    normalize: bool = True,
    batch_size: int = 64,
    device: torch.device | None = None,
    precision: str = "fp32",
    title: str = "evaluating",
) -> Accuracy:
    """Classify every cloud once, without augmentation or votes; under torchrun each process takes its share.

    Clouds are cut to `num_points` by farthest point sampling. The mode of the model (`train()` or `eval()`, and of
    every part of it) is restored afterwards.
    """
    device = device or next(model.parameters()).device
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    confusion = torch.zeros(clouds.num_classes, clouds.num_classes, dtype=torch.int64, device=device)
    modes = {module: module.training for module in model.modules()}
    if model.training:
        model.eval()
    try:
        mine = range(rank, len(clouds), size)
        batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
        for indices in progress(batches, title, show=rank == 0):
            points, labels = (tensor.to(device) for tensor in clouds.batch(indices))
            points = prepare_eval(points, num_points, normalize)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                predicted = model(points).argmax(1)
            cells = labels * clouds.num_classes + predicted
            confusion += torch.bincount(cells, minlength=confusion.numel()).view_as(confusion)
    finally:
        for module, training in modes.items():
            module.training = training
    if dist.is_initialized():
        dist.all_reduce(confusion)
    return Accuracy(confusion.cpu())


def prepare_eval(points: Tensor, num_points: int, normalize: bool) -> Tensor:
    """What evaluation does to clouds (B, N, 3): centre and scale each into the unit sphere, then cut it by FPS."""
    return subsample_eval(normalize_unit_sphere(points) if normalize else points, num_points)
