"""The objectives: each turns a batch into a loss to minimise, and a dataset into a score."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.config import Experiment
from pc_ewa.data.parts import parts_of_classes
from pc_ewa.errors import ConfigError
from pc_ewa.eval import Score, evaluate_classifier, evaluate_pretraining, evaluate_segmenter
from pc_ewa.ewa import balance_loss
from pc_ewa.models import MODELS
from pc_ewa.train.batches import Batch
from pc_ewa.train.splits import Splits
from pc_ewa.validation import choose


class Loss(NamedTuple):
    """The loss to minimise, and detached metrics to log."""

    value: Tensor
    metrics: dict[str, Tensor]


def with_balance(loss: Loss, model: nn.Module) -> Loss:
    """Add what gates pay for unequal groups in the latest forward of the model, and its figure `balance_loss`."""
    balance = balance_loss(model)
    return Loss(loss.value + balance, loss.metrics | {"balance_loss": balance.detach()})


class Objective(Protocol):
    """What the loop asks of an objective."""

    main_metric: str  # the figure of a score that chooses the best checkpoint
    higher_is_better: bool

    def model_arguments(self, splits: Splits) -> dict[str, int]:
        """What the data decides about the model."""

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Loss:
        """Loss of an augmented batch, after `step` optimizer steps."""

    def after_step(self, model: nn.Module) -> None:
        """Do what a model does besides learning, once after every optimizer step."""

    def evaluate(self, model: nn.Module, splits: Splits, split: str, device: torch.device) -> Score:
        """Measure the model on "train", "val" or "test"."""


class Classify:
    """Cross-entropy on the class of each cloud; measured by accuracy."""

    main_metric, higher_is_better = "accuracy", True

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def model_arguments(self, splits: Splits) -> dict[str, int]:
        """One output per class."""
        return {"num_classes": splits.train.num_classes}

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Loss:
        """Cross-entropy, smoothed if the experiment says so, and the accuracy on the batch."""
        logits = model(batch.points)
        smoothing = self.experiment.train.label_smoothing
        value = F.cross_entropy(logits.float(), batch.labels, label_smoothing=smoothing)
        return Loss(value, {"loss": value.detach(), "accuracy": (logits.argmax(1) == batch.labels).float().mean()})

    def after_step(self, model: nn.Module) -> None:
        """Nothing."""

    def evaluate(self, model: nn.Module, splits: Splits, split: str, device: torch.device) -> Score:
        """Overall accuracy, one look at each cloud."""
        data, train = self.experiment.data, self.experiment.train
        return evaluate_classifier(
            model,
            splits.named(split),
            data.num_points,
            normalize=data.normalize,
            batch_size=2 * train.batch_size,
            device=device,
            precision=train.precision,
        )


class Segment:
    """Cross-entropy on the part of each point, given the category of its cloud; measured by instance mIoU."""

    main_metric, higher_is_better = "instance_miou", True

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def model_arguments(self, splits: Splits) -> dict[str, int]:
        """One output per part, one more input per category."""
        parts = parts_of_classes(splits.all())
        return {"num_parts": 1 + max(map(max, parts)), "num_categories": splits.train.num_classes}

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Loss:
        """Negative log-likelihood of the true parts, and the share of points that are right."""
        assert batch.parts is not None  # a dataset without parts has no model arguments
        scores = model(batch.points, batch.labels).float()
        value = F.nll_loss(scores.flatten(0, 1), batch.parts.flatten())
        return Loss(value, {"loss": value.detach(), "accuracy": (scores.argmax(-1) == batch.parts).float().mean()})

    def after_step(self, model: nn.Module) -> None:
        """Nothing."""

    def evaluate(self, model: nn.Module, splits: Splits, split: str, device: torch.device) -> Score:
        """MIoU on the same points every time."""
        data, train = self.experiment.data, self.experiment.train
        return evaluate_segmenter(
            model,
            splits.named(split),
            parts_of_classes(splits.all()),
            data.num_points,
            normalize=data.normalize,
            batch_size=2 * train.batch_size,
            device=device,
            precision=train.precision,
        )


class Pretrain:
    """The loss that a self-supervised model brings; measured by the same loss on other clouds."""

    main_metric, higher_is_better = "loss", False

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def model_arguments(self, splits: Splits) -> dict[str, int]:
        """Nothing: labels are not looked at."""
        return {}

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Loss:
        """The model's own loss, and its terms."""
        return self._loss(*model(batch.points))

    def after_step(self, model: nn.Module) -> None:
        """Let the model move its momentum encoder, if it has one."""
        if hasattr(model, "after_step"):
            model.after_step()  # type: ignore[operator]

    def evaluate(self, model: nn.Module, splits: Splits, split: str, device: torch.device) -> Score:
        """Mean loss, with the same points and masks every time."""
        data, train = self.experiment.data, self.experiment.train
        return evaluate_pretraining(
            model,
            splits.named(split),
            data.num_points,
            sampling=data.sampling,
            normalize=data.normalize,
            batch_size=train.batch_size,
            device=device,
            precision=train.precision,
        )

    def _loss(self, loss: Tensor, parts: dict[str, Tensor]) -> Loss:
        terms = {name: part.detach().float() for name, part in parts.items() if part.dim() == 0}
        return Loss(loss, {"loss": loss.detach(), **terms})


class Tokenize(Pretrain):
    """Pre-training of a discrete VAE, whose temperature and KL weight follow the optimizer steps."""

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Loss:
        """The model's own loss at this step, and its terms."""
        return self._loss(*model(batch.points, step=step))


OBJECTIVES: dict[str, Callable[[Experiment], Objective]] = {
    "classify": Classify,
    "segment": Segment,
    "pretrain": Pretrain,
    "tokenize": Tokenize,
}


def create_objective(experiment: Experiment) -> Objective:
    """Make the objective of an experiment.

    Raises:
        ConfigError: one that there is not, or that is not for this model.
    """
    own = MODELS[experiment.model.name].task
    objective = choose("task", experiment.task or own, OBJECTIVES)(experiment)
    if experiment.task not in (None, own):
        raise ConfigError(
            f"task={experiment.task} with model.name={experiment.model.name}, which is made to {own}; leave task out"
        )
    if experiment.train.label_smoothing and own != "classify":
        raise ConfigError(f"train.label_smoothing={experiment.train.label_smoothing} is for classifiers; leave it out")
    return objective
