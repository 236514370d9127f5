"""`pc-ewa merge`: from a checkpoint with mixtures to the ordinary model."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pc_ewa
from pc_ewa.models.checkpoints.read import read_content
from pc_ewa.train.distributed import World
from pc_ewa.train.setup import build

Tool = Callable[..., Any]


@pytest.fixture
def checkpoint(trained: Any) -> Path:
    return trained.folder / "checkpoints" / "last.pt"


def test_the_output_loads_strictly_and_holds_the_mean_of_the_experts(
    tool: Tool, trained: Any, checkpoint: Path, tmp_path: Path
) -> None:
    code, out, err = tool("merge_experts", checkpoint, "-o", tmp_path / "merged.pt")
    assert (code, err) == (0, "")
    before, after = trained.summary["params_training"], trained.summary["params_merged"]
    assert out == f"1 mixtures merged: {before:,} -> {after:,} parameters, written to {tmp_path}/merged.pt\n"
    content = torch.load(tmp_path / "merged.pt", weights_only=True)
    fresh = pc_ewa.create_model("point_mae_classifier", **trained.experiment.model.arguments, num_classes=3)
    fresh.load_state_dict(content["base_model"], strict=True)
    trained_model = build(trained.experiment, World(0, 1, torch.device("cpu"))).model
    trained_model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    merged = pc_ewa.dense_state_dict(trained_model)
    assert all(torch.equal(content["base_model"][key], merged[key]) for key in merged)
    assert content["class_names"] == ["sphere", "cube", "torus"]


def test_a_run_folder_is_its_checkpoint_with_mixtures(
    tool: Tool, trained: Any, checkpoint: Path, tmp_path: Path
) -> None:
    for source, output in ((trained.folder, "folder.pt"), (checkpoint, "file.pt")):
        assert tool("merge_experts", source, "-o", tmp_path / output).code == 0
    one, two = (torch.load(tmp_path / name, weights_only=True)["base_model"] for name in ("folder.pt", "file.pt"))
    assert all(torch.equal(one[key], two[key]) for key in two)


def test_it_measures_before_and_after(tool: Tool, trained: Any, checkpoint: Path, tmp_path: Path) -> None:
    code, out, _ = tool("merge_experts", checkpoint, "-o", tmp_path / "merged.pt", "--split", "test")
    assert code == 0
    before, after = trained.summary["test_correct_unmerged"], trained.summary["test_correct_merged"]
    line = f"test: accuracy {before / 12:.2%} ({before}/12) before, accuracy {after / 12:.2%} ({after}/12) after\n"
    assert out.endswith(line)


def test_an_output_that_is_there_is_replaced_only_when_asked(tool: Tool, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "merged.pt"
    output.write_text("mine")
    code, _, err = tool("merge_experts", checkpoint, "-o", output)
    assert (code, err) == (2, f"error: {output} is there already; choose another -o, or add --overwrite\n")
    assert output.read_text() == "mine"
    assert tool("merge_experts", checkpoint, "-o", output, "--overwrite").code == 0
    assert "base_model" in torch.load(output, weights_only=True)


def test_nothing_is_written_before_everything_is_known_to_be_right(
    tool: Tool, trained: Any, checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "merged.pt"
    code, _, err = tool("merge_experts", checkpoint, "-o", tmp_path / "none" / "merged.pt")
    assert (code, err) == (2, f"error: {tmp_path}/none is not a folder; create it or choose another -o\n")
    code, _, err = tool("merge_experts", checkpoint, "-o", output, "--split", "test", "data.path=none.h5")
    assert (code, err) == (2, "error: none.h5 does not exist; check data.path, or make it with pc-ewa prepare files\n")
    merged = trained.folder / "checkpoints" / "merged_last.pt"
    code, _, err = tool("merge_experts", merged, "-o", output)
    remedy = "to convert it add --format official or --format safetensors"
    problem = f"{merged} has no mixtures of experts: there is nothing to merge; {remedy}"
    assert (code, err) == (2, f"error: {problem}\n")
    code, _, err = tool("merge_experts", checkpoint, "-o", tmp_path / "a.safetensors", "--format", "official")
    problem = f"--format official with -o {tmp_path}/a.safetensors; the name must end in .pt or .pth"
    assert (code, err) == (2, f"error: {problem}\n")
    code, _, err = tool("merge_experts", checkpoint, "-o", output, "--format", "safetensors")
    problem = f"--format safetensors with -o {output}; the name must end in .safetensors"
    assert (code, err) == (2, f"error: {problem}\n")
    assert os.listdir(tmp_path) == []


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path)["base_model"]


@pytest.mark.parametrize("asked", [(), ("--format", "safetensors")], ids=["by its name", "asked for"])
def test_safetensors_hold_the_same(asked: tuple[str, ...], tool: Tool, checkpoint: Path, tmp_path: Path) -> None:
    official, safe = tmp_path / "merged.pth", tmp_path / "merged.safetensors"
    assert tool("merge_experts", checkpoint, "-o", official).code == 0
    code, out, err = tool("merge_experts", checkpoint, "-o", safe, *asked)
    assert (code, err) == (0, "")
    assert out.startswith("1 mixtures merged: ")
    ours, theirs = weights_in(safe), weights_in(official)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    ours, theirs = read_content(safe), read_content(official)
    assert ours.pop("base_model").keys() == theirs.pop("base_model").keys()
    assert ours == theirs
    assert ours["class_names"] == ["sphere", "cube", "torus"]


@pytest.mark.parametrize("format", ["official", "safetensors"])
def test_a_model_without_mixtures_is_converted_when_asked(
    format: str, tool: Tool, trained: Any, tmp_path: Path
) -> None:
    merged = trained.folder / "checkpoints" / "merged_last.pt"
    output = tmp_path / {"official": "vit.pth", "safetensors": "vit.safetensors"}[format]
    code, out, err = tool("merge_experts", merged, "-o", output, "--format", format, "--split", "test")
    after = trained.summary["test_correct_merged"]
    assert (code, err) == (0, "")
    assert out == (
        f"0 mixtures: nothing to merge, written as {format} to {output}\ntest: accuracy {after / 12:.2%} ({after}/12)\n"
    )
    ours, theirs = weights_in(output), weights_in(merged)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    # And back again, and measured: both files are ones of ours.
    back = tmp_path / "back.pth"
    code, out, _ = tool("merge_experts", output, "-o", back, "--format", "official", "--split", "test")
    assert (code, out.splitlines()[1]) == (0, f"test: accuracy {after / 12:.2%} ({after}/12)")
    assert all(torch.equal(value, theirs[key]) for key, value in weights_in(back).items())


def test_an_official_file_is_converted_by_a_config(tool: Tool, trained: Any, toy_config: Path, tmp_path: Path) -> None:
    weights = weights_in(trained.folder / "checkpoints" / "merged_last.pt")
    official, output = tmp_path / "official.pth", tmp_path / "vit.safetensors"
    torch.save({"base_model": {f"module.{key}": value for key, value in weights.items()}, "epoch": 3}, official)
    arguments = ("merge_experts", official, "-o", output, "--format", "safetensors")
    code, _, err = tool(*arguments)
    assert (code, err) == (2, f"error: {official} holds no config; name one with --config CONFIG.yaml\n")
    assert tool(*arguments, "--config", toy_config).code == 0
    assert all(torch.equal(value, weights[key]) for key, value in weights_in(output).items())
    assert read_content(output)["class_names"] == ["sphere", "cube", "torus"]


def test_the_output_can_be_trained_on(tool: Tool, checkpoint: Path, toy_config: Path, tmp_path: Path) -> None:
    for name in ("merged.pt", "merged.safetensors"):
        assert tool("merge_experts", checkpoint, "-o", tmp_path / name).code == 0
        code, out, _ = tool("finetune", toy_config, "--from", tmp_path / name, "--check", f"output={tmp_path}/run")
        assert code == 0
        assert f"{tmp_path}/run" in out
    # The file with mixtures says how to get there.
    code, _, err = tool("finetune", toy_config, "--from", checkpoint, f"output={tmp_path}/run")
    assert code == 2
    assert "it holds mixtures of experts; merge it first" in err


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["segment", "pretrain", "point_bert"])
def test_other_kinds_of_models_are_merged_and_measured_without_a_config(
    kind: str, suffix: str, tool: Tool, finished: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    summary = finished(kind)
    folder, output = Path(summary["output"]) / "checkpoints", tmp_path / f"merged{suffix}"
    code, out, err = tool("merge_experts", folder / "last.pt", "-o", output, "--split", "test")
    assert (code, err) == (0, "")
    before, after = summary["params_training"], summary["params_merged"]
    merged, measured = out.splitlines()
    assert merged == f"{summary['mixtures']} mixtures merged: {before:,} -> {after:,} parameters, written to {output}"
    ours, theirs = weights_in(output), weights_in(folder / "merged_last.pt")
    assert list(ours) == list(theirs) if suffix == ".pth" else set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    content = torch.load(output, weights_only=True) if suffix == ".pth" else {}
    assert ("model_state_dict" in content) == (kind == "segment" and suffix == ".pth")  # as in the official files
    code, out, err = tool("evaluate", output)
    assert (code, err) == (0, "")
    written = json.loads((tmp_path / "merged.score.test.json").read_text())
    main_metric = summary["main_metric"]
    assert written[main_metric] == pytest.approx(summary[f"test_{main_metric}_merged"], rel=1e-6)
    value = f"{written['loss']:.5g}" if main_metric == "loss" else f"{written[main_metric]:.2%}"
    assert re.match(rf"test: .+ before, (loss|instance mIoU) {re.escape(value)}(, class mIoU .+)? after$", measured)
    if main_metric == "loss":
        assert tool("evaluate", output, "--protocol", "svm").code == 0
        svm = json.loads((tmp_path / "merged.svm.test.json").read_text())
        assert svm["accuracy"] == summary["test_svm_accuracy_merged"]


def test_a_tokenizer_has_nothing_to_merge_and_is_converted(tool: Tool, finished: Any, tmp_path: Path) -> None:
    merged = Path(finished("tokenize")["output"]) / "checkpoints" / "merged_last.pt"
    output = tmp_path / "dvae.safetensors"
    code, _, err = tool("merge_experts", merged, "-o", output)
    assert (code, "has no mixtures of experts" in err) == (2, True)
    assert tool("merge_experts", merged, "-o", output, "--format", "safetensors").code == 0
    assert all(torch.equal(value, weights_in(merged)[key]) for key, value in weights_in(output).items())
    assert tool("evaluate", output).code == 0


def test_an_official_pretraining_file_is_converted_without_its_data(
    tool: Tool, finished: Any, kinds: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing of ShapeNet-55 is needed to write Point-MAE's weights in another format."""
    weights = weights_in(Path(finished("pretrain")["output"]) / "checkpoints" / "merged_last.pt")
    official, output = tmp_path / "pretrain.pth", tmp_path / "pretrain.safetensors"
    torch.save({"base_model": {f"module.{key}": value for key, value in weights.items()}}, official)
    config = ("--config", kinds["pretrain"], f"data.path={tmp_path}/none.h5")
    code, _, err = tool("merge_experts", official, "-o", output, "--format", "safetensors", *config)
    assert (code, err) == (0, "")
    assert all(torch.equal(value, weights[key]) for key, value in weights_in(output).items())
    assert read_content(output)["class_names"] == []


@pytest.mark.parametrize("name", ["out.onnx", "out", "out.bin", "out.h5", "out.pt2"])
def test_an_ending_that_no_reader_would_look_into_is_refused(
    name: str, tool: Tool, checkpoint: Path, tmp_path: Path
) -> None:
    code, _, err = tool("merge_experts", checkpoint, "-o", tmp_path / name)
    assert code == 2
    assert ".pt, .pth, .safetensors" in err
    assert os.listdir(tmp_path) == []
