"""The linear SVM that watches pre-training: when, on what, and that it touches nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_folder import Measured, metrics
from torch import nn

from pc_ewa.config import Experiment
from pc_ewa.eval import Accuracy, LinearSVMResult
from pc_ewa.models.checkpoints.read import read_checkpoint
from pc_ewa.train import run
from pc_ewa.train.probe import SVMProbe

MakeExperiment = Callable[..., Experiment]


@pytest.fixture
def probe(toy_file: Path) -> str:
    return f"probe={{data: {{name: hdf5, path: {toy_file}, num_points: 48}}, every: 2}}"


def test_the_probe_is_logged_every_n_epochs_and_at_the_end(tiny: MakeExperiment, tmp_path: Path, probe: str) -> None:
    summary = run(tiny("point_mae", probe, "train.steps=7"))  # 2 steps an epoch
    assert summary is not None
    lines = [line for line in metrics(tmp_path / "run") if "svm_val_accuracy" in line]
    assert [line["step"] for line in lines] == [4, 7]
    assert all(0 <= line["svm_val_accuracy"] <= 1 for line in lines)
    assert not any("svm_test" in key for line in metrics(tmp_path / "run") for key in line)
    assert {"test_svm_accuracy_merged", "test_svm_accuracy_merged_best"} <= summary.keys()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("linear SVM on hdf5, validation part: ") == 2
    assert f"linear SVM on the features, test samples: {summary['test_svm_accuracy_merged']:.1%}" in log


def test_the_probe_chooses_nothing_and_sees_test_shapes_only_at_the_end(
    tiny: MakeExperiment, tmp_path: Path, probe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its accuracy is highest where the loss is highest."""
    asked: list[str] = []

    def measure(self: SVMProbe, model: nn.Module, split: str) -> LinearSVMResult:
        asked.append(split)
        right = len(asked) if split == "val" else 0
        return LinearSVMResult(Accuracy(torch.tensor([[right, 3 - right], [0, 0]])), 1.0, 16, {}, "given")

    monkeypatch.setattr(SVMProbe, "measure", measure)
    Measured(monkeypatch, [1.0, 2.0, 3.0])
    summary = run(tiny("point_mae", probe.replace("every: 2", "every: 1"), "train.steps=6"))
    assert summary is not None
    assert asked == ["val", "val", "val", "test", "test"]  # at the end the last state, and the best
    assert (summary["best_step"], summary["val_loss_best"]) == (2, 1.0)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")["progress"]["step"] == 2


def test_the_probe_changes_nothing_of_the_training(
    tiny: MakeExperiment, tokenizer: Path, tmp_path: Path, probe: str
) -> None:
    """Nor does evaluation: not the mode of the tokenizer, not BatchNorm, not the queue, not what is drawn next."""
    for name, how in (("probed", [probe.replace("every: 2", "every: 1")]), ("not", ["train.eval_every=2"])):
        run(tiny("point_bert", f"output={tmp_path}/{name}", f"tokenizer={tokenizer}", *how))
    one, other = (read_checkpoint(tmp_path / name / "checkpoints" / "last.pt")["model"] for name in ("probed", "not"))
    assert all(torch.equal(one[key], other[key]) for key in one)
