"""Every model into a file and back: merged, in both formats; and from pre-training to fine-tuning."""

import copy
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pc_ewa.errors import CheckpointError
from pc_ewa.ewa import expert_layers, merge_experts, upcycle
from pc_ewa.models import MODELS, create_model, load_pretrained
from pc_ewa.models.checkpoints.keys import fit_head
from pc_ewa.models.checkpoints.read import read_content, read_weights
from pc_ewa.models.checkpoints.write import save_weights

Clouds = Callable[..., Tensor]
SMALL = {"dim": 12, "depth": 3, "num_heads": 3, "num_groups": 8, "group_size": 4, "encoder_width": 8, "encoder_dim": 12,
         "decoder_depth": 1, "num_parts": 7, "num_categories": 3, "levels": (16, 12), "num_tokens": 8, "tokens_dim": 8,
         "decoder_dim": 8, "decoder_width": 8, "graph_width": 8, "contrast_dim": 8, "queue_size": 16}  # fmt: skip
NO_FFN = ("dvae",)  # it has no transformer
CONFIG = {"seed": 3, "model": {"name": "any", "dim": 12, "ratios": [0.25, 0.45]}, "ewa": None}
NAMES = ["chair", 'table "round"', "Stühle"]
EXTRA = {"epoch": 7, "metrics": {"acc": 0.5}, "note": "ours"}
SUFFIX = {"official": "pth", "safetensors": "safetensors"}
formats = pytest.mark.parametrize("format", SUFFIX)


def small(name: str, seed: int = 0, **kwargs: object) -> nn.Module:
    """A model in which every weight and every statistic differs from that of another seed."""
    return copy.deepcopy(_built(name, seed, **kwargs))


@functools.cache
def _built(name: str, seed: int, **kwargs: object) -> nn.Module:
    torch.manual_seed(seed)
    accepted = inspect.signature(MODELS[name]).parameters
    model = create_model(name, **{key: value for key, value in (SMALL | kwargs).items() if key in accepted})
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))
    return model


def outputs(model: nn.Module, points: Tensor) -> list[Tensor]:
    """Every tensor that a model returns in evaluation."""
    needs_categories = "categories" in inspect.signature(model.forward).parameters
    with torch.no_grad():
        output = model.eval()(points, torch.arange(len(points)) % 3) if needs_categories else model.eval()(points)
    return list(_tensors(output))


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict | tuple | list):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)


def check_equal(model: nn.Module, expected: nn.Module) -> None:
    for (key, value), (other, wanted) in zip(model.state_dict().items(), expected.state_dict().items(), strict=True):
        assert key == other
        assert value.dtype == wanted.dtype
        assert torch.equal(value, wanted), key


def save(model: nn.Module, folder: Path, format: str) -> Path:
    path = folder / f"merged.{SUFFIX[format]}"
    save_weights(model, path, format, CONFIG, NAMES, EXTRA)  # type: ignore[arg-type]
    return path


@formats
@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_comes_back_bit_by_bit(name: str, format: str, clouds: Clouds, tmp_path: Path) -> None:
    model, points = small(name, seed=1), clouds(0, 4, 32)
    if name not in NO_FFN:
        keys, trained = list(model.state_dict()), upcycle(model, 3, "all", init="independent")
        assert expert_layers(trained)
        model = merge_experts(copy.deepcopy(trained))
        assert list(model.state_dict()) == keys
    path = save(model, tmp_path, format)
    fresh = small(name, seed=2)
    report = load_pretrained(path, fresh)
    assert report == (tuple(model.state_dict()), (), ())
    check_equal(fresh, model)
    ours, theirs = outputs(fresh, points), outputs(model, points)
    assert ours
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_the_official_code_loads_it_strictly(name: str, tmp_path: Path) -> None:
    model, fresh = small(name, seed=1), small(name, seed=2)
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
    model, fresh = small(name, seed=1), small(name, seed=2)
    path = save(model, tmp_path, "safetensors")
    fresh.load_state_dict(load_file(path), strict=True)
    check_equal(fresh, model)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "pt"


