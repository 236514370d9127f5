"""`pc-ewa train` for classifiers and segmenters: options, and weights to start from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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
    assert f"weights: {weights}\n" in out


def test_check_trains_nothing(tool: Tool, toy_config: Path, tmp_path: Path) -> None:
    code, out, err = tool("finetune", toy_config, "--check", f"output={tmp_path}/run")
    assert (code, err) == (0, "")
    assert f"{tmp_path}/run" in out
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
    assert loaded(out)["cls_head_finetune"][1:] == ["2", "2"]
    assert loaded(out)["encoder"][1:] == ["-", "-"]


@pytest.mark.parametrize("kind", ["classify", "segment"])
def test_what_pretraining_leaves_is_where_it_starts(
    kind: str, tool: Tool, kinds: dict[str, Path], finished: Any, tmp_path: Path
) -> None:
    """The encoder, all of it; the decoder has no place, the heads are new."""
    weights = f"{finished('pretrain')['output']}/checkpoints/merged_last.pt"
    arguments = ("finetune", kinds[kind], "--from", weights, f"output={tmp_path}/run", "train.steps=1")
    code, out, err = tool(*arguments)
    assert (code, err) == (0, "")
    report = loaded(out)
    for part in ("encoder", "pos_embed", "blocks", "norm"):
        assert int(report[part][0]) > 0
        assert report[part][1:] == ["-", "-"]
    assert report["MAE_decoder"][:2] == ["-", "-"]
    assert report["total"][0] == str(sum(int(row[0].replace("-", "0")) for p, row in report.items() if p != "total"))


def loaded(out: str) -> dict[str, list[str]]:
    """Tensors that were loaded, missing and unexpected, by part."""
    rows = out.partition("\nweights: ")[2].splitlines()[2:]
    last = next(i for i, row in enumerate(rows) if row.startswith("total "))
    return {part: numbers for part, *numbers in (row.split() for row in rows[: last + 1])}
