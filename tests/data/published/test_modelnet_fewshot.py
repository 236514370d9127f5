"""Few-shot folds: drawn from ModelNet40 the same everywhere, or read as published."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_ewa.data import Clouds, MissingSplitError, write_hdf5
from pc_ewa.data.convert import convert
from pc_ewa.data.published import modelnet_fewshot as fewshot
from pc_ewa.data.published.modelnet_common import CLASSES
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.validation import check_arguments

NAMES = CLASSES["40"]
SETTINGS = [(5, 10), (5, 20), (10, 10), (10, 20)]


def pool(split: str, each: int, order: int = 0) -> Clouds:
    """A split of 40 classes; every cloud has the number of its shape in all coordinates."""
    labels = np.repeat(np.arange(40), each)
    rows = np.random.RandomState(order).permutation(len(labels)) if order else np.arange(len(labels))
    points = rows[:, None, None] + np.zeros((1, 2, 3))
    return Clouds(
        points=torch.tensor(points, dtype=torch.float32),
        scale=None,
        labels=torch.from_numpy(labels[rows]),
        class_names=NAMES,
        up_axis="y",
        name="modelnet40",
        shape_names=tuple(f"{NAMES[labels[row]]}_{split}_{row:04}" for row in rows),
    )


TRAIN, TEST = pool("train", 25), pool("test", 22)


def names(clouds: Clouds) -> list[str]:
    assert clouds.shape_names is not None
    return list(clouds.shape_names)


@settings(max_examples=40, deadline=None)
@given(setting=st.sampled_from(SETTINGS), fold=st.integers(0, 9), seed=st.integers(0, 2**32 - 1))
def test_folds_are_disjoint_complete_and_reproducible(setting: tuple[int, int], fold: int, seed: int) -> None:
    way, shot = setting
    train, test = fewshot.generate(TRAIN, TEST, way, shot, fold, seed)
    assert train.labels.tolist() == np.repeat(np.arange(way), shot).tolist()
    assert test.labels.tolist() == np.repeat(np.arange(way), 20).tolist()
    assert train.class_names == test.class_names
    assert len(set(train.class_names)) == train.num_classes == way
    assert train.name == test.name == "modelnet_fewshot"
    drawn = names(train) + names(test)
    assert len(set(drawn)) == len(drawn) == way * (shot + 20)
    for clouds, source in ((train, TRAIN), (test, TEST)):
        points, labels = clouds.batch(range(len(clouds)))
        for point, label, name in zip(points[:, 0, 0].int().tolist(), labels.tolist(), names(clouds), strict=True):
            assert names(source)[point] == name
            assert name.startswith(f"{clouds.class_names[label]}_")
    again = fewshot.generate(pool("train", 25, order=3), pool("test", 22, order=4), way, shot, fold, seed)
    assert [names(train), names(test)] == [names(clouds) for clouds in again]
    other = fewshot.generate(TRAIN, TEST, way, shot, (fold + 1) % 10, seed)[0]
    assert set(names(other)) != set(names(train))
    assert set(names(fewshot.generate(TRAIN, TEST, way, shot, fold, seed ^ 1)[0])) != set(names(train))


def test_folds_are_the_same_on_every_machine() -> None:
    text = ""
    for way, shot in SETTINGS:
        for fold in range(10):
            for clouds in fewshot.generate(TRAIN, TEST, way, shot, fold, seed=0):
                text += "\n".join(names(clouds))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "08cd53bc05b8857d"


def test_the_forty_folds_differ_in_their_classes() -> None:
    drawn = {
        fewshot.generate(TRAIN, TEST, w, s, fold, seed=0)[0].class_names for w, s in SETTINGS for fold in range(10)
    }
    assert len(drawn) == 40


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(DataError, match="has 25 train shapes in modelnet40, 26 are needed"):
        fewshot.generate(TRAIN, TEST, 5, 26, 0, 0)
    with pytest.raises(DataError, match="has 19 test shapes in modelnet40, 20 are needed"):
        fewshot.generate(TRAIN, pool("test", 19), 5, 10, 0, 0)
    for settings_ in [(1, 10, 0, 0), (41, 10, 0, 0), (5, 0, 0, 0), (5, 10, 10, 0), (5, 10, -1, 0), (5, 10, 0, -1)]:
        with pytest.raises(ConfigError, match=r"=-?\d+: should be from"):
            fewshot.generate(TRAIN, TEST, *settings_)


def test_options_of_a_config_are_checked() -> None:
    options = {"way": 10, "shot": 20, "fold": 9}
    assert check_arguments("data", fewshot.load, options, skip=["split", "root"])["way"] == 10
    with pytest.raises(ConfigError, match=r"data\.way=7"):
        check_arguments("data", fewshot.load, {"way": 7}, skip=["split", "root"])


def write_modelnet40(root: Path) -> None:
    both = [TRAIN, TEST]
    write_hdf5(
        root / "modelnet40" / "modelnet40.h5",
        np.concatenate([clouds.points.numpy() for clouds in both]),
        np.concatenate([clouds.labels.numpy() for clouds in both]),
        NAMES,
        up_axis="y",
        split=[0] * len(TRAIN) + [1] * len(TEST),
        names=[name for clouds in both for name in names(clouds)],
        dtype="float32",
    )


def test_beside_a_prepared_fold_the_others_are_not_drawn(tmp_path: Path) -> None:
    """Or one experiment would mix published and drawn folds."""
    write_modelnet40(tmp_path)
    (tmp_path / "modelnet_fewshot").mkdir()
    (tmp_path / "modelnet_fewshot" / "modelnet_fewshot_5way_10shot_0.h5").touch()
    with pytest.raises(DataError, match="holds no modelnet_fewshot in any published format"):
        fewshot.load("train", tmp_path, fold=1)


def test_without_published_folds_they_are_drawn_from_modelnet40(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no published folds in .*modelnet_fewshot.*pc-ewa prepare modelnet40"):
        fewshot.load("train", tmp_path)
    write_modelnet40(tmp_path)
    expected = fewshot.generate(TRAIN, TEST, 10, 20, 3, 7)
    for split, drawn in zip(("train", "test"), expected, strict=True):
        loaded = fewshot.load(split, tmp_path, way=10, shot=20, fold=3, seed=7)
        assert names(loaded) == names(drawn)
        assert loaded.labels.tolist() == drawn.labels.tolist()
        assert loaded.class_names == drawn.class_names
    with pytest.raises(MissingSplitError):
        fewshot.load("val", tmp_path)
    with pytest.raises(ConfigError, match="fold=10"):
        fewshot.load("train", tmp_path, fold=10)
    with pytest.raises(DataError, match="holds no modelnet_fewshot"):  # a path is to be read, not ignored
        fewshot.load("train", tmp_path, path=str(tmp_path / "modelnet40"))


def fold_of(way: int, shot: int) -> dict[str, list[tuple[Any, ...]]]:
    """What the published generator writes, in random order, with fewer points."""
    random = np.random.RandomState(5)
    originals = np.random.RandomState(way).permutation(40).astype(np.int32)
    content = {}
    for split, count in (("train", shot), ("test", 20)):
        items: list[tuple[Any, ...]] = []
        for label in range(way):
            items += [(random.uniform(size=(4, 6)).astype(np.float32), label, originals[label]) for _ in range(count)]
        content[split] = [items[i] for i in random.permutation(len(items))]
    return content


def write_fold(
    root: Path, content: object, way: int = 5, shot: int = 10, home: str = "ModelNetFewshot/5way_10shot"
) -> Path:
    path = root / "modelnet_fewshot" / home / "0.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("home", ["ModelNetFewshot/5way_10shot", "ModelNetFewshot/5way10shot", "5way_10shot"])
def test_published_folds_in_place_and_converted(tmp_path: Path, home: str) -> None:
    write_modelnet40(tmp_path)
    content = fold_of(5, 10)
    path = write_fold(tmp_path, content, home=home)
    folder = tmp_path / "modelnet_fewshot"
    prepared = tmp_path / "elsewhere" / "fold.h5"
    convert(fewshot.source(folder), prepared, dtype="float32")
    for options in ({}, {"path": str(folder)}, {"path": str(prepared)}, {"path": str(path.parent.parent)}):
        for split, items in content.items():
            clouds = fewshot.load(split, tmp_path, **options)
            points, labels = clouds.batch(range(len(items)))
            np.testing.assert_array_equal(points.numpy(), np.stack([item[0][:, :3] for item in items]))
            assert labels.tolist() == [item[1] for item in items]
            assert [clouds.class_names[item[1]] for item in items] == [NAMES[item[2]] for item in items]
            assert clouds.up_axis == "y"
    with pytest.raises(DataError, match=r"0\.pkl|1\.pkl"):  # and not drawn in its place
        fewshot.load("train", tmp_path, fold=1)
    with pytest.raises(DataError, match="there is no folder 10way_10shot"):
        fewshot.load("train", tmp_path, way=10)


Change = Callable[[dict[str, list[Any]]], object]


def entry(*values: object) -> Change:
    def change(content: dict[str, list[Any]]) -> None:
        old = content["train"][3]
        content["train"][3] = tuple(old[i] if value is None else value for i, value in enumerate(values))

    return change


DEFECTS: list[tuple[Change, str]] = [
    (lambda c: c.pop("test"), "not a dict of a list train and a list test"),
    (lambda c: c.update(test=3), "not a dict of a list train"),
    (lambda c: c["train"].pop(), r"class \d has 9 train shapes, not 10"),
    (lambda c: c["test"].append(c["test"][0]), r"class \d has 21 test shapes, not 20"),
    (lambda c: c.update(train=[]), "class 0 has 0 train shapes"),
    (entry(None, None), r"train shape 3 is not \(points, label, original label\)"),
    (entry(None, 5, None), "train shape 3 has label 5, allowed are 0 to 4"),
    (entry(None, "a", None), "train shape 3 has label a str"),
    (entry(None, None, 40), "train shape 3 has label 40, allowed are 0 to 39"),
    (entry(None, True, None), "train shape 3 has label a bool"),
    (entry(None, None, 39), "another class before|class before"),
    (entry("cloud", None, None), "train shape 3 is str, not an array"),
    (entry(np.zeros((4, 2), "f4"), None, None), r"train shape 3 is \(4, 2\) float32"),
    (entry(np.full((4, 6), np.nan, "f4"), None, None), "train shape 3: nan among"),
    (entry(np.zeros((0, 6), "f4"), None, None), "train shape 3: no points"),
    (lambda c: c.update({s: [(p, la, 7) for p, la, _ in c[s]] for s in list(c)}), "two of its classes are the same"),
]


@pytest.mark.parametrize(("change", "defect"), DEFECTS)
def test_defects_are_named_with_the_file(tmp_path: Path, change: Change, defect: str) -> None:
    content = fold_of(5, 10)
    change(content)
    path = write_fold(tmp_path, content)
    with pytest.raises(DataError, match=defect) as caught:
        fewshot.load("train", tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_fold_is_refused(tmp_path: Path) -> None:
    path = write_fold(tmp_path, [1, 2])
    with pytest.raises(DataError, match="not a dict"):
        fewshot.load("test", tmp_path)
    path.write_bytes(pickle.dumps(fold_of(5, 10))[:-500])
    with pytest.raises(DataError, match=r"0\.pkl: not a sound pickle"):
        fewshot.load("test", tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"0\.pkl is missing, or not a file"):
        fewshot.load("test", tmp_path)


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1), new=st.binary(min_size=1, max_size=3), cut=st.booleans())
def test_damaged_bytes_are_refused_or_read_soundly(
    tmp_path_factory: pytest.TempPathFactory, at: float, new: bytes, cut: bool
) -> None:
    root = tmp_path_factory.getbasetemp()
    path = write_fold(root, fold_of(5, 10))
    content = path.read_bytes()
    place = int(at * len(content))
    path.write_bytes(content[:place] + new + (b"" if cut else content[place + len(new) :]))
    message = None
    try:
        clouds = fewshot.load("train", root)
        assert torch.isfinite(clouds.points).all()
        assert clouds.labels.bincount().tolist() == [10] * 5
    except DataError as error:
        message = str(error)
    assert message is None or ("0.pkl" in message and "\n" not in message), message
