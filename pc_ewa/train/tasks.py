"""The objectives: each turns a batch into a loss to minimise, and a dataset into a score to maximise."""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.config import Experiment
from pc_ewa.data import Clouds
from pc_ewa.eval import Accuracy, evaluate_classifier


class Loss(NamedTuple):
    """The loss to minimise, and detached figures to log."""

    value: Tensor
    figures: dict[str, Tensor]


class Task(Protocol):
    """What the loop asks of an objective."""

    def model_arguments(self, train: Clouds) -> dict[str, int]:
        """What the data decides about the model."""

    def loss(self, model: nn.Module, points: Tensor, labels: Tensor) -> Loss:
        """Loss of augmented clouds (B, N, 3)."""

    def evaluate(self, model: nn.Module, clouds: Clouds, device: torch.device) -> Accuracy:
        """Measure the model; `overall` of the result chooses the best checkpoint."""


class Classify:
    """Cross-entropy on the class of each cloud; measured by accuracy."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def model_arguments(self, train: Clouds) -> dict[str, int]:
        """One output per class."""
        return {"num_classes": train.num_classes}

    def loss(self, model: nn.Module, points: Tensor, labels: Tensor) -> Loss:
        """Cross-entropy, smoothed if the experiment says so, and the accuracy on the batch."""
        logits = model(points)
        value = F.cross_entropy(logits.float(), labels, label_smoothing=self.experiment.train.label_smoothing)
        return Loss(value, {"loss": value.detach(), "accuracy": (logits.argmax(1) == labels).float().mean()})

    def evaluate(self, model: nn.Module, clouds: Clouds, device: torch.device) -> Accuracy:
        """Overall accuracy, one look at each cloud."""
        data, train = self.experiment.data, self.experiment.train
        return evaluate_classifier(
            model,
            clouds,
            data.num_points,
            normalize=data.normalize,
            batch_size=2 * train.batch_size,
            device=device,
            precision=train.precision,
        )


TASKS: dict[str, type[Classify]] = {"classify": Classify}
