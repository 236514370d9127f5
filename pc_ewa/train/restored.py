"""A model with its weights and its experiment: evaluate, merge and save it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pc_ewa.config import Data, Experiment
from pc_ewa.data.digest import Digest, describe_change
from pc_ewa.errors import CheckpointError, ConfigError
from pc_ewa.eval import EvalSettings, Score, evaluate_linear_svm, evaluate_voted
from pc_ewa.eval.errors import WrongSample, evaluate_errors
from pc_ewa.ewa import expert_layers, has_gate, merge_experts, routed_experts
from pc_ewa.models.base import Preprocessing
from pc_ewa.models.checkpoints.write import WeightsFormat, save_gated, save_weights
from pc_ewa.streams import stream
from pc_ewa.train.batches import ROUTED
from pc_ewa.train.distributed import choose_device
from pc_ewa.train.objectives import Classify, create_objective
from pc_ewa.train.setup import digest_of
from pc_ewa.train.splits import Splits, load_splits

Split = Literal["train", "val", "test"]

OTHER_DATA = "these are not the data that it was trained with: "


@dataclass
class Restored:
    """A model with its weights, and the experiment it came from.

    Attributes:
        experiment: the experiment.
        class_names: name of each class; empty for a model that uses no labels.
        model_arguments: the model arguments that depend on the data.
        model: the model.
        clouds: the result of `Objective.about` on the training data; empty if unknown.
        data: digest of the data of its training. None if the file has none.
        notes: lines on the file, for the user.
    """

    experiment: Experiment
    class_names: list[str]
    model_arguments: dict[str, int]
    model: nn.Module
    clouds: dict[str, Any] = field(default_factory=dict)
    data: Digest | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def mixtures(self) -> int:
        """Number of mixtures of experts in the model."""
        return len(expert_layers(self.model))

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def merge(self) -> None:
        """Merge the mixtures, in place.

        Raises:
            CheckpointError: gated mixtures.
        """
        self._check_no_gate()
        merge_experts(self.model)

    def save(self, path: str | Path, format: WeightsFormat = "official") -> None:
        """Write the merged model with its config and class names."""
        known = (self.class_names, self.model_arguments, self.clouds, self.data)
        save_merged(self.model, self.experiment, *known, Path(path), format)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing from a cloud of any size to the input that the model was trained on."""
        settings, options = create_objective(self.experiment).settings, self.experiment.data.arguments
        stored = self.clouds.get("num_points", options.get("stored_points"))
        up_axis = self.clouds.get("up_axis", options.get("up_axis"))
        return Preprocessing(settings.num_points, stored, settings.sampling, settings.normalize, up_axis)

    def splits(self) -> Splits:
        """Load the experiment's dataset. A note says if it is not that of the training.

        Raises:
            CheckpointError: a supervised model of other classes, or of fewer parts.
        """
        splits = load_splits(self.experiment.data, self.experiment.seed)
        clouds = splits.test
        if self.model_arguments and list(clouds.class_names) != self.class_names:
            raise CheckpointError(
                f"the checkpoint knows {len(self.class_names)} classes ({', '.join(self.class_names[:3])}, ...), "
                f"{self.experiment.data.name} has {clouds.num_classes} ({', '.join(clouds.class_names[:3])}, ...)"
            )
        if "num_parts" in self.model_arguments:
            known = self.model_arguments["num_parts"]
            parts = create_objective(self.experiment).model_arguments(splits)["num_parts"]
            if parts > known:
                raise CheckpointError(f"the checkpoint knows {known} parts, {self.experiment.data.name} has {parts}")
        if (change := describe_change(self.data, digest_of(splits))) and OTHER_DATA + change not in self.notes:
            self.notes.append(OTHER_DATA + change)
        return splits

    def ask_data(self) -> None:
        """Fill in `clouds` from the dataset, for a file of an earlier version. Raises the errors of `splits`."""
        self.clouds = create_objective(self.experiment).about(self.splits())

    def evaluate(self, split: Split, routed: bool = False) -> Score:
        """Measure on a split of the experiment's dataset. `routed` routes tokens to experts at random, as in training.

        Raises:
            CheckpointError: a dataset that does not fit, or `routed` with gated mixtures.
        """
        if routed:
            self._check_no_gate()
        splits, device = self.splits(), self.place()
        objective = create_objective(self.experiment)

        def measure(model: nn.Module) -> Score:
            return objective.evaluate(model, splits, split, device)

        return evaluate_routed(self.model, measure, self.experiment.seed) if routed else measure(self.model)

    def vote(self, split: Split, votes: int) -> Score:
        """Measure a classifier by the mean of its logits over several draws of each cloud, see `evaluate_voted`.

        Raises:
            ConfigError: a model that is not a classifier.
            CheckpointError: a dataset that does not fit.
        """
        experiment = self.experiment
        if not isinstance(create_objective(experiment), Classify):
            raise ConfigError(f"votes={votes} with {experiment.model.name}; only classifiers vote")
        clouds, device = self.splits().named(split), self.place()
        settings, augment = EvalSettings.of(experiment.data, experiment.train), experiment.augment
        scale, shift = augment.scale or (1.0, 1.0), augment.shift
        return evaluate_voted(
            self.model, clouds, settings, votes=votes, seed=experiment.seed, scale=scale, shift=shift, device=device
        )

    def errors(self, split: Split) -> tuple[Score, list[WrongSample]]:
        """Measure a classifier and list the samples that it gets wrong, see `evaluate_errors`.

        Raises:
            ConfigError: a model that is not a classifier.
            CheckpointError: a dataset that does not fit.
        """
        objective = create_objective(self.experiment)
        if not isinstance(objective, Classify):
            raise ConfigError(
                f"--errors with {self.experiment.model.name}; only classifiers take one class for another"
            )
        return evaluate_errors(self.model, self.splits().named(split), objective.settings, device=self.place())

    @property
    def svm_data(self) -> Data:
        """The dataset of the linear SVM: that of the probe, or of the experiment if it has no probe."""
        return self.experiment.probe.data if self.experiment.probe else self.experiment.data

    def linear_svm(self, split: Split) -> Score:
        """Measure the frozen features by a linear SVM, see `evaluate_linear_svm`.

        Raises:
            ConfigError: a model without features.
            DataError: a dataset that is missing or does not fit.
        """
        splits = load_splits(self.svm_data, self.experiment.seed)
        settings, device = EvalSettings.of(self.svm_data, self.experiment.train), self.place()
        return evaluate_linear_svm(self.model, splits.to_fit(split), splits.named(split), settings, device=device)

    def place(self) -> torch.device:
        """Put the model on the experiment's device, in evaluation mode."""
        device = choose_device(self.experiment.device)
        self.model.to(device).eval()
        return device

    def _check_no_gate(self) -> None:
        if has_gate(self.model):
            raise CheckpointError(
                "its mixtures are gated: each token needs its own expert at inference too, so that there is nothing to "
                "merge; use the checkpoint as it is: pc-ewa evaluate CHECKPOINT"
            )


def at_inference(model: nn.Module) -> nn.Module:
    """Return the model for inference: a merged copy, or the model itself if it has gates."""
    return model if has_gate(model) else merge_experts(copy.deepcopy(model))


def evaluate_routed(model: nn.Module, measure: Callable[[nn.Module], Score], seed: int, rank: int = 0) -> Score:
    """Measure a model that routes each token to one expert at random, as in training. The seed decides the routes."""
    torch.manual_seed(stream(seed, ROUTED, rank))
    with routed_experts(model):
        return measure(model)


def save_merged(
    model: nn.Module,
    experiment: Experiment,
    class_names: list[str],
    model_arguments: dict[str, int],
    clouds: dict[str, Any],
    data: Digest | None,
    path: Path,
    format: WeightsFormat = "official",
) -> None:
    """Write a dense model in the official layout or as safetensors, with the metadata that `restore` needs.

    A model with gated mixtures is written in a layout that only `restore` reads, whatever the format.
    """
    config = experiment.model_dump(mode="json")
    extra = {"model_arguments": model_arguments, "clouds": clouds, "data": data}
    if has_gate(model):
        save_gated(model, path, config, class_names, extra)
    else:
        save_weights(model, path, format, config, class_names, extra)
