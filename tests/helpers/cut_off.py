"""Runs that end in the middle."""

from collections.abc import Mapping

import pytest

from pc_ewa.config import Experiment
from pc_ewa.train import run
from pc_ewa.train.tracking import Tracker


def run_until(step: int, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the metrics of a step are recorded; Ctrl-C comes then."""
    metrics = Tracker.metrics

    def cut_off(self: Tracker, at: int, values: Mapping[str, float]) -> None:
        metrics(self, at, values)
        if at == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "metrics", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(experiment)
