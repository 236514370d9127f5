"""What a run goes on from, without a kill: its checkpoint, metrics and folder, on the data that it began with."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from cut_off import run_until_saved
from run_folder import assert_equal, repeatable_metrics, repeatable_summary

from pc_ewa.config import Experiment
from pc_ewa.errors import CheckpointError
from pc_ewa.train import run
from pc_ewa.train.run import check
from pc_ewa.train.tracking import Tracker

MakeExperiment = Callable[..., Experiment]


@pytest.mark.parametrize(
    "overrides",
    [
        ("ewa=null",),
        ("train.accumulate=2", "ewa.every=3", "ewa.num_experts=3", "ewa.schedule=cosine", "ewa.stop=0.9"),
        (
            "ewa.init=independent",
            "ewa.layers=all",
            "ewa.partition=sample",
            "augment.rotate=true",
            "augment.jitter=0.01",
        ),
        ("train.precision=bf16",),
        ("average.kind=ema", "ewa.gate.balance_weight=0.01"),
        ("average.kind=swa", "average.start=0", "train.accumulate=2"),
    ],
    ids=["dense", "accumulated", "independent", "bf16", "ema of a gated model", "swa"],
)
def test_variants_resume_exactly(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    whole = experiment(*overrides, f"output={tmp_path}/whole")
    cut = experiment(*overrides, f"output={tmp_path}/cut")
    run(whole)
    run_until_saved(2, cut, monkeypatch)
    torch.manual_seed(123)  # what else the process draws plays no part
    run(cut)
    for name in ("last.pt", "merged_best.pt"):
        contents = [torch.load(tmp_path / f / "checkpoints" / name, weights_only=True) for f in ("whole", "cut")]
        for content in contents:
            content["config"].pop("output")
        assert_equal(*contents)
    assert repeatable_summary(tmp_path / "whole") == repeatable_summary(tmp_path / "cut")


def test_metrics_of_steps_on_both_sides_of_a_kill_are_those_of_the_undisturbed_run(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means are recorded every 10 steps; the checkpoint after step 3 holds the first three of them."""
    rare = ("train.steps=12", "train.save_every=3", "train.eval_every=99")
    run(experiment(*rare, f"output={tmp_path}/whole"))
    run_until_saved(3, experiment(*rare, f"output={tmp_path}/cut"), monkeypatch)
    run(experiment(*rare, f"output={tmp_path}/cut"))
    assert repeatable_metrics(tmp_path / "cut") == repeatable_metrics(tmp_path / "whole")
    assert len(repeatable_metrics(tmp_path / "cut")) >= 2


def test_a_run_goes_on_where_its_folder_was_moved_to(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_until_saved(2, experiment(), monkeypatch)
    (tmp_path / "run").rename(tmp_path / "moved")
    summary = run(experiment(f"output={tmp_path}/moved"))
    assert "resuming after step 2" in capsys.readouterr().out
    assert summary["output"] == f"{tmp_path}/moved"
    (tmp_path / "moved").rename(tmp_path / "again")
    assert run(experiment(f"output={tmp_path}/again"))["output"] == f"{tmp_path}/again"
    printed = capsys.readouterr().out
    assert f"{tmp_path}/moved" not in printed


def test_a_finished_run_is_not_told_as_one_on_other_data(
    experiment: MakeExperiment, toy_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.h5"
    shutil.copy(toy_file, path)
    asked = experiment(f"data.path={path}", "train.steps=1")
    summary = run(asked)
    with h5py.File(path, "a") as file:
        file["label"][:] = (file["label"][:] + 1) % 3
    with pytest.raises(CheckpointError, match="holds a run on other data: "):
        run(asked)
    path.unlink()
    assert run(asked) == summary
    shutil.copy(toy_file, path)
    assert run(asked) == summary


@pytest.mark.parametrize("change", ["labels", "points", "class_names"])
def test_a_run_does_not_go_on_with_other_data(
    experiment: MakeExperiment, toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Under the same path, which is all that the config says."""
    path = tmp_path / "mine.h5"
    shutil.copy(toy_file, path)
    run_until_saved(2, experiment(f"data.path={path}"), monkeypatch)
    with h5py.File(path, "a") as file:
        if change == "labels":
            file["label"][:] = (file["label"][:] + 1) % 3
        elif change == "points":
            file["data"][:] = file["data"][:][::-1]
        else:
            file.attrs["class_names"] = json.dumps(["cube", "sphere", "torus"])
    with pytest.raises(CheckpointError, match="holds a run on other data: .*" + change.partition("_")[0][:5]) as caught:
        run(experiment(f"data.path={path}"))
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="other data"):
        check(experiment(f"data.path={path}"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", 10**6),
        ("step", -5),
        ("step", "x"),
        ("step", None),
        ("step", math.nan),
        ("seconds", None),
        ("best", 1),
        ("meter", {"sums": 1}),
        ("meter", []),
    ],
)
def test_progress_that_no_run_leaves_is_told_in_one_line(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object
) -> None:
    made = experiment()
    run_until_saved(1, made, monkeypatch)
    path = tmp_path / "run" / "checkpoints" / "step-00000001.pt"
    content = torch.load(path, weights_only=True)
    content["progress"][key] = value
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=key) as caught:
        run(made)
    assert "\n" not in str(caught.value)


def test_figures_of_steps_that_are_done_again_are_told_once(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = experiment("train.steps=6", "train.save_every=3")
    interrupt_after_figures(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(made)
    assert [line["step"] for line in repeatable_metrics(tmp_path / "run")] == [2, 4]
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a kill in mid-write
    monkeypatch.undo()
    run(made)
    assert [line["step"] for line in repeatable_metrics(tmp_path / "run")] == [2, 4, 6, 6]


@pytest.mark.parametrize("damage", [lambda c: c.pop("optimizer"), lambda c: c["model"].pop("norm.weight"), dict.clear])
def test_a_checkpoint_that_does_not_fit_the_run_is_told_in_one_line(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Any], object]
) -> None:
    made = experiment()
    run_until_saved(1, made, monkeypatch)
    path = tmp_path / "run" / "checkpoints" / "step-00000001.pt"
    content = torch.load(path, weights_only=True)
    damage(content)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"holds another run: .*; choose another output") as caught:
        run(made)
    assert "\n" not in str(caught.value)


def interrupt_after_figures(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Tracker.metrics

    def record_and_stop(self: Tracker, at: int, values: Any) -> None:
        metrics(self, at, values)
        if at == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Tracker, "metrics", record_and_stop)
