"""Which states of a run are measured and kept: the last, and the best where there is a validation part."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_off import run_until_saved
from run_folder import Measured, metrics

from pc_ewa.config import Experiment
from pc_ewa.models.checkpoints.read import read_checkpoint
from pc_ewa.train import run

MakeExperiment = Callable[..., Experiment]


@pytest.mark.parametrize(("losses", "tested"), [([2.0, 1.0], 2), ([1.0, 2.0], 4)], ids=["last is best", "first is"])
def test_a_last_state_that_is_the_best_is_measured_once(
    tiny: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], tested: int
) -> None:
    measured = Measured(monkeypatch, losses)
    summary = run(tiny("point_mae", "ewa.num_experts=2"))
    assert measured.sizes == [3, 3, *[12] * tested]  # with its experts and merged
    assert summary is not None
    assert summary["best_step"] == (4 if tested == 2 else 2)
    names = {name.removesuffix("_best") for name in summary if name.startswith("test_") and name.endswith("_best")}
    assert names == {"test_loss_merged", "test_loss_unmerged"}
    last, best = (read_checkpoint(tmp_path / "run" / "checkpoints" / f"merged_{w}.pt") for w in ("last", "best"))
    equal = [torch.equal(last["base_model"][key], best["base_model"][key]) for key in last["base_model"]]
    assert all(equal) == (tested == 2)
    assert last["config"] == best["config"]


@pytest.mark.parametrize("main_metric", ["loss", "accuracy"])
def test_without_a_validation_part_the_last_step_counts(
    tiny: MakeExperiment,
    experiment: MakeExperiment,
    tmp_path: Path,
    tool: Callable[..., Any],
    main_metric: str,
) -> None:
    all_of_train = "data.val_fraction=0"
    summary = run(tiny("point_mae", all_of_train) if main_metric == "loss" else experiment(all_of_train))
    assert summary is not None
    assert (summary["best_step"], summary["val_samples"], summary["val_is_cut_from_train"]) == (None, 0, False)
    assert summary[f"val_{main_metric}"] is summary[f"val_{main_metric}_best"] is None
    assert not any(name.startswith("test_") and name.endswith("_best") for name in summary)
    assert f"test_{main_metric}_merged" in summary
    folder = tmp_path / "run" / "checkpoints"
    # 24 shapes make 3 steps of 8 in each epoch.
    assert sorted(os.listdir(folder)) == ["last.pt", "merged_last.pt", "step-00000003.pt", "step-00000004.pt"]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "data: 24 train, no validation, 12 test samples, 3 classes" in log
    assert "step 3/4 (epoch 1): no validation part, " in log
    assert "no validation split (data.val_fraction=0): the last step counts" in log
    assert "best by validation" not in log
    assert not any("val" in key for line in metrics(tmp_path / "run") for key in line)
    code, _, err = tool("evaluate", folder / "merged_last.pt", "--split", "val")
    assert code == 2
    assert err == "error: there is no validation part: data.val_fraction=0; measure on train or test\n"


def test_a_run_without_a_validation_part_resumes(
    tiny: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny("point_mae", "data.val_fraction=0")
    run_until_saved(2, made, monkeypatch)
    summary = run(made)
    assert summary is not None
    assert (summary["steps"], summary["best_step"]) == (4, None)
    assert run(made) == summary  # and shows its table again
