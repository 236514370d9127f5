"""Checkpoint files made here in the official layouts, and files that are none."""

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from pc_ewa.errors import CheckpointError
from pc_ewa.ewa import upcycle
from pc_ewa.models import LoadReport, create_model, load_pretrained
from pc_ewa.models.checkpoints.keys import fit_head, rename_keys
from pc_ewa.models.checkpoints.read import read_content, read_weights

Build = Callable[..., nn.Module]
State = dict[str, Tensor]
HEAD_8 = ("cls_head_finetune.8.weight", "cls_head_finetune.8.bias")


def point_mae(seed: int = 0, **kwargs: object) -> nn.Module:
    torch.manual_seed(seed)
    small = {"dim": 12, "depth": 2, "num_heads": 3, "num_groups": 8, "group_size": 4, "encoder_width": 8}
    return create_model("point_mae", **{**small, "decoder_depth": 1, **kwargs})


def snapshot(model: nn.Module) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def check_loaded(model: nn.Module, expected: State, untouched: State, kept: tuple[str, ...] = ()) -> None:
    """The model holds what the file has, but for the keys that it `kept` from before."""
    for key, value in model.state_dict().items():
        assert torch.equal(value, (untouched if key in kept else expected)[key]), key


def save_base_model(state: State, path: Path) -> None:
    """As Point-MAE and Point-BERT save it, here under DataParallel and with a metric that is a numpy number."""
    torch.save(
        {
            "base_model": {f"module.{key}": value for key, value in state.items()},
            "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 5e-4, "params": [0]}]},
            "epoch": 299,
            "metrics": {"acc": np.float64(92.1)},
            "best_metrics": {"acc": torch.tensor(93.2)},
        },
        path,
    )


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


# The same Point-BERT file, as different models see it

POINT_BERT = ("transformer_q.norm.weight", "transformer_q.norm.bias", "transformer_q.cls_token",
              "transformer_q.cls_head.0.weight", "transformer_k.norm.weight", "dvae.codebook", "dvae.norm.weight",
              "queue")  # fmt: skip


def renamed(keys: tuple[str, ...], wanted: tuple[str, ...]) -> list[str]:
    """What each key is called then; the tensors tell which is which."""
    state = {key: torch.tensor(i) for i, key in enumerate(keys)}
    result = {int(value): key for key, value in rename_keys(state, wanted).items()}
    return [result[i] for i in range(len(keys))]


@pytest.mark.parametrize("wrapper", ["", "module.", "base_model.", "module.base_model."])
def test_the_prefix_where_most_of_the_model_is_goes(wrapper: str) -> None:
    keys = tuple(wrapper + key for key in POINT_BERT)
    assert renamed(keys, POINT_BERT) == list(POINT_BERT), "the pre-training model itself"
    backbone = ["norm.weight", "norm.bias", "cls_token", *POINT_BERT[3:]]
    assert renamed(keys, ("cls_token", "norm.weight", "norm.bias", "cls_head_finetune.0.weight")) == backbone
    assert renamed(keys, ("codebook", "norm.weight")) == [*POINT_BERT[:5], "codebook", "norm.weight", "queue"]
    assert renamed(keys, ("stem.weight",)) == list(POINT_BERT), "nothing of it is anywhere"


def test_the_contrastive_head_is_renamed_only_for_a_model_that_has_it() -> None:
    query = tuple(key.removeprefix("transformer_q.") for key in POINT_BERT[:4])
    assert renamed(POINT_BERT[:4], query) == list(query)


def test_a_bare_key_gives_way_to_one_under_the_prefix() -> None:
    state = {
        "MAE_encoder.norm.weight": torch.tensor(1),
        "norm.weight": torch.tensor(2),
        "MAE_encoder.a": torch.zeros(1),
    }
    assert rename_keys(state, ["norm.weight", "a"])["norm.weight"] == 1


def test_point_mae_fills_its_own_pretraining_model_whole(tmp_path: Path) -> None:
    saved, model = snapshot(point_mae(seed=1)), point_mae()
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


