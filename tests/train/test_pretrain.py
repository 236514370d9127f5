"""Pre-training: what is learned, what it leaves for fine-tuning, how it resumes, and what only watches it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pc_ewa.config import Experiment
from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError, Error
from pc_ewa.eval import Accuracy, LinearSVMResult
from pc_ewa.eval.objective import Losses
from pc_ewa.ewa import expert_layers
from pc_ewa.models.dvae import DiscreteVAE
from pc_ewa.models.official import read_checkpoint
from pc_ewa.train import loop, run, tasks
from pc_ewa.train.build import build
from pc_ewa.train.checkpoint import Checkpoints
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import train_step
from pc_ewa.train.probe import SVMProbe

WORLD = World(0, 1, torch.device("cpu"))
MakeExperiment = Callable[..., Experiment]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(content: object, place: str = "") -> dict[str, object]:
    """Flatten a checkpoint to its leaves, so that two can be compared key by key."""
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return {k: v for name, value in items for k, v in tensors(value, f"{place}/{name}").items()}
    return {place: content}


def assert_same_checkpoints(one: Path, other: Path, names: tuple[str, ...]) -> None:
    """Bit for bit, but for the time that was spent and where it was written."""
    for name in names:
        first, second = (tensors(read_checkpoint(folder / "checkpoints" / name)) for folder in (one, other))
        assert first.keys() == second.keys()
        for key, value in first.items():
            if key not in ("/progress/seconds", "/config/output"):
                same = torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key]
                assert same, (name, key)


# Learning, and what comes of it.


@pytest.mark.parametrize("ewa", ["ewa=null", "ewa.num_experts=2"], ids=["dense", "ewa"])
def test_point_mae_learns_to_predict_hidden_patches(tiny: MakeExperiment, tmp_path: Path, ewa: str) -> None:
    easy = ("augment.scale=null", "augment.shift=0", "model.drop_path=0")
    rare = ("train.eval_every=30", "train.save_every=60", "train.lr=5e-3")
    summary = run(tiny("point_mae", "train.steps=60", *easy, *rare, ewa))
    assert summary is not None
    losses = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.4 * losses[0]
    assert summary["headline"] == "loss"
    # Measured on shapes it has not seen, and as good there: it learned, by no more than noise.
    assert summary["test_loss_merged"] < 0.5 * losses[0]
    assert summary["val_loss"] == pytest.approx(summary["test_loss_merged"], rel=0.5)
    assert summary["val_loss_best"] <= summary["val_loss"]
    assert summary["test_shapes"] == 12
    if ewa == "ewa=null":
        assert summary["test_loss_unmerged"] == summary["test_loss_merged"]
    else:
        assert summary["mixtures"] == 1
        assert summary["params_training"] - summary["params_merged"] == 2 * 16 * 64 + 64 + 16
        assert (summary["ffns_training"], summary["ffns_merged"]) == (3, 2)  # the decoder's are not counted
        assert 0 < abs(summary["test_loss_unmerged"] - summary["test_loss_merged"]) < summary["test_loss_merged"]


def test_the_lowest_loss_is_the_best_not_the_highest(tiny: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    Measured(monkeypatch, [3.0, 1.0, 2.0])
    summary = run(tiny("point_mae", "train.steps=6"))
    assert summary is not None
    assert (summary["best_step"], summary["val_loss_best"], summary["val_loss"]) == (4, 1.0, 2.0)


def test_the_report_of_a_pretraining_names_its_loss_and_what_comes_next(
    tiny: MakeExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny("point_mae", "ewa.num_experts=2"))
    printed = capsys.readouterr().out
    for part in ("test loss, last step", "validation loss: ", "merged_last.pt --protocol svm", "with experts"):
        assert part in printed
    assert "accuracy" not in printed.partition("with experts")[2]


@pytest.mark.parametrize(
    ("pretrained", "classifier", "line"),
    [
        (
            "point_mae",
            "model.name=point_mae_classifier",
            r"missing \(cls_head_finetune, cls_pos, cls_token\), \d+ unexpected \(MAE_decoder, decoder_pos_embed, "
            r"increase_dim, mask_token\)$",
        ),
        (
            "point_bert",
            "model={name: point_bert_classifier, dim: 16, depth: 2, num_heads: 2, num_groups: 8, group_size: 8, "
            "encoder_dim: 8, encoder_width: 8}",
            r"tensors loaded, 4 missing \(cls_head_finetune\), \d+ unexpected \(",
        ),
    ],
)
def test_what_was_pretrained_is_where_fine_tuning_starts(
    tiny: MakeExperiment,
    experiment: MakeExperiment,
    tokenizer: Path,
    tmp_path: Path,
    pretrained: str,
    classifier: str,
    line: str,
) -> None:
    """The encoder of the merged file, tensor by tensor; the experts of the classifier are copies of its FFNs."""
    own = (f"tokenizer={tokenizer}",) if pretrained == "point_bert" else ()
    run(tiny(pretrained, "train.steps=2", "ewa.num_experts=3", *own))
    weights = tmp_path / "run" / "checkpoints" / "merged_last.pt"
    file = read_checkpoint(weights)["base_model"]
    assert not any(".experts." in key for key in file)
    setup = build(experiment(classifier, "ewa.num_experts=4", f"init_from={weights}"), WORLD)
    (note,) = (note for note in setup.notes if note.startswith(f"weights: {weights}: "))
    assert torch.tensor(0).new_tensor(1) and note  # a note there is
    assert __import__("re").search(line, note), note
    prefix = {"point_mae": "MAE_encoder.", "point_bert": "transformer_q."}[pretrained]
    compared = 0
    for name, value in setup.model.state_dict().items():
        name = name.replace(".experts.", ".")
        if f"{prefix}{name}" in file:
            there = file[f"{prefix}{name}"]
            experts = value if value.dim() > there.dim() else [value]
            assert all(torch.equal(expert, there) for expert in experts), name
            compared += 1
    assert compared > 40
    assert [mixture.num_experts for mixture in expert_layers(setup.model).values()] == [4]
