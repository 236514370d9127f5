"""Classification accuracy from one confusion matrix: overall, mean over classes, per class, confusions."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.eval.common import in_evaluation, my_batches, prepare_eval

# Clouds (B, P, 3) as stored, on the device, and the number of their batch -> logits (B, classes).
Predict = Callable[[Tensor, int], Tensor]


class ClassCount(NamedTuple):
    """Shapes of a class, and how many of them were classified correctly."""

    name: str
    shapes: int
    correct: int


class Confusion(NamedTuple):
    """How many shapes of one class were taken for another."""

    true: str
    predicted: str
    shapes: int


@dataclass(frozen=True)
class Accuracy:
    """A confusion matrix and what follows from it.

    Attributes:
        confusion: (classes, classes) counts: true class, predicted class.
        class_names: name of every class; without them classes are called by their positions.
        votes: more than 1 is a mean over so many draws of each cloud, and is labelled "voted" everywhere.

    Raises:
        ValueError: names that are not one for each class.
    """

    confusion: Tensor
    class_names: tuple[str, ...] = ()
    votes: int = 1

    def __post_init__(self) -> None:
        """Check the names."""
        if self.class_names and len(self.class_names) != len(self.confusion):
            raise ValueError(
                f"{len(self.class_names)} class_names for {len(self.confusion)} classes; give one for each"
            )

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

    @property
    def per_class(self) -> tuple[ClassCount, ...]:
        """Every class in order, also those without shapes."""
        counts = zip(self._names, self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist(), strict=True)
        return tuple(ClassCount(*count) for count in counts)

    @property
    def confusions(self) -> tuple[Confusion, ...]:
        """Pairs of classes that were confused, the most frequent first."""
        wrong = self.confusion - self.confusion.diag().diag()
        names = self._names
        pairs = [Confusion(names[t], names[p], int(wrong[t, p])) for t, p in wrong.nonzero().tolist()]
        return tuple(sorted(pairs, key=lambda pair: -pair.shapes))

    def metrics(self) -> dict[str, float]:
        """Numbers by name: accuracy, mean_class_accuracy, correct, standard_error, and votes if there were any."""
        metrics: dict[str, float] = {
            "accuracy": self.overall,
            "mean_class_accuracy": self.mean_class,
            "correct": self.correct,
            "standard_error": self.standard_error,
        }
        return metrics | ({"votes": self.votes} if self.votes > 1 else {})

    def describe(self) -> str:
        """The accuracy in a few words."""
        kind = f"voted accuracy (mean of {self.votes})" if self.votes > 1 else "accuracy"
        return f"{kind} {self.overall:.2%} ({self.correct}/{self.shapes})"

    def table(self) -> str:
        """The accuracies, one line per class, and the ten most frequent confusions."""
        voted = [f"voted: mean of the logits over {self.votes} draws of each cloud"] if self.votes > 1 else []
        lines = [
            *voted,
            f"overall accuracy     {self.overall:.2%} "
            f"({self.correct}/{self.shapes}, standard error {self.standard_error:.2%})",
            f"mean class accuracy  {self.mean_class:.2%}",
        ]
        width = max(map(len, self._names))
        for name, shapes, correct in self.per_class:
            share = f"{correct / shapes:7.1%} ({correct}/{shapes})" if shapes else "no shapes"
            lines.append(f"  {name:<{width}}  {share}")
        pairs = [(f"{true} -> {predicted}", shapes) for true, predicted, shapes in self.confusions[:10]]
        if pairs:
            width = max(len(pair) for pair, _ in pairs)
            lines.append("most frequent confusions (true class -> taken for)")
            lines += [f"  {pair:<{width}}  {shapes}" for pair, shapes in pairs]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything there is, in plain types."""
        return {
            **self.metrics(),
            "shapes": self.shapes,
            "votes": self.votes,
            "class_names": list(self._names),
            "per_class": [count._asdict() for count in self.per_class],
            "confusion": self.confusion.tolist(),
        }

    @property
    def _names(self) -> tuple[str, ...]:
        return self.class_names or tuple(map(str, range(len(self.confusion))))


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
    predict: Predict | None = None,
) -> Accuracy:
    """Classify every cloud once, without augmentation or votes; under torchrun each process takes its share.

    Clouds are cut to `num_points` by farthest point sampling. Batches are the same for any number of processes. The
    mode of the model (`train()` or `eval()`, and of every part of it) is restored afterwards.

    Args:
        model: clouds (B, N, 3) -> logits (B, classes).
        clouds: what to classify.
        num_points: points of each cloud that the model sees.
        normalize: scale each cloud into the unit sphere first.
        batch_size: clouds in a batch.
        device: None is that of the model.
        precision: "fp32" or "bf16".
        title: of the progress bar.
        predict: makes the logits of a batch instead of one plain look; `normalize` and `num_points` are its business.

    Raises:
        ValueError: fewer points than `num_points`, or a model with another number of classes.
    """
    device = device or next(model.parameters()).device
    classes = clouds.num_classes
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    with in_evaluation(model):
        for indices in my_batches(len(clouds), batch_size, title):
            points, labels = (tensor.to(device) for tensor in clouds.batch(indices))
            if predict:
                logits = predict(points, indices.start // batch_size)
            else:
                logits = forward(model, prepare_eval(points, num_points, normalize), precision)
            if logits.shape[1] != classes:
                raise ValueError(f"the model has {logits.shape[1]} classes, {clouds.name} has {classes}")
            cells = labels * classes + logits.argmax(1)
            confusion += torch.bincount(cells, minlength=confusion.numel()).view_as(confusion)
    if dist.is_initialized():
        dist.all_reduce(confusion)
    return Accuracy(confusion.cpu(), clouds.class_names)


def forward(model: nn.Module, points: Tensor, precision: str) -> Tensor:
    """Logits (B, classes) float32 of clouds (B, N, 3), computed in "fp32" or "bf16"."""
    with torch.autocast(points.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits: Tensor = model(points)
    return logits.float()
