"""Files that do not fit a model: the message says why, and which file it is; the model stays as it was."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import check_refused
from small_models import small, snapshot
from torch import nn

from pc_ewa.ewa import upcycle

Build = Callable[..., nn.Module]


@pytest.mark.parametrize(
    ("other", "facts"),
    [
        ({"dim": 24}, ("PointMAEClassifier", "such as encoder.")),
        ({"mlp_ratio": 2.0}, ("6 tensors", "blocks.blocks.0.mlp.fc1.weight", "(24, 12)", "(48, 12)")),
        ({"depth": 1}, ("11 tensors of the backbone", "blocks.blocks.1.norm1.weight")),
        ({"depth": 3}, ("11 of its tensors", "blocks.blocks.2.norm1.weight")),
    ],
    ids=str,
)
def test_other_architectures_are_refused(
    other: dict, facts: tuple[str, ...], classifier: Build, tmp_path: Path
) -> None:
    torch.save(classifier(**other).state_dict(), tmp_path / "other.pth")
    check_refused(tmp_path / "other.pth", classifier(), *facts)


def test_a_file_with_mixtures_is_sent_to_the_merge_tool(classifier: Build, tmp_path: Path) -> None:
    torch.save({"model": upcycle(classifier(), 2).state_dict()}, tmp_path / "last.pt")
    check_refused(tmp_path / "last.pt", classifier(), "holds mixtures of experts", "pc-ewa merge")


def test_an_upcycled_model_is_told_to_load_first(classifier: Build, tmp_path: Path) -> None:
    torch.save(classifier().state_dict(), tmp_path / "dense.pth")
    check_refused(tmp_path / "dense.pth", upcycle(classifier(), 2), "load_pretrained() first, upcycle() then")


@pytest.mark.parametrize("target", ["point_mae", "classifier"])
def test_a_pretraining_file_with_mixtures_is_sent_there_too(target: str, classifier: Build, tmp_path: Path) -> None:
    torch.save({"model": upcycle(small("point_mae"), 2).state_dict()}, tmp_path / "last.pt")
    check_refused(tmp_path / "last.pt", small("point_mae") if target == "point_mae" else classifier(), "pc-ewa merge")


def test_mixtures_of_another_number_of_experts_are_no_case_for_merging(classifier: Build, tmp_path: Path) -> None:
    torch.save({"model": upcycle(classifier(), 2).state_dict()}, tmp_path / "last.pt")
    check_refused(tmp_path / "last.pt", upcycle(classifier(), 3), ".experts.", "(2, 48, 12)", "(3, 48, 12)")


FILES = {  # keys that tell which file it is
    "a Point-BERT pre-training file": ("transformer_q.norm.weight", "dvae.codebook"),
    "a file of Point-BERT's dVAE": ("codebook", "encoder.first_conv.0.weight"),
    "a Point-BERT part segmentation file": ("propagation_2.mlp_bns.0.bias", "reduce_dim.bias"),
    "a Point-BERT classifier": ("cls_head_finetune.0.bias", "reduce_dim.bias"),
}


@pytest.mark.parametrize("title", FILES)
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_files_of_another_family_are_recognised(title: str, wrapper: str, classifier: Build, tmp_path: Path) -> None:
    torch.save({"base_model": {wrapper + key: torch.ones(3) for key in FILES[title]}}, tmp_path / "other.pth")
    for model in (small("point_mae"), classifier()):
        check_refused(tmp_path / "other.pth", model, type(model).__name__, f"it looks like {title}")


def test_a_file_of_the_same_family_is_named_when_nothing_of_it_fits(classifier: Build, tmp_path: Path) -> None:
    torch.save({"base_model": classifier().state_dict()}, tmp_path / "classifier.pth")
    check_refused(tmp_path / "classifier.pth", small("point_mae"), "it looks like a Point-MAE classifier")
    torch.save({"base_model": small("point_mae", depth=1).state_dict()}, tmp_path / "shallow.pth")
    check_refused(tmp_path / "shallow.pth", classifier(), "blocks.blocks.1.norm1.weight")


def test_a_point_bert_backbone_of_the_same_widths_is_refused(classifier: Build, tmp_path: Path) -> None:
    state = snapshot(classifier()) | {"reduce_dim.weight": torch.ones(12, 12), "reduce_dim.bias": torch.ones(12)}
    torch.save({"base_model": state}, tmp_path / "point_bert.pth")
    check_refused(tmp_path / "point_bert.pth", classifier(), "2 of its tensors", "reduce_dim.weight", "a Point-BERT")


def test_weights_of_something_else_are_refused(classifier: Build, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    check_refused(tmp_path / "linear.pth", classifier(), "of the backbone", "such as encoder")