def test_other_peoples_models_may_lack_a_head(tmp_path: Path) -> None:
    def build(classes: int) -> nn.Module:
        return nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, classes)})

    saved, model = build(7), build(5)
    torch.save(saved.state_dict(), tmp_path / "vit.pth")
    report = load_pretrained(tmp_path / "vit.pth", model)
    assert report == (("body.weight", "body.bias"), ("head.weight", "head.bias"), ("head.weight", "head.bias"))
    assert torch.equal(model["body"].weight, saved["body"].weight)


# Heads of more classes, for evaluation


def test_a_head_of_more_classes_is_cut_to_the_first(classifier: Build, clouds: Callable[..., Tensor]) -> None:
    wide, model = classifier(seed=1, num_classes=40).eval(), classifier(num_classes=15).eval()
    state = snapshot(wide)
    fitted, note = fit_head(state, model)
    assert note == (
        "the head has 40 outputs, the data 15 classes: the first 15 are used, as in the official ScanObjectNN files"
    )
    assert list(fitted) == list(state)
    model.load_state_dict(fitted, strict=True)
    torch.testing.assert_close(model(clouds(0, 2, 32)), wide(clouds(0, 2, 32))[:, :15], rtol=0, atol=1e-6)
    assert state[HEAD_8[0]].shape[0] == 40, "what was given stays as it was"


@pytest.mark.parametrize(
    "other",
    [{"num_classes": 5}, {"num_classes": 4}, {"dim": 24}, {"depth": 1}],
    ids=["equal", "fewer", "wider", "less"],
)
def test_other_heads_stay_as_they_are(other: dict, classifier: Build) -> None:
    state = snapshot(classifier(**other))
    fitted, note = fit_head(state, classifier(num_classes=5))
    assert note is None
    assert fitted is state


def test_a_damaged_head_is_left_to_strict_loading(classifier: Build) -> None:
    model, state = classifier(num_classes=5), snapshot(classifier(num_classes=40))
    narrow = state | {HEAD_8[0]: torch.zeros(40, 100)}
    uneven = state | {HEAD_8[1]: torch.zeros(39)}
    halved = {key: value for key, value in state.items() if key != HEAD_8[1]}
    for wrong in (narrow, uneven, halved, {}):
        assert fit_head(wrong, model) == (wrong, None)


def test_only_classifiers_have_a_head_to_cut() -> None:
    state = snapshot(point_mae(group_size=5))
    assert fit_head(state, point_mae()) == (state, None)
    state = snapshot(nn.Linear(3, 40))
    assert fit_head(state, nn.Linear(3, 5)) == (state, None)


def test_head_for_another_number_of_classes_is_left_out(classifier: Build, tmp_path: Path) -> None:
    saved, model = snapshot(classifier(seed=1, num_classes=40)), classifier(num_classes=5)
    before = snapshot(model)
    save_base_model(saved, tmp_path / "modelnet.pth")
    report = load_pretrained(tmp_path / "modelnet.pth", model)
    assert report.missing == report.unexpected == HEAD_8
    check_loaded(model, saved, before, HEAD_8)


# What else a file holds


def test_content_is_alike_whatever_the_layout(tmp_path: Path) -> None:
    weight, about = torch.arange(3.0), {"config": {"seed": 1}, "class_names": ["a", "b"], "epoch": 3}
    for name in ("model", "base_model", "model_state_dict", "state_dict"):
        torch.save({name: {"weight": weight}, **about}, tmp_path / "any.pth")
        content = read_content(tmp_path / "any.pth")
        assert torch.equal(content.pop("base_model")["weight"], weight)
        assert content == about
    save_file({"weight": weight}, tmp_path / "any.safetensors", {key: json.dumps(v) for key, v in about.items()})
    content = read_content(tmp_path / "any.safetensors")
    assert torch.equal(content.pop("base_model")["weight"], weight)
    assert content == about
    torch.save({"weight": weight}, tmp_path / "bare.pth")
    assert list(read_content(tmp_path / "bare.pth")) == ["base_model"]


