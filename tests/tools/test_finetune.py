"""tools/finetune.py as its command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Tool = Callable[..., Any]


def test_it_trains_merges_and_reports(tool: Tool, toy_config: Path, tmp_path: Path) -> None:
    code, out, err = tool("finetune", toy_config, "seed=3", f"output={tmp_path}/run", "ewa.num_experts=3")
    assert (code, err) == (0, "")
    assert (tmp_path / "run" / "checkpoints" / "merged_last.pt").is_file()
    assert "with experts" in out
    code, again, err = tool("finetune", toy_config, f"output={tmp_path}/run", "ewa.num_experts=3", "seed=3")
    assert (code, err) == (0, "")
    assert "is finished" in again
    assert out.partition("with experts")[2] == again.partition("with experts")[2]


def test_options_and_overrides_mix(tool: Tool, toy_config: Path, trained: Any, tmp_path: Path) -> None:
    weights = tmp_path / "a: b #1.pt"  # would be something else to YAML
    weights.write_bytes((trained.folder / "checkpoints" / "merged_last.pt").read_bytes())
    code, out, err = tool("finetune", toy_config, "train.steps=1", "--from", weights, f"output={tmp_path}/run")
    assert (code, err) == (0, "")
    assert f"weights: {weights}: " in out


def test_check_trains_nothing(tool: Tool, toy_config: Path, tmp_path: Path) -> None:
    assert tool("finetune", toy_config, "--check", f"output={tmp_path}/run") == (0, "", "")
    assert not (tmp_path / "run").exists()
    code, out, err = tool("finetune", toy_config, "--check", f"output={tmp_path}/run", "model.num_heads=5")
    assert (code, out) == (2, "")
    assert err == "error: num_heads=5 does not divide dim=16; choose one of 1, 2, 4, 8\n"


def test_weights_for_other_classes_keep_their_backbone(
    tool: Tool, toy_config: Path, trained: Any, tmp_path: Path
) -> None:
    """Fine-tuning on another dataset: the head is new."""
    content = torch.load(trained.folder / "checkpoints" / "merged_last.pt", weights_only=True)
    head = content["base_model"]["cls_head_finetune.8.weight"]
    content["base_model"]["cls_head_finetune.8.weight"] = torch.zeros(40, head.shape[1])
    content["base_model"]["cls_head_finetune.8.bias"] = torch.zeros(40)
    torch.save(content, tmp_path / "other.pt")
    code, out, _ = tool(
        "finetune", toy_config, "--from", tmp_path / "other.pt", f"output={tmp_path}/run", "train.steps=1"
    )
    assert code == 0
    assert "2 missing (cls_head_finetune), 2 unexpected (cls_head_finetune)" in out
