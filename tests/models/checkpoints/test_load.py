"""load_pretrained: official files in every layout, our own and those of others, and the report."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import State, check_loaded, save_base_model
from safetensors.torch import save_file
from small_models import small, snapshot
from torch import nn

from pc_ewa.ewa import upcycle
from pc_ewa.models import LoadReport, load_pretrained

Build = Callable[..., nn.Module]
HEAD_8 = ("cls_head_finetune.8.weight", "cls_head_finetune.8.bias")


LAYOUTS: dict[str, Callable[[State, Path], None]] = {
    "official, module.": save_base_model,
    "official, bare": lambda state, path: torch.save({"base_model": state, "epoch": 3}, path),
    "model": lambda state, path: torch.save({"model": state}, path),
    "part segmentation's": lambda state, path: torch.save({"model_state_dict": state, "epoch": 3}, path),
    "state_dict": lambda state, path: torch.save(state, path),
    "before torch 1.6": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "half precision": lambda state, path: torch.save(
        {key: value.half() if value.is_floating_point() else value for key, value in state.items()}, path
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_whole_classifier(layout: str, classifier: Build, tmp_path: Path) -> None:
    saved, model = snapshot(classifier(seed=1)), classifier()
    if layout == "half precision":
        saved = {key: value.half().to(value.dtype) for key, value in saved.items()}
    path = tmp_path / "classifier.pth"
    LAYOUTS[layout](saved, path)
    for spelling in (path, str(path)):
        report = load_pretrained(spelling, model)
        assert set(report.loaded) == set(saved)
        assert (report.missing, report.unexpected) == ((), ())
        assert report.line == f"{len(saved)} tensors loaded"
        check_loaded(model, saved, {})


def test_safetensors(classifier: Build, tmp_path: Path) -> None:
    saved, model = snapshot(classifier(seed=1)), classifier()
    save_file(saved, tmp_path / "weights.safetensors")
    assert len(load_pretrained(tmp_path / "weights.safetensors", model).loaded) == len(saved)
    check_loaded(model, saved, {})


@pytest.mark.parametrize("prefix", ["", "module."])
def test_point_mae_pretraining_file(prefix: str, classifier: Build, tmp_path: Path) -> None:
    """It has no class token, no head, and a decoder that has no place in a classifier."""
    model = classifier()
    before = snapshot(model)
    saved = {k: v for k, v in snapshot(classifier(seed=1)).items() if not k.startswith(("cls_token", "cls_"))}
    decoder = ("mask_token", "decoder_pos_embed.0.weight", "MAE_decoder.blocks.0.attn.qkv.weight",
               "MAE_decoder.norm.weight", "increase_dim.0.weight")  # fmt: skip
    file = {f"MAE_encoder.{key}": value for key, value in saved.items()} | {key: torch.ones(3) for key in decoder}
    torch.save({"base_model": {f"{prefix}{key}": value for key, value in file.items()}}, tmp_path / "pretrain.pth")
    report = load_pretrained(tmp_path / "pretrain.pth", model)
    kept = tuple(key for key in before if key not in saved)
    assert set(report.loaded) == set(saved)
    assert report.missing == kept
    assert {key.split(".")[0] for key in kept} == {"cls_token", "cls_pos", "cls_head_finetune"}
    assert set(report.unexpected) == set(decoder)
    assert report.line == (
        f"{len(saved)} tensors loaded, {len(kept)} missing (cls_head_finetune, cls_pos, cls_token), "
        "5 unexpected (MAE_decoder, decoder_pos_embed, increase_dim, mask_token)"
    )
    check_loaded(model, saved, before, kept)


def test_point_bert_pretraining_file(classifier: Build, tmp_path: Path) -> None:
    """Its query transformer is the backbone, tokens included; its contrastive head and its other networks are not."""
    model = classifier()
    before = snapshot(model)
    saved = {k: v for k, v in snapshot(classifier(seed=1)).items() if not k.startswith("cls_head")}
    extra = (
        "transformer_q.cls_head.0.weight",
        "transformer_k.norm.weight",
        "dvae.encoder.first_conv.0.weight",
        "queue",
    )
    file = {f"transformer_q.{key}": value for key, value in saved.items()} | {key: torch.ones(3) for key in extra}
    file["transformer_q.lm_head.weight"] = torch.ones(3)
    torch.save({"base_model": file}, tmp_path / "pretrain.pth")
    report = load_pretrained(tmp_path / "pretrain.pth", model)
    kept = tuple(key for key in before if key not in saved)
    assert report.missing == kept
    assert all(key.startswith("cls_head_finetune.") for key in kept)
    assert set(report.unexpected) == {*extra, "lm_head.weight"}
    check_loaded(model, saved, before, kept)


def test_the_report_is_a_table_of_parts() -> None:
    report = LoadReport(
        ("encoder.0.weight", "encoder.0.bias", "norm.weight", "cls_head_finetune.0.weight"),
        ("cls_token", "cls_head_finetune.8.weight", "cls_head_finetune.8.bias"),
        ("mask_token", "cls_head_finetune.8.weight"),
    )
    assert (
        str(report)
        == """\