@formats
def test_config_names_and_extras_come_back(format: str, tmp_path: Path) -> None:
    content = read_content(save(small("point_mae_classifier"), tmp_path, format))
    assert set(content.pop("base_model")) == set(small("point_mae_classifier").state_dict())
    assert content == {"config": CONFIG, "class_names": NAMES, **EXTRA}


@formats
@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].task == "classify"])  # type: ignore[attr-defined]
def test_a_head_of_40_serves_15_classes(name: str, format: str, clouds: Clouds, tmp_path: Path) -> None:
    wide, model = small(name, seed=1, num_classes=40), small(name, num_classes=15)
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
    given, model = small(source, seed=1), small(target, seed=2)
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
@pytest.mark.parametrize(("source", "target"), [transfer[:2] for transfer in TRANSFERS if transfer[1] not in NO_FFN])
def test_what_was_pretrained_with_experts_is_handed_on_once_merged(
    source: str, target: str, format: str, tmp_path: Path
) -> None:
    given, model = upcycle(small(source, seed=1), 2, "all", init="independent"), small(target, seed=2)
    torch.save({"model": given.state_dict()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"holds mixtures of experts; merge it first"):
        load_pretrained(tmp_path / "last.pt", model)
    with pytest.raises(CheckpointError, match=r"holds mixtures of experts; merge it first"):
        load_pretrained(tmp_path / "last.pt", small(source))
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
    torch.save({"base_model": small(source).state_dict()}, tmp_path / "other.pth")
    model = small(target, seed=2)
    with pytest.raises(CheckpointError, match=rf"does not fit PointMAE\w*: .*; it looks like {title}$"):
        load_pretrained(tmp_path / "other.pth", model)
    check_equal(model, small(target, seed=2))


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
    torch.save({"base_model": small(source).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=rf"does not fit \w+: .*; it looks like {title}$"):
        load_pretrained(tmp_path / "other.pth", small(target))


# What is not written


@formats
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"config": 3}, "extra has 'config', which is reserved"),
        ({"base_model": {}}, "extra has 'base_model', which is reserved"),
        ({"acc": torch.zeros(1)}, "'acc' cannot be kept in a file of weights: .*Tensor is not JSON serializable"),
        ({"path": Path("a")}, "'path' cannot be kept"),
    ],
    ids=str,
)
def test_extras_that_would_be_lost_are_refused(extra: dict, message: str, format: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        save_weights(nn.Linear(2, 2), tmp_path / f"a.{SUFFIX[format]}", format, {}, [], extra)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


@formats
def test_a_model_with_mixtures_is_not_written(format: str, tmp_path: Path) -> None:
    model = upcycle(small("point_mae_classifier"), 2, "all")
    with pytest.raises(ValueError, match=r"the model has 3 mixtures of experts; merge_experts\(\) it first"):
        save(model, tmp_path, format)
    assert os.listdir(tmp_path) == []


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format='onnx'; choose from official, safetensors"):
        save_weights(nn.Linear(2, 2), tmp_path / "a.onnx", "onnx", {}, [], {})  # type: ignore[arg-type]


@formats
def test_a_write_that_fails_leaves_the_old_file(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    model = small("point_mae_classifier", seed=1)
    path = save(model, tmp_path, format)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=rf"cannot write {path}: No space left on device; free some space"):
        save(small("point_mae_classifier", seed=2), tmp_path, format)
    assert os.listdir(tmp_path) == [path.name]
    fresh = small("point_mae_classifier")
    load_pretrained(path, fresh)
    check_equal(fresh, model)
    with pytest.raises(CheckpointError, match=r"cannot write .*No such file or directory"):
        save(model, tmp_path / "none", format)


@formats
def test_views_and_shared_weights_are_written_as_what_they_are(format: str, tmp_path: Path) -> None:
    """Part of a large tensor, a transposed one, one under two names: files hold the numbers, no memory around them."""
    model, large = nn.Module(), torch.randn(1000, 1000)
    model.part, model.turned = nn.Parameter(large[:2, :3]), nn.Parameter(torch.randn(3, 4).t())
    model.same = model.turned
    path = save(model, tmp_path, format)
    assert path.stat().st_size < 10_000
    state = read_weights(path)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
