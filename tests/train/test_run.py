"""A whole run: its folder, its summary, its second start, and what it must never look at."""

import fcntl
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import pc_ewa
from pc_ewa.config import Experiment
from pc_ewa.data import Clouds, load_dataset, write_hdf5
from pc_ewa.errors import CheckpointError, ConfigError, DataError
from pc_ewa.eval import Accuracy, EvalSettings
from pc_ewa.ewa import ExpertFFN, ExpertLinear, expert_layers
from pc_ewa.models.checkpoints.read import read_checkpoint
from pc_ewa.train import loop, objectives, run
from pc_ewa.train.distributed import World
from pc_ewa.train.run import check
from pc_ewa.train.setup import build
from pc_ewa.train.splits import load_splits
from pc_ewa.train.summary import describe_summary

MakeExperiment = Callable[..., Experiment]


def test_the_run_folder_is_self_contained(trained: Any) -> None:
    assert sorted(os.listdir(trained.folder)) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "summary.json",
    ]
    names = ["best.pt", "last.pt", "merged_best.pt", "merged_last.pt", "step-00000003.pt", "step-00000004.pt"]
    assert sorted(os.listdir(trained.folder / "checkpoints")) == names
    assert yaml.safe_load((trained.folder / "config.yaml").read_text())["model"]["dim"] == 16
    environment = json.loads((trained.folder / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["processes"] == 1


def test_a_run_folder_in_use_is_refused(experiment: MakeExperiment) -> None:
    config = experiment()
    folder = Path(config.output)
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is in use by another process; wait for it or choose another output"):
            run(config)
    assert os.listdir(folder) == [".lock"]
    assert run(config) is not None


def test_the_summary_holds_what_the_table_shows(trained: Any) -> None:
    summary = json.loads((trained.folder / "summary.json").read_text())
    assert summary == trained.summary
    assert summary["seconds"].keys() == {"setup", "train", "evaluate", "merge"}
    assert summary["steps"] == 4
    assert (summary["val_samples"], summary["test_samples"], summary["val_is_cut_from_train"]) == (3, 12, True)
    for which in ("merged", "unmerged", "merged_best", "unmerged_best"):
        assert summary[f"test_accuracy_{which}"] == summary[f"test_correct_{which}"] / 12
    # One of two FFNs is a mixture of 2: 16 -> 64 -> 16 with biases once more than in the merged model.
    extra = 2 * 16 * 64 + 64 + 16
    assert summary["params_training"] - summary["params_merged"] == extra
    assert (summary["mixtures"], summary["ffns_training"], summary["ffns_merged"]) == (1, 3, 2)
    p = summary["test_accuracy_merged"]
    assert summary["test_standard_error_merged"] == pytest.approx(math.sqrt(p * (1 - p) / 12))


def test_the_summary_measures_the_files_it_wrote(trained: Any) -> None:
    splits = load_splits(trained.experiment.data, 0)
    objective = objectives.Classify(trained.experiment)
    for name, suffix in (("merged_last.pt", ""), ("merged_best.pt", "_best")):
        content = read_checkpoint(trained.folder / "checkpoints" / name)
        model = pc_ewa.create_model("point_mae_classifier", **trained.experiment.model.arguments, num_classes=3)
        model.load_state_dict(content["base_model"])
        assert content["class_names"] == ["sphere", "cube", "torus"]
        accuracy = objective.evaluate(model, splits, "test", torch.device("cpu"))
        assert accuracy.correct == trained.summary[f"test_correct_merged{suffix}"]
        assert accuracy.mean_class == trained.summary[f"test_mean_class_accuracy_merged{suffix}"]


def test_merged_files_are_the_merged_checkpoints(trained: Any) -> None:
    folder = trained.folder / "checkpoints"
    for name in ("last", "best"):
        model = build(trained.experiment, World(0, 1, torch.device("cpu"))).model
        model.load_state_dict(read_checkpoint(folder / f"{name}.pt")["model"])
        assert expert_layers(model)
        merged, written = pc_ewa.dense_state_dict(model), read_checkpoint(folder / f"merged_{name}.pt")["base_model"]
        assert merged.keys() == written.keys()
        assert all(torch.equal(merged[key], written[key]) for key in merged)


def test_the_log_tells_what_the_terminal_told(
    experiment: MakeExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(experiment())
    printed = capsys.readouterr()
    assert (tmp_path / "run" / "log.txt").read_text() == printed.out
    assert printed.err == ""
    assert "\r" not in printed.out
    for part in (
        "data: 21 train, 3 validation, 12 test samples, 3 classes",
        "plan: 4 steps of 8 samples (2 epochs) on 1 x cpu",
        "5 of 21 training samples sit out each epoch",
        "step 2/4 (epoch 1): validation accuracy",
        "training has ended; measuring on 12 test samples",
        "with experts",
        "test accuracy, last step",
        "test accuracy, best by validation (step ",
        "3 samples cut from train",
        f"run folder: {tmp_path}/run",
        " evaluate ",
        "standard error",
    ):
        assert part in printed.out


@pytest.mark.parametrize("emulated", [True, False])
def test_bf16_on_a_cpu_that_emulates_it_is_told(
    experiment: MakeExperiment, emulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pc_ewa.train.setup.has_bf16", lambda: not emulated)
    for precision in ("bf16", "fp32"):
        notes = build(experiment(f"train.precision={precision}"), World(0, 1, torch.device("cpu"))).notes
        assert any("train.precision=fp32" in note for note in notes) == (emulated and precision == "bf16")


def test_a_check_tells_the_sizes(experiment: MakeExperiment) -> None:
    assert "without experts" in check(experiment("ewa=null"))
    dense, experts = (int(n.replace(",", "")) for n in re.findall(r"([\d,]{4,})[ )]", check(experiment("ewa={}")))[:2])
    assert 0 < dense < experts


def test_the_table_says_what_all_right_or_none_right_proves(trained: Any) -> None:
    for correct, proven in ((12, "12 samples: 95 % interval from 75.75%"), (0, ": 95 % interval to 24.25%")):
        assert proven in describe_summary({**trained.summary, "test_correct_merged": correct})
    assert "12 samples: standard error 14.23%" in describe_summary({**trained.summary, "test_correct_merged": 5})


def test_a_second_start_retrains_nothing_and_shows_the_table_again(
    trained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*.*")}
    monkeypatch.setattr(loop, "train_step", None)
    assert run(trained.experiment) == trained.summary
    printed = capsys.readouterr().out
    assert f"{trained.folder} is finished" in printed
    assert "test accuracy, last step" in printed
    assert {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*.*")} == files


def test_only_the_main_process_shows_the_table_again(
    trained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(trained.experiment) == trained.summary
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("train.lr=1e-3", r"\(train\.lr=0\.0005 there, 0\.001 asked\)"),
        ("model.depth=3", r"\(model\.depth=2 there, 3 asked\)"),
        ("ewa=null", r"\(ewa\.every=1 there, None asked, "),
    ],
)
def test_another_config_in_the_same_folder_is_refused(
    trained: Any, experiment: MakeExperiment, override: str, difference: str
) -> None:
    with pytest.raises(ConfigError, match=rf"other settings {difference}.*; choose another output or") as caught:
        run(experiment(f"output={trained.folder}", override))
    assert "\n" not in str(caught.value)


def test_wandb_may_change_when_a_run_goes_on(trained: Any, experiment: MakeExperiment) -> None:
    changed = experiment(f"output={trained.folder}", "wandb.mode=offline", "wandb.project=other")
    assert run(changed) == trained.summary


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "\xff"])
def test_a_damaged_config_in_the_folder_is_told(experiment: MakeExperiment, tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged; choose another output or delete the folder"):
        run(experiment())


@pytest.mark.parametrize(
    ("make", "output", "message"),
    [
        (lambda path: path.write_text(""), "blocked", "blocked is a file; choose another output"),
        (lambda path: path.write_text(""), "blocked/below/it", "blocked is a file; choose another output"),
        (
            lambda path: path.mkdir() or (path / "checkpoints").touch(),
            "blocked",
            "checkpoints is a file; choose another",
        ),
        (lambda path: None, "/proc/pc-ewa", "/proc/pc-ewa cannot be written: "),
        (lambda path: None, "a" * 300, "cannot be written: File name too long; choose another output"),
    ],
    ids=["file", "below a file", "checkpoints", "proc", "too long"],
)
def test_a_folder_that_cannot_be_written_is_told_before_training(
    experiment: MakeExperiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], object],
    output: str,
    message: str,
) -> None:
    make(tmp_path / "blocked")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "train_step", None)
    with pytest.raises(ConfigError, match=message) as caught:
        run(experiment(f"output={output}"))
    assert "\n" not in str(caught.value)


def test_checking_writes_nothing_and_finds_nothing_wrong(
    experiment: MakeExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "21/3/12 samples" in check(experiment())
    assert os.listdir(tmp_path) == []
    assert capsys.readouterr().out == ""


def test_checking_looks_at_a_finished_run_as_at_any(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "finished" in check(trained.experiment)
    assert capsys.readouterr().out == ""


class Watched:
    """Stands in for evaluation: notes what is measured, and answers with the accuracies it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, correct: list[int]) -> None:
        self.measured: list[tuple[str, int]] = []
        self.tested: list[tuple[int, set[type]]] = []
        self.steps_done = 0
        step = loop.train_step

        def counted(*arguments: Any) -> Any:
            self.steps_done += 1
            return step(*arguments)

        def measured(model: nn.Module, clouds: Clouds, settings: EvalSettings, **options: Any) -> Accuracy:
            assert clouds.shape_names is not None
            numbers = {int(name.split()[1]) for name in clouds.shape_names}
            part = "test" if numbers <= set(range(24, 36)) else "val" if len(numbers) == 3 else "other"
            self.measured.append((part, self.steps_done))
            if part == "test":
                routed = {type(module) for module in model.modules() if module.training}
                self.tested.append((len(expert_layers(model)), routed))
            share = correct[len(self.measured) - 1] if part == "val" else 0
            return Accuracy(torch.tensor([[share, 3 - share], [0, 0]]))

        monkeypatch.setattr(loop, "train_step", counted)
        monkeypatch.setattr(objectives, "evaluate_classifier", measured)


def test_the_best_is_chosen_on_validation_and_test_is_seen_only_at_the_end(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch, correct=[1, 2, 2, 0])
    summary = run(experiment("train.steps=8"))
    assert watched.measured == [("val", 2), ("val", 4), ("val", 6), ("val", 8), *[("test", 8)] * 4]
    # Last and best, each with its mixture, which deals tokens as in training, and merged.
    assert watched.tested == [(1, {ExpertFFN, ExpertLinear}), (0, set())] * 2
    assert summary is not None
    assert (summary["best_step"], summary["val_accuracy_best"], summary["val_accuracy"]) == (4, 2 / 3, 0)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")["progress"]["step"] == 4


def test_the_last_steps_are_validated_even_in_mid_epoch(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch, correct=[1, 2])
    run(experiment("train.steps=3"))
    assert watched.measured[:2] == [("val", 2), ("val", 3)]


def test_epochs_count_the_steps_when_steps_are_not_given(experiment: MakeExperiment) -> None:
    world = World(0, 1, torch.device("cpu"))
    made = experiment("train.steps=null", "train.epochs=5")
    assert build(made, world).total_steps == 10  # 21 training shapes make 2 whole batches of 8


def test_validation_is_cut_from_train_and_shared_by_none(experiment: MakeExperiment) -> None:
    splits = load_splits(experiment().data, seed=0)
    names = [set(part.shape_names or ()) for part in splits[:3]]
    assert [len(part) for part in names] == [21, 3, 12]
    assert len(set().union(*names)) == 36
    assert sorted(splits.val.labels.tolist()) == [0, 1, 2]
    other = load_splits(experiment().data, seed=1)
    assert set(other.val.shape_names or ()) != names[1]
    assert set(other.test.shape_names or ()) == names[2]


def test_a_validation_part_of_the_dataset_is_used_as_it_is(
    experiment: MakeExperiment, toy_file: Path, tmp_path: Path
) -> None:
    train, test = (load_dataset("hdf5", split, path=toy_file) for split in ("train", "test"))
    points = torch.cat([train.batch(range(24))[0], test.batch(range(12))[0]]).numpy()
    labels = [*train.labels.tolist(), *test.labels.tolist()]
    path = tmp_path / "own.h5"
    split = [0] * 19 + [1] * 5 + [2] * 12
    write_hdf5(path, points, labels, train.class_names, up_axis="y", split=split, split_names=["train", "val", "test"])
    splits = load_splits(experiment(f"data.path={path}").data, seed=0)
    assert ([len(part) for part in splits[:3]], splits.val_is_cut) == ([19, 5, 12], False)
    summary = run(experiment(f"data.path={path}"))
    assert summary is not None
    assert (summary["val_samples"], summary["val_is_cut_from_train"]) == (5, False)


def test_a_dataset_that_leaves_nothing_to_validate_is_refused(experiment: MakeExperiment, tmp_path: Path) -> None:
    path = tmp_path / "single.h5"
    points = torch.rand(6, 64, 3).numpy()
    write_hdf5(path, points, [0, 1, 2] * 2, ["a", "b", "c"], up_axis="y", split=[0] * 3 + [1] * 3)
    with pytest.raises(DataError, match="no shapes can be set aside for validation"):
        run(experiment(f"data.path={path}"))


def test_training_starts_from_the_weights_it_is_given(experiment: MakeExperiment, trained: Any) -> None:
    weights = trained.folder / "checkpoints" / "merged_last.pt"
    setup = build(experiment(f"init_from={weights}"), World(0, 1, torch.device("cpu")))
    given = read_checkpoint(weights)["base_model"]
    merged = pc_ewa.dense_state_dict(setup.model)  # experts that are copies merge into what they are copies of
    assert all(torch.equal(given[key], merged[key]) for key in given)
    assert any("\ntotal " in note for note in setup.notes)


def test_weights_of_another_architecture_are_refused_before_training(
    experiment: MakeExperiment, trained: Any, tmp_path: Path
) -> None:
    weights = trained.folder / "checkpoints" / "merged_last.pt"
    with pytest.raises(CheckpointError, match=r"does not fit .*differ in shape, such as ") as caught:
        run(experiment("model.dim=32", f"init_from={weights}"))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []
