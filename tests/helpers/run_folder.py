"""What a run folder holds, and stand-ins for parts of a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pc_ewa.data import Clouds
from pc_ewa.eval import EvalSettings
from pc_ewa.eval.pretraining import PretrainingLoss
from pc_ewa.train import objectives


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Measured:
    """Stands in for the evaluation of a loss: notes the parts by their size, and answers with these losses on val."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
        self.sizes: list[int] = []

        def measured(model: nn.Module, clouds: Clouds, settings: EvalSettings, **options: Any) -> PretrainingLoss:
            self.sizes.append(len(clouds))
            return PretrainingLoss({"loss": losses[self.sizes.count(3) - 1] if len(clouds) == 3 else 5.0}, len(clouds))

        monkeypatch.setattr(objectives, "evaluate_pretraining", measured)


# What differs from one run of the same experiment to the next.
UNEQUAL = ("seconds", "output", "peak_memory")


def repeatable_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what differs from one run to the next."""
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in metrics(folder)]


def repeatable_summary(folder: Path) -> dict[str, Any]:
    """The summary, likewise."""
    content = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in content.items() if key not in UNEQUAL}


def assert_equal(one: object, other: object) -> None:
    """Compare nested checkpoints, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        for key in one:
            if key not in UNEQUAL:
                assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert isinstance(other, list)
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other
