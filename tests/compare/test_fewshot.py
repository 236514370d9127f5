"""Few-shot: a run for each fold, resumable fold by fold, and what pc-ewa evaluate makes of them."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch

from pc_ewa.compare import fewshot
from pc_ewa.compare.fewshot import run_fewshot
from pc_ewa.config import Experiment
from pc_ewa.data import write_hdf5
from pc_ewa.errors import ConfigError, DataError, Stopped
from pc_ewa.models.checkpoints.read import read_content
from pc_ewa.train import loop

Tool = Callable[..., Any]
SETTING = ((5, 10),)
NAMES = ["flat", "narrow", "long", "wide", "round"]
STRETCH = [[1, 0.1, 1], [0.2, 0.2, 0.2], [3, 0.5, 0.5], [1, 0.5, 2], [1, 1, 1]]


@pytest.fixture(scope="session")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets with two prepared folds of 5 classes: 10 shapes of each to train, 20 to test."""
    root = tmp_path_factory.mktemp("datasets")
    for fold in range(2):
        labels = np.arange(150) % 5
        points = np.random.RandomState(fold).normal(size=(150, 32, 3)) * np.array(STRETCH)[labels][:, None]
        path = root / "modelnet_fewshot" / f"modelnet_fewshot_5way_10shot_{fold}.h5"
        write_hdf5(path, points, labels, NAMES, up_axis="y", split=[0] * 50 + [1] * 100)
    return root


@pytest.fixture(scope="session")
def config(folds: Path) -> Path:
    """Two steps for each fold, on all its shapes."""
    path = folds / "toy_fewshot.yaml"
    path.write_text(
        f"""
device: cpu
data: {{name: modelnet_fewshot, root: {folds}, num_points: 32, val_fraction: 0}}
model:
  {{name: point_mae_classifier, dim: 16, depth: 2, num_heads: 2, num_groups: 4, group_size: 8, encoder_width: 8}}
train: {{steps: 2, batch_size: 10, eval_every: 50}}
wandb: {{mode: disabled}}
"""
    )
    return path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """The experiments that were run, in order."""
    seen: list[Experiment] = []
    original = fewshot.run

    def noted(experiment: Experiment) -> Any:
        seen.append(experiment)
        return original(experiment)

    monkeypatch.setattr(fewshot, "run", noted)
    return seen


def summary_of(folder: Path, fold: int) -> Path:
    return folder / "5way_10shot" / f"fold{fold}" / "summary.json"


def test_every_fold_is_a_run_of_its_own_and_done_folds_are_read(
    config: Path, folds: Path, tmp_path: Path, runs: list[Experiment]
) -> None:
    output = tmp_path / "runs"
    result, folder = run_fewshot(str(config), [f"output={output}"], None, SETTING, folds=2)
    assert folder == str(output)
    assert [(run.data.arguments["way"], run.data.arguments["shot"], run.data.arguments["fold"]) for run in runs] == [
        (5, 10, 0),
        (5, 10, 1),
    ]
    summaries = [json.loads(summary_of(output, fold).read_text()) for fold in range(2)]
    assert [fold.accuracy_last for fold in result.folds] == [s["test_accuracy_merged"] for s in summaries]
    assert [fold.accuracy_best for fold in result.folds] == [None, None]  # no validation part, so there is no best
    assert [(s["test_samples"], s["steps"], s["val_samples"]) for s in summaries] == [(100, 2, 0)] * 2
    weights = [read_content(path)["base_model"] for path in sorted(output.rglob("merged_last.pt"))]
    assert not torch.equal(weights[0]["norm.weight"], weights[1]["norm.weight"])  # other shapes were learnt
    # Again: nothing trains. Without one of the summaries, or with one more fold asked for, that fold alone does.
    runs.clear()
    again, _ = run_fewshot(str(config), [f"output={output}"], None, SETTING, folds=2)
    assert (again, runs) == (result, [])
    summary_of(output, 1).unlink()
    again, _ = run_fewshot(str(config), [f"output={output}"], None, SETTING, folds=2)
    assert again == result
    assert [run.output for run in runs] == [str(output / "5way_10shot" / "fold1")]
    with pytest.raises(DataError, match="modelnet_fewshot"):
        run_fewshot(str(config), [f"output={output}"], None, SETTING, folds=3)
    # Folds of other settings are not taken for these.
    with pytest.raises(
        ConfigError, match=r"fold0 holds a run with other settings \(train\.lr=0\.0005 there, 0\.1 asked"
    ):
        run_fewshot(str(config), [f"output={output}", "train.lr=0.1"], None, SETTING, folds=2)


