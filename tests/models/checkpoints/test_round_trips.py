"""Every model into a file and back, merged, in both formats; and from pre-training to fine-tuning."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import SUFFIX, check_equal, distinct, save
from safetensors import safe_open
from safetensors.torch import load_file
from small_models import WITH_FFNS, run, tensors
from torch import Tensor, nn

from pc_ewa.errors import CheckpointError
from pc_ewa.ewa import expert_layers, merge_experts, upcycle
from pc_ewa.models import MODELS, load_pretrained
from pc_ewa.models.checkpoints.keys import fit_head
from pc_ewa.models.checkpoints.read import read_weights

Clouds = Callable[..., Tensor]
formats = pytest.mark.parametrize("format", SUFFIX)


@torch.no_grad()
def outputs(model: nn.Module, points: Tensor) -> list[Tensor]:
    """Every tensor that a model returns in evaluation."""
    return list(tensors(run(model.eval(), points)))


@formats
@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_comes_back_bit_by_bit(name: str, format: str, clouds: Clouds, tmp_path: Path) -> None:
    model, points = distinct(name, seed=1), clouds(0, 4, 32)
    if name in WITH_FFNS:
        keys, trained = list(model.state_dict()), upcycle(model, 3, "all", init="independent")
        assert expert_layers(trained)
        model = merge_experts(copy.deepcopy(trained))
        assert list(model.state_dict()) == keys
    path = save(model, tmp_path, format)
    fresh = distinct(name, seed=2)
    report = load_pretrained(path, fresh)
    assert report == (tuple(model.state_dict()), (), ())
    check_equal(fresh, model)
    ours, theirs = outputs(fresh, points), outputs(model, points)
    assert ours
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_the_official_code_loads_it_strictly(name: str, tmp_path: Path) -> None:
    model, fresh = distinct(name, seed=1), distinct(name, seed=2)
    ckpt = torch.load(save(model, tmp_path, "official"))  # weights_only, as torch has it
    base_ckpt = {k.replace("module.", ""): v for k, v in ckpt["base_model"].items()}
    assert list(base_ckpt) == list(model.state_dict())
    fresh.load_state_dict(base_ckpt, strict=True)
    check_equal(fresh, model)
    assert ("model_state_dict" in ckpt) == (model.task == "segment")
    if model.task == "segment":
        for key, value in ckpt["model_state_dict"].items():
            assert value.data_ptr() == base_ckpt[key].data_ptr(), "kept once"


@pytest.mark.parametrize("name", MODELS)
def test_safetensors_are_read_by_others(name: str, tmp_path: Path) -> None:
    model, fresh = distinct(name, seed=1), distinct(name, seed=2)
    path = save(model, tmp_path, "safetensors")
    fresh.load_state_dict(load_file(path), strict=True)
    check_equal(fresh, model)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "pt"


@formats
@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].task == "classify"])  # type: ignore[attr-defined]
def test_a_head_of_40_serves_15_classes(name: str, format: str, clouds: Clouds, tmp_path: Path) -> None:
    wide, model = distinct(name, seed=1, num_classes=40), distinct(name, num_classes=15)
    state, note = fit_head(read_weights(save(wide, tmp_path, format)), model)
    assert note is not None
    model.load_state_dict(state, strict=True)
    (ours,), (theirs,) = outputs(model, clouds(0, 4, 32)), outputs(wide, clouds(0, 4, 32))
    torch.testing.assert_close(ours, theirs[:, :15], rtol=0, atol=1e-5)


# From one model to another

MAE_REST = {"mask_token", "decoder_pos_embed", "MAE_decoder", "increase_dim"}
BERT_REST = {"mask_token", "lm_head", "transformer_q", "transformer_k", "dvae", "queue", "queue_ptr"}
TRANSFERS = [  # from, to, prefix of what is handed on, tokens that are handed on, parts of the file that are not
    ("point_mae", "point_mae_classifier", "MAE_encoder.", (), MAE_REST),
    ("point_mae", "point_mae_segmenter", "MAE_encoder.", (), MAE_REST),
    ("point_bert", "point_bert_classifier", "transformer_q.", ("cls_token", "cls_pos"), BERT_REST),
    ("point_bert", "point_bert_segmenter", "transformer_q.", ("cls_token", "cls_pos"), BERT_REST),
    ("point_bert", "dvae", "dvae.", (), {"transformer_q", "transformer_k", "queue", "queue_ptr"}),
    ("point_mae_classifier", "point_mae_segmenter", "", (), {"cls_token", "cls_pos", "cls_head_finetune"}),
    ("point_bert_classifier", "point_bert_segmenter", "", ("cls_token", "cls_pos"), {"cls_head_finetune"}),
]


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize(
    ("source", "target", "prefix", "tokens", "rest"), TRANSFERS, ids=[f"{t[0]} to {t[1]}" for t in TRANSFERS]
)
def test_the_backbone_is_handed_on(
    source: str, target: str, prefix: str, tokens: tuple[str, ...], rest: set[str], wrapper: str, tmp_path: Path
) -> None:
    given, model = distinct(source, seed=1), distinct(target, seed=2)
    before, state = copy.deepcopy(model.state_dict()), given.state_dict()
    torch.save({"base_model": {wrapper + key: value for key, value in state.items()}}, tmp_path / "pretrain.pth")
    report = load_pretrained(tmp_path / "pretrain.pth", model)
    heads = tuple(key for key in before if key.startswith(model.head_keys) and key not in tokens)  # type: ignore[arg-type]
    assert report.missing == heads
    assert report.loaded == tuple(key for key in before if key not in heads)
    assert {key.split(".")[0] for key in report.unexpected} == rest
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in heads else state[prefix + key]), key


@formats
@pytest.mark.parametrize(("source", "target"), [transfer[:2] for transfer in TRANSFERS if transfer[1] in WITH_FFNS])
def test_what_was_pretrained_with_experts_is_handed_on_once_merged(
    source: str, target: str, format: str, tmp_path: Path
) -> None:
    given, model = upcycle(distinct(source, seed=1), 2, "all", init="independent"), distinct(target, seed=2)
    torch.save({"model": given.state_dict()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="pc-ewa merge"):
        load_pretrained(tmp_path / "last.pt", model)
    with pytest.raises(CheckpointError, match="pc-ewa merge"):
        load_pretrained(tmp_path / "last.pt", distinct(source))
    report = load_pretrained(save(merge_experts(given), tmp_path, format), model)
    assert all(key.startswith(model.head_keys) for key in report.missing)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["point_mae", "point_mae_classifier", "point_mae_segmenter"])
@pytest.mark.parametrize(
    ("source", "title"),
    [
        ("point_bert", "a Point-BERT pre-training file"),
        ("dvae", "a file of Point-BERT's dVAE"),
        ("point_bert_classifier", "a Point-BERT classifier"),
        ("point_bert_segmenter", "a Point-BERT part segmentation file"),
    ],
)
def test_point_bert_is_no_point_mae(source: str, title: str, target: str, tmp_path: Path) -> None:
    """Even where all widths are the same."""
    torch.save({"base_model": distinct(source).state_dict()}, tmp_path / "other.pth")
    model = distinct(target, seed=2)
    with pytest.raises(CheckpointError, match=rf"PointMAE.*{title}$"):
        load_pretrained(tmp_path / "other.pth", model)
    check_equal(model, distinct(target, seed=2))


@pytest.mark.parametrize("target", ["point_bert", "dvae", "point_bert_classifier", "point_bert_segmenter"])
@pytest.mark.parametrize(
    ("source", "title"),
    [
        ("point_mae", "a Point-MAE pre-training file"),
        ("point_mae_classifier", "a Point-MAE classifier"),
        ("point_mae_segmenter", "a Point-MAE part segmentation file"),
    ],
)
def test_point_mae_is_no_point_bert(source: str, title: str, target: str, tmp_path: Path) -> None:
    torch.save({"base_model": distinct(source).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=rf"{title}$"):
        load_pretrained(tmp_path / "other.pth", distinct(target))
