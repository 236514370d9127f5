"""tools/merge_experts.py: from a checkpoint with mixtures to the ordinary model."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pc_ewa
from pc_ewa.train.build import build
from pc_ewa.train.distributed import World

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


def test_it_measures_before_and_after(tool: Tool, trained: Any, checkpoint: Path, tmp_path: Path) -> None:
    code, out, _ = tool("merge_experts", checkpoint, "-o", tmp_path / "merged.pt", "--split", "test")
    assert code == 0
    before, after = trained.summary["test_correct_unmerged"], trained.summary["test_correct_merged"]
    assert f"accuracy on test: {before / 12:.2%} ({before}/12) before, {after / 12:.2%} ({after}/12) after" in out


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
    assert (code, err) == (2, f"error: {tmp_path}/none is no folder; create it or choose another -o\n")
    code, _, err = tool("merge_experts", checkpoint, "-o", output, "--split", "test", "data.path=none.h5")
    assert (code, err) == (2, "error: none.h5 does not exist; check the option path\n")
    merged = trained.folder / "checkpoints" / "merged_last.pt"
    code, _, err = tool("merge_experts", merged, "-o", output)
    assert (code, err) == (2, f"error: {merged} has no mixtures of experts: there is nothing to merge\n")
    assert os.listdir(tmp_path) == []


def test_the_output_can_be_trained_on(tool: Tool, checkpoint: Path, toy_config: Path, tmp_path: Path) -> None:
    assert tool("merge_experts", checkpoint, "-o", tmp_path / "merged.pt").code == 0
    code, out, _ = tool("finetune", toy_config, "--from", tmp_path / "merged.pt", "--check", f"output={tmp_path}/run")
    assert (code, out) == (0, "")
    # The file with mixtures says how to get there.
    code, _, err = tool("finetune", toy_config, "--from", checkpoint, f"output={tmp_path}/run")
    assert code == 2
    assert "it holds mixtures of experts; merge it first: python tools/merge_experts.py" in err
