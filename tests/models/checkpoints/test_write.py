"""Weights are written whole or not at all, and with nothing that would be lost."""

import os
from pathlib import Path

import pytest
import torch
from checkpoint_files import CONFIG, EXTRA, NAMES, SUFFIX, check_equal, distinct, save
from torch import nn

from pc_ewa.errors import Error
from pc_ewa.ewa import upcycle
from pc_ewa.models import load_pretrained
from pc_ewa.models.checkpoints.read import read_content, read_weights
from pc_ewa.models.checkpoints.write import save_weights

formats = pytest.mark.parametrize("format", SUFFIX)


@formats
def test_config_names_and_extras_come_back(format: str, tmp_path: Path) -> None:
    content = read_content(save(distinct("point_mae_classifier"), tmp_path, format))
    assert set(content.pop("base_model")) == set(distinct("point_mae_classifier").state_dict())
    assert content == {"config": CONFIG, "class_names": NAMES, **EXTRA}


@formats
@pytest.mark.parametrize(
    ("extra", "fact"),
    [
        ({"config": 3}, "'config'"),
        ({"base_model": {}}, "'base_model'"),
        ({"acc": torch.zeros(1)}, "'acc'.*Tensor"),
        ({"path": Path("a")}, "'path'"),
    ],
    ids=str,
)
def test_extras_that_would_be_lost_are_refused(extra: dict, fact: str, format: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=fact):
        save_weights(nn.Linear(2, 2), tmp_path / f"a.{SUFFIX[format]}", format, {}, [], extra)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


@formats
def test_a_model_with_mixtures_is_not_written(format: str, tmp_path: Path) -> None:
    model = upcycle(distinct("point_mae_classifier"), 2, "all")
    with pytest.raises(ValueError, match=r"3 mixtures.*merge_experts\(\)"):
        save(model, tmp_path, format)
    assert os.listdir(tmp_path) == []


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'onnx'.*official, safetensors"):
        save_weights(nn.Linear(2, 2), tmp_path / "a.onnx", "onnx", {}, [], {})  # type: ignore[arg-type]


@formats
def test_a_write_that_fails_leaves_the_old_file(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    model = distinct("point_mae_classifier", seed=1)
    path = save(model, tmp_path, format)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Error, match=rf"{path}.*No space left"):
        save(distinct("point_mae_classifier", seed=2), tmp_path, format)
    assert os.listdir(tmp_path) == [path.name]
    fresh = distinct("point_mae_classifier")
    load_pretrained(path, fresh)
    check_equal(fresh, model)
    with pytest.raises(Error, match=r"none.*No such file"):
        save(model, tmp_path / "none", format)


@formats
def test_views_and_shared_weights_are_written_as_what_they_are(format: str, tmp_path: Path) -> None:
    """Part of a large tensor, a transposed one, one under two names: files hold the numbers, no memory around them."""
    model, large = nn.Module(), torch.randn(1000, 1000)
    model.part, model.turned = nn.Parameter(large[:2, :3]), nn.Parameter(torch.randn(3, 4).t())
    model.same = model.turned
    path = save(model, tmp_path, format)
    assert path.stat().st_size < 10_000
    state = read_weights(path)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
