"""examples/digits_small.py: every kind of arm trains, and what ran is not run again."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pc_ewa.compare.results import read_results


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with a sweep of two rates."""
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(repository / "examples")
    module = importlib.import_module("digits_small")
    monkeypatch.setattr(module, "RATES", (1e-3, 2e-3))
    monkeypatch.setattr(module, "EXTEND", 1)
    kinds = ("dense", "ewa", "naive", "naive_ewa", "mean_start", "ema", "slow", "ewa_lr")  # one arm of each
    monkeypatch.setattr(module, "ARMS", {name: module.ARMS[name] for name in kinds})
    return module


def test_a_damaged_line_of_the_ledger_is_named(script: ModuleType, tmp_path: Path) -> None:
    ledger = tmp_path / "digits.runs.jsonl"
    ledger.write_text('{"arm": "den')
    with pytest.raises(SystemExit, match=r"digits\.runs\.jsonl: .*not a finished run"):
        script.Runs(ledger, 100, 1)


@pytest.fixture
def quick(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with 40 images to validate and 40 to test, and models of width 8."""
    whole = script.few_digits
    monkeypatch.setattr(script, "SIZE", script.SIZE | {"hidden_size": 8, "intermediate_size": 16})

    def fewer(images: int) -> dict[str, Any]:
        return {
            name: (data[:40], labels[:40]) if name != "train" else (data, labels)
            for name, (data, labels) in whole(images).items()
        }

    monkeypatch.setattr(script, "few_digits", fewer)
    return script


def call(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["digits_small.py", "--images", "100", "--epochs", "1", *map(str, arguments)])
    script.main()


def test_every_kind_of_arm_trains_and_a_second_call_goes_on(
    quick: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "digits_100.json"
    ledger = tmp_path / "digits_100.runs.jsonl"
    call(quick, monkeypatch, "--seeds", 1, "--json", file)
    results = read_results(file)
    assert list(results["variants"]) == list(quick.ARMS)
    assert results["variants"]["naive_ewa"]["against"] == "naive"
    assert results["comparisons"] == quick.COMPARISONS
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert len({(line["arm"], line["lr"], line["seed"]) for line in lines}) == len(lines) >= 2 * len(quick.ARMS)
    assert len({line["settings"] for line in lines}) == len(quick.ARMS)
    capsys.readouterr()
    trained = []
    train = quick.train
    monkeypatch.setattr(quick, "train", lambda *arguments: trained.append(arguments[3]) or train(*arguments))
    call(quick, monkeypatch, "--seeds", 1, "--json", file)
    assert trained == []
    call(quick, monkeypatch, "--seeds", 2, "--only", "dense", "--json", file)
    assert trained.count(1) >= 2
    runs = [(line["arm"], line["lr"], line["seed"]) for line in map(json.loads, ledger.read_text().splitlines())]
    assert len(set(runs)) == len(runs)
    assert str(tmp_path) not in ledger.read_text()


def test_few_digits_are_as_many_of_each_class_and_never_those_of_the_test(script: ModuleType) -> None:
    parts = script.few_digits(100)
    assert {name: len(labels) for name, (_, labels) in parts.items()} == {"train": 100, "val": 360, "test": 899}
    counts = parts["train"][1].bincount()
    assert counts.max() - counts.min() <= 1
    images = {image.numpy().tobytes() for image in parts["train"][0]}
    assert not images & {image.numpy().tobytes() for image in parts["test"][0]}


def test_slow_ffns_are_those_that_would_be_experts(script: ModuleType) -> None:
    torch.manual_seed(0)
    model = script.ViTForImageClassification(script.ViTConfig(**script.SIZE))
    (others, one), (slow, factor) = script._groups(model, 0.66)
    assert (one, factor) == (1.0, 0.66)
    assert sum(p.numel() for p in slow) == 2 * (32 * 128 * 2 + 128 + 32)  # two of four FFNs
    assert len(others) + len(slow) == len([*model.parameters()])


@pytest.mark.parametrize("wrong", [("--images", 90), ("--seeds", 0), ("--only", "dens"), ("--json", "no/x.json")])
def test_a_wrong_call_is_refused_before_it_trains(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, wrong: tuple[object, ...]
) -> None:
    monkeypatch.setattr(script, "train", None)
    with pytest.raises(SystemExit) as stop:
        call(script, monkeypatch, *wrong)
    assert stop.value.code == 2
