"""Mean and deviation over folds, and what is said of folds that are missing."""

import json
import math

import pytest

from pc_ewa.eval.fewshot import FewShot, Fold

FOLDS = [
    Fold(5, 10, 0, 0.90, 0.92),
    Fold(5, 10, 1, 0.80, 0.95),
    Fold(5, 10, 2, 0.85, 0.92),
    Fold(10, 20, 7, 0.70),
]


def test_mean_and_sample_deviation_are_what_one_computes_by_hand() -> None:
    few = FewShot(FOLDS)
    last, best = few.last(5, 10), few.best(5, 10)
    assert (last.mean, last.folds) == (pytest.approx(0.85), 3)
    assert last.std == pytest.approx(math.sqrt((0.05**2 + 0.05**2 + 0) / 2))
    assert best is not None
    assert best.mean == pytest.approx(0.93)
    assert best.std == pytest.approx(math.sqrt((0.01**2 + 0.02**2 + 0.01**2) / 2))
    assert few.settings == ((5, 10), (10, 20))
    assert few.value == pytest.approx((0.85 + 0.70) / 2)
    assert few.samples == 3 * 5 * 20 + 10 * 20


def test_one_fold_has_no_deviation() -> None:
    few = FewShot(FOLDS)
    assert few.last(10, 20).std is None
    assert str(few.last(10, 20)) == "70.00% ± -"
    assert few.best(10, 20) is None
    assert "10way_20shot_std" not in few.metrics()
    assert few.metrics()["10way_20shot_accuracy"] == 0.70


def test_the_best_is_not_averaged_over_some_of_the_folds() -> None:
    few = FewShot([Fold(5, 10, 0, 0.9, 0.92), Fold(5, 10, 1, 0.8)])
    assert few.best(5, 10) is None
    assert "5way_10shot_accuracy_best" not in few.metrics()


def test_the_table_has_all_four_settings() -> None:
    assert FewShot(FOLDS).table().splitlines() == [
        "few-shot accuracy, mean ± sample standard deviation over folds",
        "setting            folds       last state       best state",
        "5-way 10-shot          3   85.00% ± 5.00%   93.00% ± 1.73%",
        "5-way 20-shot    missing",
        "10-way 10-shot   missing",
        "10-way 20-shot         1       70.00% ± -                -",
    ]
    assert FewShot(FOLDS).describe() == ("few-shot accuracy 5-way 10-shot 85.00% ± 5.00%, 10-way 20-shot 70.00% ± -")


def test_other_settings_are_shown_too() -> None:
    assert FewShot([Fold(3, 1, 0, 0.5)]).table().splitlines()[2].startswith("3-way 1-shot")


def test_json_has_every_fold_and_what_is_missing() -> None:
    content = json.loads(json.dumps(FewShot(FOLDS).to_json(), allow_nan=False))
    assert content["missing"] == ["5way_20shot", "10way_10shot"]
    assert [Fold(**fold) for fold in content["folds"]] == FOLDS
    assert content["5way_10shot_folds"] == 3
    assert content["samples"] == 500


def test_impossible_records_are_refused() -> None:
    with pytest.raises(ValueError, match="no folds"):
        FewShot([])
    with pytest.raises(ValueError, match="fold 1 of 5-way 10-shot is there twice"):
        FewShot([*FOLDS, Fold(5, 10, 1, 0.8)])
    with pytest.raises(ValueError, match=r"accuracy 85\.0 of 5-way 10-shot"):
        Fold(5, 10, 0, 85.0)
    with pytest.raises(ValueError, match="accuracy nan"):
        Fold(5, 10, 0, 0.8, math.nan)
