"""The training objectives. Each turns a batch into a loss, and a dataset into a score."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from pc_ewa.config import Experiment
from pc_ewa.data.parts import parts_of_classes
from pc_ewa.errors import ConfigError
from pc_ewa.eval import EvalSettings, Score, evaluate_classifier, evaluate_pretraining, evaluate_segmenter
from pc_ewa.eval.metric import ACCURACY, INSTANCE_MIOU, LOSS, Metric
from pc_ewa.ewa import balance_loss
from pc_ewa.models import MODELS
from pc_ewa.models.losses import LossOutput
from pc_ewa.train.batches import Batch
from pc_ewa.train.exhibits import show_judgement, show_parts, show_pretraining
from pc_ewa.train.splits import Splits
from pc_ewa.train.tracking import Tracker
from pc_ewa.validation import choose


def with_balance(output: LossOutput, model: nn.Module) -> LossOutput:
    """Add the load-balance loss of the gates in the latest forward pass.

    The terms keep the objective's own `loss` apart from `balance_loss`, so that it compares with runs without gates.
    """
    balance = balance_loss(model)
    terms = output.terms | {"loss": output.loss.detach(), "balance_loss": balance.detach()}
    return output._replace(loss=output.loss + balance, terms=terms)


class Objective(ABC):
    """A training objective: it turns a batch into a loss to minimise, and a dataset into a score.

    Args:
        experiment: the resolved experiment.

    Attributes:
        main_metric: the metric that chooses the best checkpoint.
        settings: the presentation of clouds in evaluation.
    """

    main_metric: ClassVar[Metric]

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.settings = EvalSettings.of(experiment.data, experiment.train)

    @abstractmethod
    def model_arguments(self, splits: Splits) -> dict[str, int]:
        """Return the model arguments that depend on the data, such as the number of classes."""

    def about(self, splits: Splits) -> dict[str, Any]:
        """Return the facts about the training clouds that a prediction needs, in plain types."""
        return {"num_points": splits.train.num_points, "up_axis": splits.train.up_axis}

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, step: int) -> LossOutput:
        """Compute the loss of an augmented batch, after `step` optimizer steps."""

    def after_step(self, model: nn.Module) -> None:
        """Let the model update its own state, such as a momentum encoder, after every optimizer step."""
        if hasattr(model, "after_step"):
            model.after_step()  # type: ignore[operator]

    @abstractmethod
    def evaluate(self, model: nn.Module, splits: Splits, split: str, device: torch.device) -> Score:
        """Measure the model on "train", "val" or "test"."""

    def show(self, tracker: Tracker, step: int, model: nn.Module, splits: Splits) -> None:  # noqa: B027  # may be nothing
        """Show outputs of a trained model on the test split in the trackers. For the main process alone."""


class Classify(Objective):
    """Cross-entropy on the class of each cloud; measured by accuracy."""

    main_metric = ACCURACY

    def model_arguments(self, splits: Splits) -> dict[str, int]:
        """Return one output per class."""
        if len(set(splits.train.labels.tolist())) < 2:
            raise ConfigError(
                f"all {len(splits.train)} training samples are of one class; a classifier needs samples of two or more"
            )
        return {"num_classes": splits.train.num_classes}

    def loss(self, model: nn.Module, batch: Batch, step: int) -> LossOutput:
        """Compute the cross-entropy with `train.label_smoothing`, and the accuracy on the batch."""
        logits = model(batch.points)
        smoothing = self.experiment.train.label_smoothing
        loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=smoothing)
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        return LossOutput(loss, {"accuracy": accuracy}, {"logits": logits})

    def evaluate(self, model: nn.Module, splits: Splits, split: str, device: torch.device) -> Score:
        """Measure the overall accuracy, with one forward pass per cloud."""
        return evaluate_classifier(model, splits.named(split), self.settings, device=device)

    def show(self, tracker: Tracker, step: int, model: nn.Module, splits: Splits) -> None:
        """Show the confusion matrix, the accuracy of each class and the worst mistakes."""
        show_judgement(tracker, step, model, splits, self.settings)


class Segment(Objective):
    """Cross-entropy on the part of each point, given the category of its cloud; measured by instance mIoU."""

    main_metric = INSTANCE_MIOU

    def model_arguments(self, splits: Splits) -> dict[str, int]:
        """Return one output per part, and one more input per category."""
        parts = parts_of_classes(splits.all())
        return {"num_parts": 1 + max(map(max, parts)), "num_categories": splits.train.num_classes}

    def about(self, splits: Splits) -> dict[str, Any]:
        """Return the facts about the clouds, with the parts that each class can have."""
        return super().about(splits) | {"parts_of": parts_of_classes(splits.all())}

    def loss(self, model: nn.Module, batch: Batch, step: int) -> LossOutput:
        """Compute the negative log-likelihood of the true parts, and the share of points that are right."""
        assert batch.parts is not None  # a dataset without parts has no model arguments
        scores = model(batch.points, batch.labels).float()
        loss = F.nll_loss(scores.flatten(0, 1), batch.parts.flatten())
        accuracy = (scores.argmax(-1) == batch.parts).float().mean()
        return LossOutput(loss, {"accuracy": accuracy}, {"scores": scores})

    def evaluate(self, model: nn.Module, splits: Splits, split: str, device: torch.device) -> Score:
        """Measure the mIoU, on the same points every time."""
        parts_of = parts_of_classes(splits.all())
        return evaluate_segmenter(model, splits.named(split), parts_of, self.settings, device=device)

    def show(self, tracker: Tracker, step: int, model: nn.Module, splits: Splits) -> None:
        """Show true and predicted parts."""
        show_parts(tracker, step, model, splits, self.settings)


class Pretrain(Objective):
    """The loss that a self-supervised model brings; measured by the same loss on other clouds."""

    main_metric = LOSS

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        # As in training: points are drawn for a whole batch, so that its size decides the draw.
        data, train = experiment.data, experiment.train
        self.settings = replace(self.settings, sampling=data.sampling, batch_size=train.batch_size)

    def model_arguments(self, splits: Splits) -> dict[str, int]:
        """Return no arguments, because labels are not used."""
        return {}

    def loss(self, model: nn.Module, batch: Batch, step: int) -> LossOutput:
        """Return the model's own loss, and its terms."""
        output: LossOutput = model(batch.points)
        return output

    def evaluate(self, model: nn.Module, splits: Splits, split: str, device: torch.device) -> Score:
        """Average the loss, with the same points and masks every time."""
        return evaluate_pretraining(model, splits.named(split), self.settings, device=device)

    def show(self, tracker: Tracker, step: int, model: nn.Module, splits: Splits) -> None:
        """Show reconstructed patches or predicted tokens."""
        show_pretraining(tracker, step, model, splits, self.settings)


class Tokenize(Pretrain):
    """Pre-training of a discrete VAE, whose temperature and KL weight follow the optimizer steps."""

    def loss(self, model: nn.Module, batch: Batch, step: int) -> LossOutput:
        """Return the model's own loss at this step, and its terms."""
        output: LossOutput = model(batch.points, step=step)
        return output


OBJECTIVES: dict[str, type[Objective]] = {
    "classify": Classify,
    "segment": Segment,
    "pretrain": Pretrain,
    "tokenize": Tokenize,
}


def metric_of(key: str) -> Metric:
    """Return the main metric with this key.

    Raises:
        ConfigError: a key that is not the main metric of an objective.
    """
    known = {objective.main_metric.key: objective.main_metric for objective in OBJECTIVES.values()}
    return choose("metric", key, known)


def create_objective(experiment: Experiment) -> Objective:
    """Make the objective of an experiment.

    Raises:
        ConfigError: an unknown objective, one for another model, or label smoothing without classes.
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
