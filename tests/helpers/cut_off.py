"""Runs that end in the middle."""

from collections.abc import Callable
from typing import Any

import pytest

from pc_ewa.config import Experiment
from pc_ewa.train import run
from pc_ewa.train.run_folder import Checkpoints
from pc_ewa.train.tracking import Tracker


def run_until(step: int, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the metrics of a step are recorded; Ctrl-C comes then."""
    _run_until_called(Tracker, "metrics", lambda at, values: at == step, experiment, monkeypatch)


def run_until_saved(step: int, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the checkpoint of a step is written; Ctrl-C comes then."""
    _run_until_called(Checkpoints, "save", lambda content, at, best: at == step, experiment, monkeypatch)


def _run_until_called(
    owner: type, name: str, last: Callable[..., bool], experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = getattr(owner, name)

    def cut_off(self: Any, *arguments: Any) -> None:
        method(self, *arguments)
        if last(*arguments):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(experiment)
