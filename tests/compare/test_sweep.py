"""The value of a variant is chosen on validation alone."""

import json
from collections.abc import Callable

import pytest
from compare_folder import finish

from pc_ewa.compare import Plan
from pc_ewa.compare.sweep import choose_value, chosen, edge, final_runs, is_settled

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
