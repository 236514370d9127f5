"""Saved folders: the same model comes back, cards tell and run, and damage is one line."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from saved_models import MODEL, SIZES, check_same, diverge, edit, made, weights
from small_models import small

import pc_ewa
from pc_ewa.errors import CheckpointError, Error
from pc_ewa.models import MODELS


@pytest.mark.parametrize("model", [made(), made(precision="bf16", preprocessing=None), made(class_names=None)])
def test_a_saved_folder_is_the_same_model(model: Any, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "deep" / "saved", metrics={"test_accuracy": 0.5})
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for again in (pc_ewa.from_pretrained(folder, device="cpu"), pc_ewa.load_model(str(folder), device="cpu")):
        check_same(again, model)
        for name in ("class_names", "preprocessing", "precision", "built_as"):
            assert getattr(again, name) == getattr(model, name), name
        assert not again.training
        assert again.training_record["metrics"] == {"test_accuracy": 0.5}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(weights(model))  # the official ones


def test_the_card_says_what_a_user_asks_and_nothing_of_this_machine(trained: Any, tmp_path: Path) -> None:
    folder = pc_ewa.load_model(trained.folder).save_pretrained(tmp_path / "saved", repo="me/shapes")
    card, config = (folder / "README.md").read_text(), (folder / "config.json").read_text()
    facts = ("sphere, cube, torus", f"{trained.summary['test_accuracy_merged']:.4g}", "licence", "up_axis", "Averaging")
    for fact in (*facts, 'load_model("me/shapes")', "| num_points | 48 |", "| test_samples | 12 |"):
        assert fact in card
    for text in (card, config):
        assert str(trained.folder) not in text
        assert str(trained.experiment.data.arguments["path"]) not in text
    record = json.loads(config)["training"]
    assert record["metrics"]["test_accuracy"] == trained.summary["test_accuracy_merged"]
    assert record["config"]["ewa"]["num_experts"] == 2


def test_experts_are_refused_with_the_way_out(tmp_path: Path) -> None:
    model = made()
    pc_ewa.upcycle(model, num_experts=2)
    with pytest.raises(CheckpointError, match=r"pc_ewa\.merge_experts\(model\)"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    pc_ewa.merge_experts(model).save_pretrained(tmp_path / "saved")
    gated = pc_ewa.upcycle(made(), gate=pc_ewa.Gate())
    with pytest.raises(CheckpointError, match="gate"):
        gated.save_pretrained(tmp_path / "gated")
    with pytest.raises(CheckpointError, match="create_model"):
        type(model)(3, **SIZES).save_pretrained(tmp_path / "direct")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{}"), "section model"),
        (lambda folder: edit(folder, format=2), "format 2"),
        (lambda folder: edit(folder, model={"name": "point_mae_classifier", "dim": 3 << 12, "num_heads": 3}), "larger"),
        (lambda folder: diverge(folder), "NaN"),
        (lambda folder: edit(folder, class_names=["a"]), "1 class_names for 3"),
        (lambda folder: edit(folder, class_names="abc"), "class_names"),
        (lambda folder: edit(folder, precision="int4"), "int4"),
        (lambda folder: edit(folder, preprocessing={"points": 3}), "points"),
        (lambda folder: edit(folder, preprocessing={"num_points": 0}), "num_points=0"),
        (lambda folder: edit(folder, preprocessing=[1]), "preprocessing"),
        (lambda folder: edit(folder, model=MODEL | {"depth": 10**9}), "depth=1000000000"),
        (lambda folder: edit(folder, preprocessing={"num_points": 16, "stored_points": 10**12}), "stored_points"),
        (lambda folder: edit(folder, class_names=["a", "b", "a"]), "'a' twice"),
        (lambda folder: edit(folder, training="x"), "training x"),
        (lambda folder: edit(folder, training={"data": 5}), "training.data 5"),
        (lambda folder: edit(folder, training={"data": {"name": "x"}}), "training.data"),
        (lambda folder: edit(folder, model={"name": "point_mae_clasifier"}), "'point_mae_classifier'"),
        (lambda folder: edit(folder, model={"name": "point_mae_classifier", "dim": "wide"}), "dim"),
        (lambda folder: edit(folder, model={"name": "point_mae_classifier", "num_classes": 3}), "does not fit"),
    ],
)
def test_a_damaged_folder_is_one_line(change: Any, fact: str, tmp_path: Path) -> None:
    folder = made().save_pretrained(tmp_path / "saved")
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        pc_ewa.from_pretrained(folder)
    assert fact in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"metrics": {"a": {1, 2}}}, {}),
        ({"notes": "\ud800"}, {}),
        ({}, {"class_names": ("a",)}),
        ({}, {"preprocessing": {"num_points": 16}}),
        ({}, {"class_names": ("a", "a", "b")}),
        ({}, {"norm": torch.nn.LayerNorm(12).requires_grad_(False).apply(lambda norm: norm.weight.fill_(torch.nan))}),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(options: Any, changes: Any, tmp_path: Path) -> None:
    folder = made().save_pretrained(tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Error):
        made(**changes).save_pretrained(folder, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_save_that_is_cut_off_leaves_no_mixture_of_two_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made().save_pretrained(tmp_path / "saved")
    monkeypatch.setattr("pc_ewa.inference.folder.write_text", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made().save_pretrained(folder)
    with pytest.raises(CheckpointError):
        pc_ewa.load_model(folder)


def test_numbers_of_numpy_and_compiled_models_are_saved(tmp_path: Path) -> None:
    metrics = {"a": np.float32(0.5), "b": torch.tensor(2), "c|d": "e|f"}
    compiled: Any = SimpleNamespace(_orig_mod=made())  # as torch.compile keeps it, which takes seconds to import
    folder = pc_ewa.inference.save_pretrained(compiled, tmp_path / "saved", metrics=metrics)
    again = pc_ewa.from_pretrained(folder, device="cpu")
    check_same(again, made())
    assert again.training_record == {"metrics": {"a": 0.5, "b": 2, "c|d": "e|f"}}


@pytest.mark.parametrize("name", ["my model", 'sa"id', "."])
def test_the_code_of_a_card_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    card = (made().save_pretrained(name) / "README.md").read_text()
    monkeypatch.chdir(tmp_path if name == "." else tmp_path / "here")
    np.save("chair.npy", np.random.default_rng(0).normal(size=(40, 3)))
    code = card.split("```python\n")[1].split("```")[0].replace("chair.ply", "chair.npy")
    known: dict[str, Any] = {}
    exec(code, known)
    assert known["prediction"].label in ("a", "b", "Stühle")


@pytest.mark.parametrize("name", MODELS)
def test_every_model_goes_through_a_folder(name: str, tmp_path: Path) -> None:
    model: Any = small(name)
    again: Any = pc_ewa.from_pretrained(model.save_pretrained(tmp_path / name), device="cpu")
    assert type(again) is type(model)
    assert again.built_as == model.built_as
    check_same(again, model)
