"""The value of a variant is chosen on validation alone."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compare_folder import finish

from pc_ewa.compare import Options, Plan, compare
from pc_ewa.compare.report import as_markdown
from pc_ewa.compare.results import collect
from pc_ewa.compare.sweep import choose_value, chosen, edge, final_runs, is_settled, sweep_runs
from pc_ewa.errors import ConfigError

Make = Callable[..., Plan]


def test_validation_chooses_and_test_is_never_looked_at(plan: Make) -> None:
    made = plan()
    for value, val, test in ((1e-3, 0.6, 0.1), (1e-2, 0.5, 0.9)):  # the best of all epochs does not count either
        finish(made, made.run("dense", value, 0), val=val, test=test, best=test)
    assert chosen(made, "dense") == 1e-3
    for value in (1e-3, 1e-2):  # the same without any score on test
        path = made.run("dense", value, 0).folder / "summary.json"
        summary = json.loads(path.read_text())
        path.write_text(json.dumps({key: entry for key, entry in summary.items() if "test" not in key}))
    assert chosen(made, "dense") == 1e-3
    finish(made, made.run("ewa", 1e-3, 0))
    assert not is_settled(made, "ewa")  # while a run of the sweep is to do, its value may be the best
    assert is_settled(made, "ewa", [made.run("ewa", 1e-2, 0).folder])  # that broke
    assert not is_settled(made, "ewa", [made.run("dense", 1e-2, 0).folder])
    assert [run.folder.as_posix() for runs in final_runs(made).values() for run in runs] == [
        "runs/compare/toys/dense/lr_0.001/seed_0",
        "runs/compare/toys/dense/lr_0.001/seed_1",
    ]


def test_a_loss_is_chosen_by_the_lowest_and_the_mean_over_seeds_counts() -> None:
    scores = {0.1: {0: 1.0, 1: 3.0}, 0.2: {0: 0.5, 1: 3.6}}
    assert choose_value(scores, [0, 1], higher_is_better=False) == 0.1
    assert choose_value(scores, [0], higher_is_better=False) == 0.2
    assert choose_value(scores, [0, 1], higher_is_better=True) == 0.2


def test_the_smaller_of_two_values_that_tie() -> None:
    assert choose_value({4.0: {0: 0.5}, 2.0: {0: 0.5}, 1.0: {0: 0.4}}, [0], higher_is_better=True) == 2.0


@pytest.mark.parametrize("broken", [{}, {0: 0.9}, {0: float("nan"), 1: 0.9}])
def test_a_value_whose_run_broke_is_out(broken: dict[int, float]) -> None:
    assert choose_value({1.0: {0: 0.1, 1: 0.1}, 2.0: broken}, [0, 1], higher_is_better=True) == 1.0
    assert choose_value({2.0: broken}, [0, 1], higher_is_better=True) is None


def test_the_edge_of_a_sweep() -> None:
    values = {"0.001": {}, "0.01": {}, "0.002": {}}  # as results.json has them
    assert [edge(value, values) for value in (1e-3, 2e-3, 1e-2)] == ["lowest", "", "highest"]
    assert edge(1.0, {"1": {}}) == ""


def _scores(made: Plan, variant: str, by_value: dict[float, float]) -> None:
    for value, val in by_value.items():
        finish(made, made.run(variant, value, 0), val=val)


SWEEP = {"key": "train.lr", "values": [1e-3, 2e-3], "seeds": [0], "extend": 2}


def _tried(made: Plan, variant: str, *broken: Path) -> list[float]:
    return [run.value or 0 for run in sweep_runs(made, broken) if run.variant == variant]


def test_a_sweep_goes_on_beyond_its_end_until_the_best_is_inside(plan: Make) -> None:
    made = plan(sweep=SWEEP)
    assert _tried(made, "dense") == [1e-3, 2e-3]
    _scores(made, "dense", {1e-3: 0.5})
    assert _tried(made, "dense") == [1e-3, 2e-3]  # while a run is missing the best is not known
    _scores(made, "dense", {2e-3: 0.6})
    assert _tried(made, "dense") == [1e-3, 2e-3, 4e-3]
    assert not is_settled(made, "dense")
    _scores(made, "dense", {4e-3: 0.4})
    assert _tried(made, "dense") == [1e-3, 2e-3, 4e-3]
    assert (is_settled(made, "dense"), chosen(made, "dense")) == (True, 2e-3)
    assert _tried(made, "ewa") == [1e-3, 2e-3]  # each variant for itself
    _scores(made, "ewa", {1e-3: 0.7, 2e-3: 0.6, 5e-4: 0.8})
    assert _tried(made, "ewa") == [2.5e-4, 5e-4, 1e-3, 2e-3]
    _scores(made, "ewa", {2.5e-4: 0.9})
    assert _tried(made, "ewa") == [2.5e-4, 5e-4, 1e-3, 2e-3]  # the bound
    assert chosen(made, "ewa") == 2.5e-4


def test_a_value_that_broke_is_an_end_that_was_tried(plan: Make) -> None:
    made = plan(sweep=SWEEP)
    _scores(made, "dense", {1e-3: 0.5, 2e-3: 0.6})
    broken = made.run("dense", 4e-3, 0).folder
    assert is_settled(made, "dense", [broken])
    assert chosen(made, "dense", [broken]) == 2e-3


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({**SWEEP, "extend": -1}, "sweep.extend=-1"),
        ({**SWEEP, "values": [1e-3]}, "it takes the ratio of two values above 0"),
        ({"key": "train.weight_decay", "values": [0, 0.1], "extend": 1}, "it takes the ratio"),
        ({"key": "train.label_smoothing", "values": [0.4, 0.8], "extend": 1}, "train.label_smoothing=1.6"),
    ],
)
def test_an_end_that_cannot_be_extended_is_one_line_before_anything_runs(
    plan: Make, sweep: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan(sweep=sweep)


def test_the_runs_of_a_sweep_that_goes_on_are_made_and_told(
    plan: Make, trainer: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The higher the better, up to the bound."""
    trainer("""lr=$(echo "$*" | sed 's/.*train.lr=\\([0-9.e-]*\\).*/\\1/')
    echo "{\\"main_metric\\": \\"accuracy\\", \\"steps\\": 4, \\"val_accuracy\\": $lr,
      \\"test_accuracy_merged\\": $lr}" > "$folder/summary.json" """)
    made = plan("seeds=[0]", sweep=SWEEP)
    assert compare(made, Options(jobs=1, costs=False)) == []
    out = capsys.readouterr().out
    assert "[8/8] ewa lr_0.008 seed_0" in out
    assert "Tried beyond these, while the best lay at an end: dense (0.004, 0.008); EWA (0.004, 0.008)." in out
    assert "with the highest train.lr: all" in out
    assert json.loads((made.output / "results.json").read_text())["variants"]["ewa"]["value"] == 8e-3


