"""Part segmentation: the published IoU of ShapeNetPart, per sample over the parts of its category."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.eval.batches import Finite, evaluation
from pc_ewa.eval.settings import EvalSettings
from pc_ewa.text import printable


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The IoU of each cloud, and the metrics derived from it.

    Attributes:
        ious: (S,) float64, the mean IoU of each sample over the parts of its category.
        categories: (S,) int64, positions in `class_names`.
        class_names: names of the categories, including those without samples.
        points_right: number of points with the correct part.
        points: number of points.
        loss: mean negative log-likelihood of the true parts over the points, as in training. None if unknown.

    Example:
        >>> ious, categories = torch.tensor([0.8, 0.6], dtype=torch.float64), torch.tensor([0, 1])
        >>> Segmentation(ious, categories, ("chair", "lamp"), points_right=7, points=8).describe()
        'instance mIoU 70.00%, class mIoU 70.00%'
    """

    ious: Tensor
    categories: Tensor
    class_names: tuple[str, ...]
    points_right: int
    points: int
    loss: float | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.ious)

    @property
    def instance_miou(self) -> float:
        """Mean over the samples ("Inst. mIoU")."""
        return float(self.ious.mean())

    @property
    def class_miou(self) -> float:
        """Mean over the categories present of their mean IoU ("Cls. mIoU")."""
        means = [mean for mean, _ in self.per_class.values()]
        return sum(means) / len(means)

    @property
    def accuracy(self) -> float:
        """Share of points with the correct part."""
        return self.points_right / self.points

    @property
    def per_class(self) -> dict[str, tuple[float, int]]:
        """Mean IoU and number of samples of each category present, by name."""
        by_name = {name: self.ious[self.categories == label] for label, name in enumerate(self.class_names)}
        return {name: (float(ious.mean()), len(ious)) for name, ious in by_name.items() if len(ious)}

    @property
    def standard_error(self) -> float:
        """Standard error of `instance_miou` for this number of samples; NaN for a single one."""
        return float(self.ious.std()) / math.sqrt(self.samples) if self.samples > 1 else math.nan

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name. Loss and standard error are left out if there are none."""
        means = {"instance_miou": self.instance_miou, "class_miou": self.class_miou, "accuracy": self.accuracy}
        means |= {} if self.loss is None else {"loss": self.loss}
        return means | ({"standard_error": self.standard_error} if self.samples > 1 else {})

    def describe(self) -> str:
        """Describe both mIoUs in one line."""
        return f"instance mIoU {self.instance_miou:.2%}, class mIoU {self.class_miou:.2%}"

    def table(self) -> str:
        """Write the metrics, and the mean IoU of every category."""
        error = f", standard error {self.standard_error:.2%}" if self.samples > 1 else ""
        per_class, width = self.per_class, max(len(printable(name)) for name in self.class_names)
        lines = [
            f"instance mIoU      {self.instance_miou:.2%} ({self.samples} samples{error})",
            f"class mIoU         {self.class_miou:.2%} ({len(per_class)} categories)",
            f"accuracy of points {self.accuracy:.2%} ({self.points_right}/{self.points})",
        ]
        for name in self.class_names:
            mean, count = per_class.get(name, (math.nan, 0))
            lines.append(
                f"  {printable(name):<{width}}  " + (f"{mean:7.1%} ({count} samples)" if count else "no samples")
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the metrics, the counts and the mean IoU per category in plain types."""
        per_class = {name: {"miou": mean, "samples": count} for name, (mean, count) in self.per_class.items()}
        counts = {"samples": self.samples, "points": self.points, "points_right": self.points_right}
        return {**self.metrics(), **counts, "per_class": per_class}