module             loaded  missing  unexpected
encoder                 2        -           -
norm                    1        -           -
cls_head_finetune       1        2           1
cls_token               -        1           -
mask_token              -        -           1
total                   4        3           2"""
    )
    line = "4 tensors loaded, 3 missing (cls_head_finetune, cls_token), 2 unexpected (cls_head_finetune, mask_token)"
    assert report.line == line


def test_point_mae_fills_its_own_pretraining_model_whole(tmp_path: Path) -> None:
    saved, model = snapshot(small("point_mae", seed=1)), small("point_mae")
    save_base_model(saved, tmp_path / "pretrain.pth")
    report = load_pretrained(tmp_path / "pretrain.pth", model)
    assert (report.loaded, report.missing, report.unexpected) == (tuple(saved), (), ())
    check_loaded(model, saved, {})


def test_tokens_in_a_classifier_file_are_loaded(classifier: Build, tmp_path: Path) -> None:
    saved, model = snapshot(classifier(seed=1)), classifier()
    before = snapshot(model)
    saved = {key: value for key, value in saved.items() if not key.startswith("cls_head")}
    torch.save({"base_model": saved}, tmp_path / "headless.pth")
    report = load_pretrained(tmp_path / "headless.pth", model)
    assert {"cls_token", "cls_pos"} <= set(report.loaded)
    check_loaded(model, saved, before, report.missing)


def test_head_for_another_number_of_classes_is_left_out(classifier: Build, tmp_path: Path) -> None:
    saved, model = snapshot(classifier(seed=1, num_classes=40)), classifier(num_classes=5)
    before = snapshot(model)
    save_base_model(saved, tmp_path / "modelnet.pth")
    report = load_pretrained(tmp_path / "modelnet.pth", model)
    assert report.missing == report.unexpected == HEAD_8
    check_loaded(model, saved, before, HEAD_8)


def test_other_peoples_models_may_lack_a_head(tmp_path: Path) -> None:
    def build(classes: int) -> nn.Module:
        return nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, classes)})

    saved, model = build(7), build(5)
    torch.save(saved.state_dict(), tmp_path / "vit.pth")
    report = load_pretrained(tmp_path / "vit.pth", model)
    assert report == (("body.weight", "body.bias"), ("head.weight", "head.bias"), ("head.weight", "head.bias"))
    assert torch.equal(model["body"].weight, saved["body"].weight)


def test_loading_before_upcycling_gives_every_expert_the_weights(classifier: Build, tmp_path: Path) -> None:
    saved, model = classifier(seed=1), classifier()
    torch.save(saved.state_dict(), tmp_path / "dense.pth")
    load_pretrained(tmp_path / "dense.pth", model)
    upcycle(model, 2, "all")
    for expert in model.blocks.blocks[0].mlp.experts.fc1.weight:
        assert torch.equal(expert, saved.blocks.blocks[0].mlp.fc1.weight)