def test_a_stopped_fold_goes_on_by_the_same_call(
    config: Path, tmp_path: Path, runs: list[Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, original, steps = tmp_path / "runs", loop.train_step, []

    def step(*arguments: Any) -> Any:
        steps.append(arguments[-1])
        if len(steps) == 3:  # the first step of the second fold
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(Stopped) as stopped:
        run_fewshot(str(config), [f"output={output}"], None, SETTING, folds=2)
    assert stopped.value.number == signal.SIGTERM
    assert [summary_of(output, fold).exists() for fold in range(2)] == [True, False]
    result, _ = run_fewshot(str(config), [f"output={output}"], None, SETTING, folds=2)
    assert steps == [0, 1, 0, 1]
    assert len(runs) == 3
    whole, _ = run_fewshot(str(config), [f"output={tmp_path}/whole"], None, SETTING, folds=2)
    assert result == whole


def test_what_is_no_fewshot_experiment_is_refused(config: Path, toy_config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.name=hdf5; few-shot needs modelnet_fewshot"):
        run_fewshot(str(toy_config), [f"output={tmp_path}/runs"], None, SETTING, 1)
    pretraining = "model={name: point_mae, dim: 16, depth: 2, num_heads: 2, num_groups: 4, group_size: 8}"
    with pytest.raises(ConfigError, match=r"model\.name=point_mae; few-shot needs a classifier"):
        run_fewshot(str(config), [f"output={tmp_path}/runs", pretraining], None, SETTING, 1)
    assert os.listdir(tmp_path) == []


# As the command line.


def test_the_tool_prints_the_table_and_writes_it(
    config: Path, tool: Tool, trained: Any, tmp_path: Path, runs: list[Experiment]
) -> None:
    """From a checkpoint: every fold starts from it, with a head for its own classes."""
    checkpoint, output = trained.folder / "checkpoints" / "merged_last.pt", tmp_path / "runs"
    arguments = ("evaluate", checkpoint, "--protocol", "fewshot", "--config", config, f"output={output}")
    arguments = (*arguments, "--folds", "2", "--setting", "5x10", "--setting", "5x10")  # asked twice is run once
    code, out, err = tool(*arguments)
    assert (code, err) == (0, "")
    assert [run.init_from for run in runs] == [str(checkpoint)] * 2
    assert out.count(f"\nweights: {checkpoint}") == 2
    content = json.loads((output / "fewshot.json").read_text())
    assert out.endswith(f"\n\nwritten to {output}/fewshot.json\n")
    assert (content["checkpoint"], content["protocol"], content["split"]) == (str(checkpoint), "fewshot", "test")
    accuracies = [json.loads(summary_of(output, fold).read_text())["test_accuracy_merged"] for fold in range(2)]
    assert content["accuracy"] == content["5way_10shot_accuracy"] == mean(accuracies)
    assert content["5way_10shot_std"] == pytest.approx(stdev(accuracies))
    assert content["5way_10shot_folds"] == 2
    assert content["samples"] == 200
    assert content["missing"] == ["5way_20shot", "10way_10shot", "10way_20shot"]
    assert [(f["way"], f["shot"], f["fold"], f["accuracy_last"], f["accuracy_best"]) for f in content["folds"]] == [
        (5, 10, fold, accuracies[fold], None) for fold in range(2)
    ]
    table = out.partition("few-shot accuracy, mean ± sample standard deviation over folds\n")[2]
    heading, first, *missing = table.splitlines()[:5]
    assert heading.split() == ["setting", "folds", "last", "state", "best", "state"]
    spread = ["2", f"{mean(accuracies):.2%}", "±", f"{stdev(accuracies):.2%}", "-"]
    assert first.split() == ["5-way", "10-shot", *spread]
    assert all(line.endswith("missing") for line in missing)
    # Again, nothing is trained; the JSON may go elsewhere.
    runs.clear()
    code, out, err = tool(*arguments, "--json", tmp_path / "table.json")
    assert (code, err, runs) == (0, "", [])
    assert json.loads((tmp_path / "table.json").read_text()) == content


def test_random_is_from_scratch_whatever_the_config_starts_from(
    config: Path, tool: Tool, trained: Any, tmp_path: Path, runs: list[Experiment]
) -> None:
    started = tmp_path / "started.yaml"
    started.write_text(f"init_from: {trained.folder}/checkpoints/merged_last.pt\n{config.read_text()}")
    fewshot = ("--protocol", "fewshot", "--folds", "1", "--setting", "5x10")
    code, out, err = tool("evaluate", "random", "--config", started, *fewshot, f"output={tmp_path}/runs")
    assert (code, err) == (0, "")
    assert [run.init_from for run in runs] == [None]
    assert "weights:" not in out
    assert json.loads((tmp_path / "runs" / "fewshot.json").read_text())["checkpoint"] == "random"


def test_the_tool_says_that_the_same_command_goes_on(
    config: Path, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.train_step

    def step(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    fewshot = ("--protocol", "fewshot", "--folds", "1", "--setting", "5x10")
    arguments = ("evaluate", "random", "--config", config, *fewshot, f"output={tmp_path}/runs")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", step)
        code, out, err = tool(*arguments)
    assert (code, err) == (128 + signal.SIGINT, "")
    assert "saved; the same command goes on from here" in out
    code, out, err = tool(*arguments)
    assert (code, err) == (0, "")
    assert "resuming after step 1" in out


def test_a_checkpoint_that_does_not_fit_stops_before_the_first_fold(
    config: Path, tool: Tool, trained: Any, tmp_path: Path
) -> None:
    fewshot = ("--protocol", "fewshot", "--config", config, f"output={tmp_path}/runs")
    code, out, err = tool("evaluate", tmp_path / "none.pt", *fewshot)
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path}/none.pt is not a file; check the path of the checkpoint\n"
    code, out, err = tool("evaluate", trained.folder / "checkpoints" / "last.pt", *fewshot)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "it holds mixtures of experts; merge it first" in err
    assert os.listdir(tmp_path) == []
