"""A linear SVM on the features during pre-training."""

from typing import Literal

import torch
from torch import nn

from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.eval import EvalSettings, LinearSVMResult, evaluate_linear_svm
from pc_ewa.train.splits import load_splits


class SVMProbe:
    """A linear SVM on frozen features of the training samples of another dataset.

    During pre-training it is measured on a validation split cut from them, so that no choice depends on the test
    samples. Those are measured once at the end, by an SVM on all training samples.

    Args:
        experiment: an experiment with a `probe` section.
        device: where features are computed.

    Raises:
        Error: data that is missing or does not fit.
    """

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        assert experiment.probe
        self.data, self.experiment, self.device = experiment.probe.data, experiment, device
        try:
            self.splits = load_splits(self.data, experiment.seed)
        except DataError as error:
            raise DataError(f"probe.data: {error}; or do without the probe: probe=null") from None
        if self.splits.val is None:
            raise ConfigError("probe.data.val_fraction=0; the probe is measured on a validation part while training")

    def measure(self, model: nn.Module, split: Literal["val", "test"]) -> LinearSVMResult:
        """Fit on the training samples and measure on a split that is not among them."""
        settings = EvalSettings.of(self.data, self.experiment.train)
        train, test = self.splits.to_fit(split), self.splits.named(split)
        return evaluate_linear_svm(model, train, test, settings, device=self.device)