def test_metadata_of_others_is_kept_as_it_is(tmp_path: Path) -> None:
    metadata = {"format": "pt", "base_model": "some/name", "licence": "CC0", "odd": "[" * 100_000, "list": "[1"}
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors", metadata)
    content = read_content(tmp_path / "other.safetensors")
    assert list(content.pop("base_model")) == ["weight"]
    assert content == {key: metadata[key] for key in ("licence", "odd", "list")}


def test_loading_before_upcycling_gives_every_expert_the_weights(classifier: Build, tmp_path: Path) -> None:
    saved, model = classifier(seed=1), classifier()
    torch.save(saved.state_dict(), tmp_path / "dense.pth")
    load_pretrained(tmp_path / "dense.pth", model)
    upcycle(model, 2, "all")
    for expert in model.blocks.blocks[0].mlp.experts.fc1.weight:
        assert torch.equal(expert, saved.blocks.blocks[0].mlp.fc1.weight)


# Files that do not fit; the model stays as it was


def check_refused(path: Path, model: nn.Module, message: str) -> None:
    before, layout = snapshot(model), repr(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(path, model)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert repr(model) == layout
    check_loaded(model, before, {})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"dim": 24},
            r"does not fit PointMAEClassifier: \d+ tensors differ in shape, such as encoder\.",
        ),
        ({"mlp_ratio": 2.0}, r"6 tensors differ in shape, such as blocks\.blocks\.0\.mlp\.fc1\.weight: \(24, 12\) in"),
        ({"depth": 1}, r"11 tensors of the backbone are not in it, such as blocks\.blocks\.1\.norm1\.weight"),
        ({"depth": 3}, r"11 of its tensors have no place in the model, such as blocks\.blocks\.2\.norm1\.weight"),
    ],
    ids=str,
)
def test_other_architectures_are_refused(other: dict, message: str, classifier: Build, tmp_path: Path) -> None:
    torch.save(classifier(**other).state_dict(), tmp_path / "other.pth")
    check_refused(tmp_path / "other.pth", classifier(), message)


def test_a_file_with_mixtures_is_sent_to_the_merge_tool(classifier: Build, tmp_path: Path) -> None:
    torch.save({"model": upcycle(classifier(), 2).state_dict()}, tmp_path / "last.pt")
    message = r"it holds mixtures of experts; merge it first: pc-ewa merge CHECKPOINT"
    check_refused(tmp_path / "last.pt", classifier(), message)


def test_an_upcycled_model_is_told_to_load_first(classifier: Build, tmp_path: Path) -> None:
    torch.save(classifier().state_dict(), tmp_path / "dense.pth")
    message = r"the model has mixtures of experts, the file has none; load_pretrained\(\) first, upcycle\(\) then"
    check_refused(tmp_path / "dense.pth", upcycle(classifier(), 2), message)


@pytest.mark.parametrize("target", ["point_mae", "classifier"])
def test_a_pretraining_file_with_mixtures_is_sent_there_too(target: str, classifier: Build, tmp_path: Path) -> None:
    torch.save({"model": upcycle(point_mae(), 2).state_dict()}, tmp_path / "last.pt")
    message = r"it holds mixtures of experts; merge it first: pc-ewa merge CHECKPOINT"
    check_refused(tmp_path / "last.pt", point_mae() if target == "point_mae" else classifier(), message)


def test_mixtures_of_another_number_of_experts_are_no_case_for_merging(classifier: Build, tmp_path: Path) -> None:
    torch.save({"model": upcycle(classifier(), 2).state_dict()}, tmp_path / "last.pt")
    message = r"tensors differ in shape, such as .*\.experts\..*: \(2, 48, 12\) in the file, \(3, 48, 12\) in the model"
    check_refused(tmp_path / "last.pt", upcycle(classifier(), 3), message)


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
    for model in (point_mae(), classifier()):
        check_refused(tmp_path / "other.pth", model, rf"does not fit .*; it looks like {title}$")


