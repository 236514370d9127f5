"""A new model is one class and one line in MODELS: config, training with experts, merged file and evaluation follow."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from pc_ewa.config import load_experiment
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import expert_layers
from pc_ewa.models import MODELS, create_model, load_pretrained
from pc_ewa.models.transformer import Mlp
from pc_ewa.train import run
from pc_ewa.train.restore import restore


class PooledPoints(nn.Module):
    """Classify clouds by the maximum over the features of their points."""

    task: ClassVar[str] = "classify"
    expert_ffns: ClassVar[str] = "ffn"
    head_keys: ClassVar[tuple[str, ...]] = ("head",)

    def __init__(self, num_classes: int = 40, *, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.ffn = Mlp(width, 2 * width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        x = self.embed(points)
        return self.head((x + self.ffn(x)).max(dim=1).values)


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(MODELS, "pooled_points", PooledPoints)
    return "pooled_points"


@pytest.fixture
def config(toy_file: Path, tmp_path: Path, name: str) -> Path:
    path = tmp_path / "new.yaml"
    path.write_text(
        f"device: cpu\noutput: {tmp_path}/run\ndata: {{name: hdf5, path: {toy_file}, num_points: 48}}\n"
        f"model: {{name: {name}, width: 12}}\newa: {{num_experts: 2, layers: all}}\n"
        "train: {steps: 4, batch_size: 8}\nwandb: {mode: disabled}\n"
    )
    return path


def test_a_new_model_is_trained_merged_and_evaluated(config: Path, name: str) -> None:
    summary = run(load_experiment(config))
    assert summary is not None
    assert (summary["model"], summary["mixtures"]) == (name, 1)
    merged = Path(summary["output"]) / "checkpoints" / "merged_last.pt"
    restored = restore(merged)
    assert isinstance(restored.model, PooledPoints)
    assert not expert_layers(restored.model)
    score = restored.evaluate("test")
    assert score.metrics()["accuracy"] == pytest.approx(summary["test_accuracy_merged"])


def test_its_backbone_starts_another_one(config: Path, name: str) -> None:
    summary = run(load_experiment(config, ["ewa=null"]))
    assert summary is not None
    model = create_model(name, num_classes=7, width=12)
    report = load_pretrained(Path(summary["output"]) / "checkpoints" / "merged_last.pt", model)
    assert report.missing == ("head.weight", "head.bias")
    assert "ffn.fc1.weight" in report.loaded
    assert model(torch.rand(2, 48, 3)).shape == (2, 7)


def test_its_arguments_are_checked_by_its_signature(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"widht.*width"):
        load_experiment(config, ["model.widht=3"])
    with pytest.raises(ConfigError, match=r"width='wide'"):
        load_experiment(config, ["model.width=wide"])