def test_folds_are_runs_of_their_own_and_one_value_serves_all(plan: Make) -> None:
    made = plan("folds=3", "sweep.seeds=[0]")
    assert len(sweep_runs(made)) == 2 * 2 * 3
    run = made.run("ewa", 1e-2, 1, 2)
    assert run.folder.as_posix() == "runs/compare/toys/ewa/lr_0.01/fold_2/seed_1"
    assert (run.key, run.title) == ("1/2", "ewa lr_0.01 fold_2 seed_1")
    data = made.resolve(run).data
    assert (data.cv_folds, data.cv_fold, made.resolve(run).seed) == (3, 2, 1)
    for value, vals in ((1e-3, (0.1, 0.9, 0.2)), (1e-2, (0.5, 0.5, 0.5))):
        for fold, val in enumerate(vals):
            assert not is_settled(made, "dense")
            finish(made, made.run("dense", value, 0, fold), val=val)
    assert chosen(made, "dense") == 1e-2
    assert [run.key for run in final_runs(made)["dense"]] == ["0/0", "0/1", "0/2", "1/0", "1/1", "1/2"]
    with pytest.raises(ConfigError, match="folds=3 says which"):
        plan("folds=3", changes=["data.cv_fold=1"])


def test_pairs_of_a_seed_and_a_fold_are_compared(plan: Make) -> None:
    made = plan("folds=2", "sweep=null")
    for variant, gain in (("dense", 0.0), ("ewa", 0.1)):
        for run in made.final_runs(variant, None):
            finish(made, run, test=0.5 + gain + 0.01 * run.seed + 0.02 * (run.fold or 0) * gain)
    runs = final_runs(made)
    found = collect(made, runs, None, {})
    assert found["variants"]["ewa"]["difference"]["merged"]["seeds"] == 4
    assert found["folds"] == 2
    assert found["test_samples"] == 24
    text = as_markdown(found)
    assert "2 folds: each seed tests every shape once" in text
    assert "seeds are finished" not in text
    part = as_markdown(collect(made, {**runs, "ewa": runs["ewa"][:3]}, None, {}))
    assert "EWA: only 1 of 2 seeds are finished." in part
