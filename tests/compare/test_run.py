"""Runs that are waited for or left out, and said so; and that a failure at the end loses nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compare_folder import finish

from pc_ewa.compare import Options, Plan, compare, outline
from pc_ewa.compare import run as run_module
from pc_ewa.compare.run import report

Make = Callable[..., Plan]
NO_COSTS = Options(jobs=1, costs=False)


def test_a_value_that_broke_is_left_out_and_named(
    plan: Make, trainer: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The seeds run at what is left of the sweep."""
    made = plan()
    for seed in (0, 1):
        for value in (1e-3, 1e-2):
            finish(made, made.run("dense", value, seed))
    finish(made, made.run("ewa", 1e-3, 0))
    trainer('''case "$*" in *train.lr=0.01*) echo "error: diverged"; exit 2;; esac
    echo '{"main_metric": "accuracy", "val_accuracy": 0.5, "test_accuracy_merged": 0.75}' > "$folder/summary.json"''')
    assert [tuple(entry) for entry in compare(made, NO_COSTS)] == [("ewa/lr_0.01/seed_0", "diverged")]
    saved = json.loads((made.output / "results.json").read_text())
    assert saved["variants"]["ewa"]["value"] == 1e-3
    assert saved["variants"]["ewa"]["scores"]["merged"] == {"0": 0.5, "1": 0.75}
    out = capsys.readouterr().out
    assert "- Left out of that choice, for runs that broke or have no finite score: EWA (0.01).\n" in out
    assert "- Broken: ewa/lr_0.01/seed_0: diverged\n" in out


def test_a_variant_whose_sweep_is_not_finished_is_left_out_and_named(
    plan: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    made = plan()
    for variant, values in (("dense", (1e-3, 1e-2)), ("ewa", (1e-3,))):
        for value in values:
            finish(made, made.run(variant, value, 0))
    lines = outline(made).splitlines()
    assert lines[-1].endswith("and the other seeds follow: ewa")
    assert not any("ewa/lr_0.001/seed_1" in line for line in lines)
    report(made, NO_COSTS, {})
    assert list(json.loads((made.output / "results.json").read_text())["variants"]) == ["dense"]
    assert "- Left out of the tables: EWA; its sweep is not finished.\n" in capsys.readouterr().out


def test_costs_that_cannot_be_measured_lose_no_results(
    plan: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = plan("sweep=null")
    for variant in made.variants:
        for run in made.final_runs(variant, None):
            finish(made, run)

    def fail(*_: Any) -> None:
        assert all((made.output / f"results.{kind}").is_file() for kind in ("json", "md", "csv"))
        raise RuntimeError("out of memory.\nTried to allocate")

    monkeypatch.setattr(run_module, "measure_costs", fail)
    report(made, Options(save=Path("docs")), {})
    assert "costs were not measured: RuntimeError: out of memory. Tried to allocate\n" in capsys.readouterr().out
    assert Path("docs/toys.json").is_file()
