"""Few shapes of each class, and folds: disjoint, of equal shares, and the same for every run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pc_ewa.config import Experiment, load_experiment
from pc_ewa.data import Clouds
from pc_ewa.data.portions import few_of_each, folds_of
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.train.splits import load_splits


@pytest.fixture
def clouds() -> Clouds:
    """31 shapes: 20 of class a, 10 of b, 1 of c, mixed; the first coordinate of each is its number."""
    labels = torch.tensor([0] * 20 + [1] * 10 + [2])[torch.from_numpy(np.random.RandomState(1).permutation(31))]
    points = torch.arange(31.0).view(-1, 1, 1).expand(-1, 2, 3).contiguous()
    return Clouds(points, None, labels, ("a", "b", "c"), "y", "toys")


def _numbers(clouds: Clouds) -> list[int]:
    return [int(x) for x in clouds.batch(range(len(clouds)))[0][:, 0, 0]]


def test_few_of_each_class_are_some_of_more_and_validate_on_the_same(clouds: Clouds) -> None:
    two = clouds.select((clouds.labels < 2).nonzero().flatten())
    few, val = few_of_each(two, 2, 4)
    more, same = few_of_each(two, 5, 4)
    assert val is not None
    assert same is not None
    assert few.labels.bincount().tolist() == [2, 2]
    assert val.labels.bincount().tolist() == [4, 4]
    assert set(_numbers(few)) < set(_numbers(more))
    assert not set(_numbers(more)) & set(_numbers(val))
    assert _numbers(val) == _numbers(same)
    assert _numbers(few) == sorted(_numbers(few), key=_numbers(two).index)
    rest, val = few_of_each(two, None, 4)
    assert len(rest) + len(val or []) == len(two)
    assert few_of_each(clouds, 1, None)[1] is None


@pytest.mark.parametrize(("train", "val"), [(2, None), (1, 1), (None, 1)])
def test_a_class_with_fewer_is_one_line(clouds: Clouds, train: int | None, val: int | None) -> None:
    with pytest.raises(DataError, match=r"toys has 1 shapes of c, not .* data\.train_per_class") as stop:
        few_of_each(clouds, train, val)
    assert "\n" not in str(stop.value)


def test_every_shape_is_tested_once_and_never_trained_on_then(clouds: Clouds) -> None:
    two = clouds.select((clouds.labels < 2).nonzero().flatten())
    parts = [folds_of(two, 5, fold) for fold in range(5)]
    tested = [number for _, test in parts for number in _numbers(test)]
    assert sorted(tested) == sorted(_numbers(two))
    for train, test in parts:
        assert test.labels.bincount().tolist() == [4, 2]
        assert sorted(_numbers(train) + _numbers(test)) == sorted(_numbers(two))
    with pytest.raises(DataError, match="one shape of c"):
        [folds_of(clouds, 3, fold) for fold in range(3)]
    with pytest.raises(DataError, match="lower it"):
        folds_of(clouds, 32, 0)


def _experiment(config: Path, *changes: str) -> Experiment:
    return load_experiment(config, list(changes))


def test_the_runs_seed_changes_neither_the_few_nor_their_validation_part(toy_config: Path) -> None:
    data = _experiment(toy_config, "data.train_per_class=2", "data.val_per_class=3").data
    first, second = load_splits(data, 0), load_splits(data, 1)
    for one, other in zip((first.train, first.val), (second.train, second.val), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one.batch(range(len(one)))[0], other.batch(range(len(other)))[0])
    assert [len(part) for part in first.all()] == [6, 9, 12]
    assert first.val_is_cut
    without = _experiment(toy_config, "data.train_per_class=5", "data.val_fraction=0.2").data
    assert [len(part) for part in load_splits(without, 0).all()] == [12, 3, 12]


def test_folds_of_a_run_test_every_shape_of_both_splits(toy_config: Path) -> None:
    parts = [
        load_splits(_experiment(toy_config, "data.cv_folds=3", f"data.cv_fold={fold}").data, 0) for fold in range(3)
    ]
    assert [len(splits.test) for splits in parts] == [12, 12, 12]
    tested = torch.cat([splits.test.batch(range(12))[0].flatten(1) for splits in parts])
    assert len(tested.unique(dim=0)) == 36
    assert parts[0].test.labels.bincount().tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.cv_fold=0"], "set both"),
        (["data.cv_folds=3"], "set both"),
        (["data.cv_folds=3", "data.cv_fold=3"], "choose 0 to 2"),
        (["data.train_per_class=0"], "data.train_per_class=0"),
    ],
)
def test_impossible_portions_are_one_line(toy_config: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _experiment(toy_config, *changes)
