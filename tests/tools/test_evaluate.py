"""`pc-ewa evaluate`: what it measures, and on what."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

import pc_ewa
from pc_ewa.eval.accuracy import uncertainty
from pc_ewa.train.distributed import World
from pc_ewa.train.setup import build

Tool = Callable[..., Any]


@pytest.mark.parametrize(("name", "suffix"), [("merged_last.pt", ""), ("merged_best.pt", "_best"), ("last.pt", "")])
def test_it_prints_what_the_summary_holds(tool: Tool, trained: Any, name: str, suffix: str) -> None:
    """With its experts in place a checkpoint is measured as it would be merged."""
    code, out, err = tool("evaluate", trained.folder / "checkpoints" / name)
    assert (code, err) == (0, "")
    summary = trained.summary
    correct = summary[f"test_correct_merged{suffix}"]
    assert f"overall accuracy     {correct / 12:.2%} ({correct}/12, {uncertainty(correct, 12)})" in out
    assert f"mean class accuracy  {summary[f'test_mean_class_accuracy_merged{suffix}']:.2%}" in out
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("mean class accuracy"))
    rows = [line.split() for line in lines[at + 1 : at + 4]]
    assert [row[0] for row in rows] == ["sphere", "cube", "torus"]
    assert sum(int(row[-1].strip("()").split("/")[0]) for row in rows) == correct
    assert all(row[-1].endswith("/4)") for row in rows)


def test_a_run_folder_is_its_merged_model(tool: Tool, trained: Any, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    assert tool("evaluate", trained.folder, "--json", found).code == 0
    content = json.loads(found.read_text())
    assert content["checkpoint"] == str(trained.folder / "checkpoints" / "merged_last.pt")
    assert content["correct"] == trained.summary["test_correct_merged"]


def test_the_validation_part_is_the_one_that_training_held_out(tool: Tool, trained: Any) -> None:
    code, out, _ = tool("evaluate", "--split", "val", trained.folder / "checkpoints" / "last.pt")
    assert code == 0
    correct = round(3 * trained.summary["val_accuracy"])
    assert f"({correct}/3, " in out


def test_keys_of_its_config_can_be_changed(tool: Tool, trained: Any, toy_file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.h5"
    moved.write_bytes(toy_file.read_bytes())
    code, out, _ = tool("evaluate", trained.folder / "checkpoints" / "last.pt", f"data.path={moved}", "--split=train")
    assert code == 0
    assert "/21, " in out


def test_a_run_that_has_not_come_to_its_end_is_told(tool: Tool, trained: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run)
    assert "note: " not in tool("evaluate", run / "checkpoints" / "last.pt").out
    (run / "summary.json").unlink()
    out = tool("evaluate", run / "checkpoints" / "last.pt").out
    assert [line for line in out.splitlines() if line.startswith(f"note: {run} ") and "step 4;" in line]


@pytest.mark.parametrize("name", ["merged_last.pt", "last.pt"])
def test_other_data_than_those_of_the_training_are_noted(
    name: str, tool: Tool, trained: Any, toy_file: Path, tmp_path: Path
) -> None:
    """A file that was prepared anew under the same name would pass for the old one."""
    changed = tmp_path / "changed.h5"
    changed.write_bytes(toy_file.read_bytes())
    with h5py.File(changed, "r+") as file:
        file["data"][-1] = -file["data"][-1]  # the last one is of test
    checkpoint = trained.folder / "checkpoints" / name
    code, out, _ = tool("evaluate", checkpoint, f"data.path={changed}")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("note: ") and "test has other points" in line]
    assert "other points" not in tool("evaluate", checkpoint).out


def test_official_files_take_a_config(tool: Tool, trained: Any, toy_config: Path, tmp_path: Path) -> None:
    state = torch.load(trained.folder / "checkpoints" / "merged_last.pt", weights_only=True)["base_model"]
    official = {"base_model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
    torch.save(official, tmp_path / "official.pth")
    code, out, err = tool("evaluate", tmp_path / "official.pth", "--config", toy_config)
    assert (code, err) == (0, "")
    assert f"({trained.summary['test_correct_merged']}/12, " in out
    code, out, err = tool("evaluate", tmp_path / "official.pth")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path}/official.pth holds no config; name one with --config CONFIG.yaml\n"


def test_a_dataset_with_other_classes_is_refused(tool: Tool, trained: Any, tmp_path: Path) -> None:
    from pc_ewa.data import write_hdf5

    points = torch.rand(8, 64, 3).numpy()
    path = tmp_path / "other.h5"
    write_hdf5(path, points, [0, 1] * 4, ["cat", "dog"], up_axis="y", split=[0] * 4 + [1] * 4)
    code, _, err = tool("evaluate", trained.folder / "checkpoints" / "merged_last.pt", f"data.path={path}")
    assert code == 2
    assert err == ("error: the checkpoint knows 3 classes (sphere, cube, torus, ...), hdf5 has 2 (cat, dog, ...)\n")


def test_the_merged_file_is_an_ordinary_model(trained: Any) -> None:
    model = build(trained.experiment, World(0, 1, torch.device("cpu"))).model
    checkpoint = torch.load(trained.folder / "checkpoints" / "last.pt", weights_only=True)
    model.load_state_dict(checkpoint["model"])
    points = torch.rand(2, 48, 3)
    fresh = pc_ewa.create_model("point_mae_classifier", **trained.experiment.model.arguments, num_classes=3)
    content = torch.load(trained.folder / "checkpoints" / "merged_last.pt", weights_only=True)
    fresh.load_state_dict(content["base_model"], strict=True)
    torch.testing.assert_close(fresh.eval()(points), model.eval()(points))


def test_errors_are_every_wrong_shape_by_name(tool: Tool, trained: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "wrong.csv"
    code, out, _ = tool("evaluate", trained.folder / "checkpoints" / "merged_last.pt", "--errors", path)
    assert code == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 - trained.summary["test_correct_merged"]
    assert f"({trained.summary['test_correct_merged']}/12" in out
    model = pc_ewa.load_model(trained.folder)
    clouds = pc_ewa.load_dataset("hdf5", "test", path=trained.experiment.data.arguments["path"])
    assert clouds.shape_names is not None
    for row in rows:
        place = clouds.shape_names.index(row["name"])
        prediction = model.predict(clouds.batch([place])[0][0])
        assert (row["true"], row["predicted"]) == (clouds.class_names[clouds.labels[place]], prediction.label)
        assert row["true"] != row["predicted"]
        assert float(row["probability"]) == pytest.approx(prediction.probability, abs=1e-6)
        assert 0 <= float(row["probability_true"]) <= float(row["probability"])
    assert [float(row["probability"]) for row in rows] == sorted(
        (float(row["probability"]) for row in rows), reverse=True
    )


@pytest.mark.parametrize("more", [["--votes", 2], ["--protocol", "svm"]])
def test_errors_are_for_plain_scores_of_classifiers(more: list[Any], tool: Tool, trained: Any, tmp_path: Path) -> None:
    checkpoint = trained.folder / "checkpoints" / "merged_last.pt"
    code, _, err = tool("evaluate", checkpoint, "--errors", tmp_path / "wrong.csv", *more)
    assert (code, err.count("\n")) == (2, 1)
    assert "--errors" in err
