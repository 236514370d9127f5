"""Checkpoint files in the layouts of others, and what loading one does to a model."""

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import small, snapshot
from torch import Tensor, nn

from pc_ewa.errors import CheckpointError
from pc_ewa.models import load_pretrained
from pc_ewa.models.checkpoints.write import save_weights

State = dict[str, Tensor]


def save_base_model(state: State, path: Path) -> None:
    """Save as Point-MAE and Point-BERT do, here under DataParallel and with a metric that is a numpy number."""
    torch.save(
        {
            "base_model": {f"module.{key}": value for key, value in state.items()},
            "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 5e-4, "params": [0]}]},
            "epoch": 299,
            "metrics": {"acc": np.float64(92.1)},
            "best_metrics": {"acc": torch.tensor(93.2)},
        },
        path,
    )


def check_loaded(model: nn.Module, expected: State, untouched: State, kept: tuple[str, ...] = ()) -> None:
    """Check that the model has the weights of the file, and its earlier ones under the keys that it `kept`."""
    for key, value in model.state_dict().items():
        assert torch.equal(value, (untouched if key in kept else expected)[key]), key


def check_refused(path: Path, model: nn.Module, *facts: str) -> None:
    """Check that a file is refused in one line with these facts, and that the model is as it was."""
    before, layout = snapshot(model), repr(model)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(path, model)
    message = str(caught.value)
    for fact in (str(path), *facts):
        assert fact in message
    assert "\n" not in message
    assert "\x1b" not in message
    assert repr(model) == layout
    check_loaded(model, before, {})


CONFIG = {"seed": 3, "model": {"name": "any", "dim": 12, "ratios": [0.25, 0.45]}, "ewa": None}
NAMES = ["chair", 'table "round"', "Stühle"]
EXTRA = {"epoch": 7, "metrics": {"acc": 0.5}, "note": "ours"}
SUFFIX = {"official": "pth", "safetensors": "safetensors"}  # by format


def distinct(name: str, seed: int = 0, **arguments: Any) -> nn.Module:
    """Build a small model whose every weight and statistic differs from that of another seed."""
    return copy.deepcopy(_distinct(name, seed, **arguments))


@functools.cache
def _distinct(name: str, seed: int, **arguments: Any) -> nn.Module:
    model = small(name, seed, **arguments)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))
    return model


def save(model: nn.Module, folder: Path, format: str) -> Path:
    """Write a model in a format, with config, names and extras."""
    path = folder / f"merged.{SUFFIX[format]}"
    save_weights(model, path, format, CONFIG, NAMES, EXTRA)  # type: ignore[arg-type]
    return path


def check_equal(model: nn.Module, expected: nn.Module) -> None:
    """Check that two models have the same keys, types and weights."""
    for (key, value), (other, wanted) in zip(model.state_dict().items(), expected.state_dict().items(), strict=True):
        assert key == other
        assert value.dtype == wanted.dtype
        assert torch.equal(value, wanted), key
