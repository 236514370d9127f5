"""Predictions of a classifier for every shape, for pictures of mistakes and for the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError
from pc_ewa.eval import Accuracy, EvalSettings, extract_features
from pc_ewa.eval.batches import evaluation


class Judged(NamedTuple):
    """The prediction for one shape.

    Attributes:
        shape: its position in the dataset.
        true: its class.
        predicted: the class with the highest probability.
        probability: of the predicted class.
    """

    shape: int
    true: int
    predicted: int
    probability: float


@dataclass(frozen=True, eq=False)
class Judgement:
    """Predictions for all shapes of a dataset.

    Attributes:
        probabilities: (N, classes).
        labels: the true classes (N,).
        class_names: names of the classes.
    """

    probabilities: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def mistakes(self) -> list[Judged]:
        """Return the misclassified shapes, the most certain first."""
        return [judged for judged in self._ordered() if judged.true != judged.predicted]

    def hits(self) -> list[Judged]:
        """Return the correctly classified shapes, the most certain first."""
        return [judged for judged in self._ordered() if judged.true == judged.predicted]

    @property
    def accuracy(self) -> Accuracy:
        """The confusion matrix and the accuracies computed from it."""
        classes = len(self.class_names)
        # Each pair (true, predicted) is a cell of the flattened matrix: counting cells counts pairs.
        cells = self.labels * classes + self.probabilities.argmax(1)
        return Accuracy(torch.bincount(cells, minlength=classes**2).view(classes, classes), self.class_names)

    def _ordered(self) -> list[Judged]:
        best, predicted = self.probabilities.max(1)
        order = best.argsort(descending=True, stable=True).tolist()
        return [Judged(i, int(self.labels[i]), int(predicted[i]), float(best[i])) for i in order]


def judge(model: nn.Module, clouds: Clouds, settings: EvalSettings) -> Judgement:
    """Classify every shape once, presented as in `evaluate_classifier`, and keep the probabilities.

    Raises:
        ConfigError: a model that is not a classifier, or whose number of classes is not that of the dataset.
    """
    if getattr(model, "task", "") != "classify":
        raise ConfigError(f"{type(model).__name__} is not a classifier; choose one")
    with evaluation(model, clouds, settings, shared=False) as batches:
        rows = [model(batch.points).float().softmax(dim=1).cpu() for batch in batches]
    probabilities = torch.cat(rows)
    if probabilities.shape[1] != clouds.num_classes:
        raise ConfigError(
            f"the model has {probabilities.shape[1]} classes, {clouds.name} has {clouds.num_classes}; "
            "choose the dataset that the model was trained on"
        )
    return Judgement(probabilities, clouds.labels.cpu(), clouds.class_names)


def nearest_training(
    model: nn.Module, clouds: Clouds, training: Clouds, settings: EvalSettings, shapes: Sequence[int]
) -> list[int]:
    """Return the nearest training shape of each given shape, by the cosine similarity of their features."""
    known = F.normalize(extract_features(model, training, settings, title="training shapes"), dim=1)
    asked = F.normalize(extract_features(model, clouds.select(list(shapes)), settings), dim=1)
    return (asked @ known.T).argmax(dim=1).tolist()
