"""The examples run, say what they found, and stay short enough to read."""

import importlib
import json
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import pc_ewa

FIGURES = ("mean", "deviations", "identity", "spread", "merging")


@pytest.fixture
def examples(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the examples, from which they import each other as scripts do."""
    folder = repository / "examples"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(repository)
    return folder


@pytest.fixture
def toy_vit(examples: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """any_vit.py with 2 blocks of width 8, which ablations.py and theory.py take too, and two learning rates."""
    module = importlib.import_module("any_vit")
    toy = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16}
    for key, size in toy.items():  # in the one dict that they all have
        monkeypatch.setitem(module.SIZE, key, size)
    monkeypatch.setattr(module, "RATES", (1e-3, 4e-3))
    return module


@pytest.fixture
def theory(toy_vit: ModuleType) -> ModuleType:
    return importlib.import_module("theory")


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run an example as its command line would, from its module."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    module.main()


def script(examples: Path, monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    """Run an example as it is."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(examples / name), run_name="__main__")


def test_any_vit_compares_with_dense_and_chooses_the_rate_on_validation(
    toy_vit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "digits.json"
    call(toy_vit, monkeypatch, "--seeds", 2, "--epochs", 1, "--json", file)
    printed, results = capsys.readouterr().out, json.loads(file.read_text())
    verdicts = ("no difference beyond noise", "gain of", "loss of", "the same", "on each of 2 seeds")
    for title in ("RUP, β = 0", "EWA, linear to 0.3"):
        row = next(line for line in printed.splitlines() if line.startswith(f"| {title}"))
        assert any(words in row for words in verdicts)
    assert "±" in printed
    assert results["command"] == "python examples/any_vit.py --seeds 2 --epochs 1"
    assert results["test_samples"] == 899
    assert list(results["variants"]) == ["dense", "rup", "ewa"]
    for variant in results["variants"].values():
        assert variant["sweep"].keys() == {"0.001", "0.004"}
        sums = {rate: sum(by_seed.values()) for rate, by_seed in variant["sweep"].items()}
        assert sums[f"{variant['value']:g}"] == max(sums.values())
        assert variant["scores"]["merged"].keys() == {"0", "1"}
        right = [899 * score for score in variant["scores"]["merged"].values()]
        assert right == pytest.approx([round(count) for count in right], abs=1e-9)
    assert str(tmp_path) not in file.read_text()


@pytest.mark.usefixtures("toy_vit")
def test_ablations_change_one_thing_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ablations.json"
    call(importlib.import_module("ablations"), monkeypatch, "--seeds", 1, "--epochs", 1, "--json", file)
    results = json.loads(file.read_text())
    assert results["summary"] is False
    assert "| all 4 FFNs" in capsys.readouterr().out
    settings = importlib.import_module("ablations").VARIANTS
    default = settings["ewa"][1:]
    for name, (_, experts, averaging) in settings.items():
        changed = [key for key in experts if experts[key] != default[0].get(key)]
        assert len(changed) + ("share_rate" in averaging or "schedule" in averaging) == (name not in ("dense", "ewa"))


def test_any_vit_splits_by_class_and_without_overlap(examples: Path) -> None:
    parts = importlib.import_module("digits").digits()
    assert {name: len(labels) for name, (_, labels) in parts.items()} == {"train": 538, "val": 360, "test": 899}
    for _, labels in parts.values():
        share = labels.bincount() / len(labels)
        assert (share - 0.1).abs().max() < 0.01
    pixels = [{image.numpy().tobytes() for image in images} for images, _ in parts.values()]
    assert not pixels[2] & (pixels[0] | pixels[1])
    assert not pixels[0] & pixels[1]


@pytest.mark.parametrize("wrong", [("--seeds", 0), ("--epochs", 0), ("--json", "no/such/folder/x.json")])
def test_any_vit_refuses_before_it_trains(
    examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: tuple[object, ...]
) -> None:
    with pytest.raises(SystemExit) as stop:
        script(examples, monkeypatch, "any_vit.py", *wrong)
    assert stop.value.code == 2
    assert "must be at least 1, and the folder of --json must exist" in capsys.readouterr().err


def test_trainer_finetune_saves_what_from_pretrained_takes(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate")
    for user in ("transformers.trainer", "pc_ewa.integrations.transformers"):  # a checkout has a folder `datasets`
        monkeypatch.setattr(f"{user}.is_datasets_available", lambda: False)
    script(examples, monkeypatch, "trainer_finetune.py", "--epochs", 1, "--output", tmp_path)
    printed = capsys.readouterr().out
    assert re.search(r"^dense: .*% val, .*% test$", printed, re.MULTILINE)
    assert re.search(r"^EWA: .*% val, .*% test$", printed, re.MULTILINE)
    assert (tmp_path / "EWA" / "model.safetensors").stat().st_size == (
        tmp_path / "dense/model.safetensors"
    ).stat().st_size


def test_timm_finetune_merges_to_the_keys_it_began_with(
    examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    small = ("--model", "vit_tiny_patch16_224", "--options", "patch_size=4", "embed_dim=12", "depth=2", "num_heads=3")
    script(examples, monkeypatch, "timm_finetune.py", "--epochs", 1, *small)
    printed = capsys.readouterr().out
    for name in ("dense", "EWA"):
        assert re.search(rf"^{name}: .*% val, .*% test$", printed, re.MULTILINE)


def test_examples_for_any_vit_are_short(examples: Path) -> None:
    for script in ("any_vit", "timm_finetune", "trainer_finetune"):
        assert len((examples / f"{script}.py").read_text().splitlines()) <= 80, script


def test_theory_holds_and_draws_its_figures(
    theory: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert theory.main(["--quick", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "All exact statements hold to 1e-12." in printed
    assert "VIOLATED" not in printed
    for figure in FIGURES:
        assert (tmp_path / f"{figure}.png").read_bytes()[:4] == b"\x89PNG"


def test_theory_notices_an_averaging_that_moves_the_mean(
    theory: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Towards the first expert instead of the mean."""
    monkeypatch.setattr("pc_ewa.ewa.averaging.merge_stack", lambda stack: stack[0].clone())
    kept = theory.mean_is_kept(tmp_path / "mean.png")
    assert [line.holds() for line in kept] == [False]


def test_docs_of_the_theory_show_every_figure(repository: Path) -> None:
    text = (repository / "docs" / "theory.md").read_text()
    for figure in FIGURES:
        assert f"(theory/{figure}.png)" in text
        assert (repository / "docs" / "theory" / f"{figure}.png").is_file()


def test_mechanism_measures_the_models_that_it_trained(
    toy_vit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mechanism = importlib.import_module("mechanism")
    for name, fewer in (("DIRECTIONS", 2), ("RADII", [0.0, 0.2]), ("ALONG", [0.0, 0.5, 1.0])):
        monkeypatch.setattr(mechanism, name, fewer)
    mechanism.main(["--seeds", "2", "--epochs", "2", "--output", str(tmp_path)])
    assert "dense models of two seeds give the same class to" in capsys.readouterr().out
    found = json.loads((tmp_path / "mechanism.json").read_text())
    for name, runs in found["runs"].items():
        for run, dense in zip(runs, found["runs"]["dense"], strict=True):
            assert run["ball_train"][0] == pytest.approx(run["train_loss"])
            assert run["line_test"][found["along"].index(0)] == pytest.approx(dense["test_loss"])
            assert run["line_test"][found["along"].index(1)] == pytest.approx(run["test_loss"])
            assert run["distance"][-1] == pytest.approx(run["distance_at_end"])
            assert len(run["spread"]) == (0 if name in ("dense", "slow") else 2)
    for figure in ("sharpness", "distance", "agreement"):
        assert (tmp_path / f"{figure}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_model_of_one_expert_is_that_expert(toy_vit: ModuleType) -> None:
    mechanism, lab = importlib.import_module("mechanism"), importlib.import_module("theory_lab")
    model = lab.build(0, 4, "independent")
    expert = dict(mechanism.one_expert(model, 2).named_parameters())
    layer, stacked = next(iter(pc_ewa.ewa.expert_layers(model).items()))
    for name, stack in stacked.named_parameters():
        assert any(torch.equal(stack[2], value) for value in expert.values()), (layer, name)