def shape_ious(predicted: Tensor, truth: Tensor, categories: Tensor, parts_of: Sequence[Sequence[int]]) -> Tensor:
    """Compute the IoU of each sample: the mean over the parts of its category of intersection / union, in points.

    A part of the category that is absent from truth and prediction counts as 1. Parts of other categories do not count.

    Args:
        predicted: part of each point, (B, N) int64.
        truth: true part of each point, (B, N) int64.
        categories: categories of the clouds, (B,) int64.
        parts_of: the parts of each category.

    Returns:
        (B,) float64.

    Raises:
        ValueError: shapes that do not fit, a category without parts.
    """
    if predicted.dim() != 2 or predicted.shape != truth.shape or categories.shape != predicted.shape[:1]:
        raise ValueError(
            f"predicted {tuple(predicted.shape)}, truth {tuple(truth.shape)}, categories {tuple(categories.shape)}; "
            "expected (batch, points) twice and (batch,)"
        )
    member = _members(parts_of, 1 + max((part for parts in parts_of for part in parts), default=0), truth.device)
    part = torch.arange(member.shape[1], device=truth.device)
    is_predicted, is_true = predicted[..., None] == part, truth[..., None] == part
    both, either = (is_predicted & is_true).sum(1), (is_predicted | is_true).sum(1)  # (B, parts)
    # where() evaluates both branches, so the clamp keeps 0 / 0 out of the division.
    ious = torch.where(either > 0, both.double() / either.clamp(min=1), 1.0)
    counted = member[categories]
    return (ious * counted).sum(1) / counted.sum(1)


def evaluate_segmenter(
    model: nn.Module,
    clouds: Clouds,
    parts_of: Sequence[Sequence[int]],
    settings: EvalSettings,
    *,
    device: torch.device | None = None,
    title: str = "evaluating",
) -> Segmentation:
    """Segment every cloud once, without augmentation or votes. Under torchrun the processes share the clouds.

    Clouds are sampled by their farthest points; the official loaders sample at random, in tests too. As in the official
    code, only the parts of the cloud's category are candidates. The mode of the model is restored afterwards.

    Raises:
        DataError: clouds without parts.
        OutputError: scores that hold NaN or inf.
        ValueError: `num_points` above the points of the clouds, or parts that do not fit the clouds or the model.
    """
    if len(parts_of) != clouds.num_classes:
        raise ValueError(f"parts of {len(parts_of)} categories for {clouds.num_classes} of {clouds.name}; give as many")
    device = device or next(model.parameters()).device
    ious, losses = torch.zeros(2, len(clouds), dtype=torch.float64, device=device)
    right, finite = torch.zeros((), dtype=torch.int64, device=device), Finite(device)
    with evaluation(model, clouds, settings, device=device, title=title) as batches:
        for batch in batches:
            truth = clouds.part_labels(batch.indices).to(device).gather(1, batch.point_index)
            scores = finite.seen(model(batch.points, batch.labels))
            predicted = predict_parts(scores, batch.labels, parts_of)
            here = slice(batch.indices.start, batch.indices.stop)
            ious[here] = shape_ious(predicted, truth, batch.labels, parts_of)
            losses[here] = F.nll_loss(scores.float().mT, truth, reduction="none").double().mean(1)
            right += (predicted == truth).sum()
    finite.check(model, clouds)
    if dist.is_initialized():  # every cloud was measured by one process and is 0 in the others
        dist.all_reduce(ious)
        dist.all_reduce(losses)
        dist.all_reduce(right)
    points = len(clouds) * settings.num_points
    loss = float(losses.mean())
    return Segmentation(ious.cpu(), clouds.labels.cpu(), clouds.class_names, int(right), points, loss)


def predict_parts(scores: Tensor, categories: Tensor, parts_of: Sequence[Sequence[int]]) -> Tensor:
    """Choose for every point the part with the highest score among the parts of its sample's category.

    Args:
        scores: (B, N, num_parts).
        categories: of the clouds, (B,) int64.
        parts_of: the parts of each category.

    Returns:
        (B, N) int64.

    Raises:
        ValueError: a category without parts, or a part that has no score.
    """
    member = _members(parts_of, scores.shape[-1], scores.device)
    return scores.masked_fill(~member[categories][:, None], -math.inf).argmax(dim=-1)


def _members(parts_of: Sequence[Sequence[int]], num_parts: int, device: torch.device) -> Tensor:
    """Return a mask of the parts of each category, (categories, num_parts) bool."""
    member = torch.zeros(len(parts_of), num_parts, dtype=torch.bool)
    for category, parts in enumerate(parts_of):
        wrong = [part for part in parts if not 0 <= part < num_parts]
        if wrong:
            raise ValueError(f"category {category} has part {wrong[0]}; the parts known are 0 to {num_parts - 1}")
        if not parts:
            raise ValueError(f"category {category} has no parts; give at least one")
        member[category, list(parts)] = True
    return member.to(device)