def test_a_file_of_the_same_family_is_named_when_nothing_of_it_fits(classifier: Build, tmp_path: Path) -> None:
    torch.save({"base_model": classifier().state_dict()}, tmp_path / "classifier.pth")
    check_refused(
        tmp_path / "classifier.pth",
        point_mae(),
        r"tensors of the model are not in it.*; it looks like a Point-MAE classifier$",
    )
    torch.save({"base_model": point_mae(depth=1).state_dict()}, tmp_path / "shallow.pth")
    check_refused(tmp_path / "shallow.pth", classifier(), r"such as blocks\.blocks\.1\.norm1\.weight$")


def test_a_point_bert_backbone_of_the_same_widths_is_refused(classifier: Build, tmp_path: Path) -> None:
    state = snapshot(classifier()) | {"reduce_dim.weight": torch.ones(12, 12), "reduce_dim.bias": torch.ones(12)}
    torch.save({"base_model": state}, tmp_path / "point_bert.pth")
    message = r"2 of its tensors have no place in the model, such as reduce_dim.weight; it looks like a Point-BERT"
    check_refused(tmp_path / "point_bert.pth", classifier(), message)


def test_weights_of_something_else_are_refused(classifier: Build, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    check_refused(tmp_path / "linear.pth", classifier(), r"tensors of the backbone are not in it, such as encoder")


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors", ""])
def test_missing_files_and_folders_are_refused(name: str, classifier: Build, tmp_path: Path) -> None:
    check_refused(tmp_path / name, classifier(), r"is not a file")


@pytest.mark.parametrize("suffix", ["pth", "old.pth", "safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.99])
def test_truncated_files_are_refused(part: float, suffix: str, classifier: Build, tmp_path: Path) -> None:
    model, path = classifier(), tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=suffix == "pth")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    check_refused(path, model, r"is damaged or not ")


@pytest.mark.parametrize(
    "content", [b"<html>404 Not Found</html>", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"hello"], ids=str
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_another_kind_are_refused(content: bytes, suffix: str, classifier: Build, tmp_path: Path) -> None:
    path = tmp_path / f"page.{suffix}"
    path.write_bytes(content)
    check_refused(path, classifier(), r"is damaged or not ")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.sampled_from([b"", pickle.PROTO + b"\x02"]))
def test_no_file_whatever_its_bytes_raises_anything_else(tmp_path: Path, content: bytes, start: bytes) -> None:
    path = tmp_path / "any.pth"
    path.write_bytes(start + content)
    with pytest.raises(CheckpointError):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}, "epoch": 3}, r"holds no weights; expected a state_dict, alone or under model, base_model"),
        ({"base_model": {"epoch": 3}}, r"holds no weights"),
        ({3: torch.zeros(2)}, r"holds no weights"),
        ([torch.zeros(2)], r"holds a list; expected a dict of weights"),
        (torch.zeros(2), r"holds a Tensor; expected a dict of weights"),
    ],
    ids=["empty", "no tensors", "numbered", "list", "tensor"],
)
def test_files_without_weights_are_refused(content: object, message: str, classifier: Build, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "no_weights.pth")
    check_refused(tmp_path / "no_weights.pth", classifier(), message)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain pickle"])
def test_objects_in_a_file_are_named_and_never_run(zipped: bool, classifier: Build, tmp_path: Path) -> None:
    trap, path = Trap(tmp_path / "sprung"), tmp_path / "trap.pth"
    content = {"base_model": classifier().state_dict(), "config": trap}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    check_refused(path, classifier(), r"holds (posix|os|nt)\.mkdir; only plain weights are read")
    assert not trap.folder.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.folder.exists(), "the trap works"


def test_a_whole_pickled_model_is_refused_by_its_class(classifier: Build, tmp_path: Path) -> None:
    torch.save(copy.deepcopy(classifier()), tmp_path / "model.pth")
    message = r"holds pc_ewa\.models\.point_mae_classifier\.PointMAEClassifier; only plain weights are read"
    check_refused(tmp_path / "model.pth", classifier(), message)
