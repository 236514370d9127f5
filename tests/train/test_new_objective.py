"""A new objective with a new metric is one file and one line: here both are this test."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from pc_ewa.compare.report import as_markdown
from pc_ewa.compare.results import collect_folders
from pc_ewa.config import Experiment, load_experiment
from pc_ewa.errors import ConfigError
from pc_ewa.eval.metric import Metric
from pc_ewa.models import MODELS, PointMAEClassifier
from pc_ewa.models.losses import LossOutput
from pc_ewa.train import run
from pc_ewa.train.batches import Batch
from pc_ewa.train.objectives import OBJECTIVES, Objective
from pc_ewa.train.splits import Splits

Tool = Callable[..., Any]


@dataclass
class Height:
    """A score of its own."""

    error: float
    samples: int

    def metrics(self) -> dict[str, float]:
        return {"height_error": self.error}

    def describe(self) -> str:
        return f"height error {self.error:.3f}"

    def table(self) -> str:
        return self.describe()

    def to_json(self) -> dict[str, Any]:
        return self.metrics()


class EstimateHeight(Objective):
    """Predict how high each cloud reaches."""

    main_metric = Metric("height_error", "height error", higher_is_better=False, percent=False)

    def model_arguments(self, splits: Splits) -> dict[str, int]:
        return {"num_classes": 1}

    def loss(self, model: nn.Module, batch: Batch, step: int) -> LossOutput:
        heights = model(batch.points)[:, 0]
        return LossOutput((heights - batch.points[..., 1].amax(1)).square().mean(), {}, {"heights": heights})

    def evaluate(self, model: nn.Module, splits: Splits, split: str, device: torch.device) -> Height:
        clouds = splits.named(split)
        points, _ = self.settings.present(clouds.batch(range(len(clouds)))[0])
        with torch.no_grad():
            error = (model.eval()(points)[:, 0] - points[..., 1].amax(1)).abs().mean().item()
        return Height(error, len(clouds))


class HeightModel(PointMAEClassifier):
    task: ClassVar[str] = "height"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, toy_config: Path, tmp_path: Path) -> Callable[..., Experiment]:
    monkeypatch.setitem(MODELS, "height_model", HeightModel)
    monkeypatch.setitem(OBJECTIVES, "height", EstimateHeight)
    return lambda *overrides: load_experiment(
        toy_config, ["model.name=height_model", f"output={tmp_path}/run", *overrides]
    )


def test_it_trains_merges_and_is_reported(made: Callable[..., Experiment], tmp_path: Path, tool: Tool) -> None:
    summary = run(made())
    assert summary is not None
    assert summary["main_metric"] == "height_error"
    log = (tmp_path / "run" / "log.txt").read_text()
    value = summary["test_height_error_merged"]
    assert f"{value:.5g}" in next(line for line in log.splitlines() if line.startswith("test height error, last step"))
    assert "validation height error" in log

    code, out, err = tool("evaluate", tmp_path / "run" / "checkpoints" / "merged_last.pt")
    assert (code, err) == (0, "")
    assert f"height error {value:.3f}" in out


def test_its_lowest_value_is_the_best_and_compares(made: Callable[..., Experiment], tmp_path: Path) -> None:
    for seed in (0, 1):
        for name, overrides in (("ewa", ()), ("dense", ("ewa=null",))):
            summary = run(made(f"seed={seed}", f"output={tmp_path}/{name}_{seed}", *overrides))
            assert summary is not None
            assert summary["val_height_error_best"] <= summary["val_height_error"]
    results = collect_folders([tmp_path / name for name in ("dense_0", "dense_1", "ewa_0", "ewa_1")])
    assert (results["main_metric"], results["higher_is_better"]) == ("height_error", False)
    assert "height error" in as_markdown(results)


def test_a_metric_that_nobody_knows_is_refused_where_its_direction_counts(
    made: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        run(made(f"seed={seed}", f"output={tmp_path}/{seed}"))
    monkeypatch.delitem(OBJECTIVES, "height")
    with pytest.raises(ConfigError, match="unknown metric 'height_error'"):
        collect_folders([tmp_path / "0", tmp_path / "1"])
