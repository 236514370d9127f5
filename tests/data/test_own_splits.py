"""The splits of a folder of one's own shapes: told by names, hidden ones, classes that lack one, groups."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_ewa.data.own_files import load, source
from pc_ewa.data.own_splits import Found, drawn_splits
from pc_ewa.data.source import Source
from pc_ewa.errors import ConfigError, DataError

POINTS = "".join(f"{i} {i % 3} {i % 5}\n" for i in range(10))


def put(folder: Path, *names: str, text: str = POINTS) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def classes(folder: Path, *tops: str, inside: tuple[str, ...] = ("a", "b")) -> Path:
    """Write two shapes into each folder of `inside` in each of `tops`."""
    return put(folder, *(f"{top}/{below}/{i}.xyz" for top in tops for below in inside for i in range(2)))


def splits(opened: Source) -> dict[str, str]:
    return {item.name: item.split for item in opened.items}


@pytest.mark.parametrize(
    ("tops", "expected"),
    [
        (("training", "testing"), ("train", "test")),
        (("Training", "TESTING", "Validation"), ("train", "test", "val")),
        (("TRAIN", "dev", "test"), ("train", "val", "test")),
        (("train", "valid", "Testing"), ("train", "val", "test")),
        (("train", "eval"), ("train", "test")),
        (("train", "Evaluation", "test"), ("train", "val", "test")),
        (("train", "training", "test"), ("train", "train", "test")),
    ],
)
@pytest.mark.parametrize("above", [True, False])
def test_folders_that_tell_splits(
    tmp_path: Path, tops: tuple[str, ...], expected: tuple[str, ...], above: bool
) -> None:
    told = {f"{top}/{label}" if above else f"{label}/{top}": top for top in tops for label in "ab"}
    opened = source(put(tmp_path, *(f"{place}/1.xyz" for place in told)))
    assert opened.class_names == ("a", "b")
    split_of = dict(zip(tops, expected, strict=True))
    assert splits(opened) == {f"{place}/1.xyz": split_of[top] for place, top in told.items()}
    assert opened.notes == ()


@pytest.mark.parametrize("names", [("training", "testing"), ("Train", "EVAL"), ("TRAIN", "test")])
def test_lists_of_any_case_tell_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    classes(tmp_path, "a", "b", inside=("",))
    for i, name in enumerate(names):
        put(tmp_path, f"{name}.txt", text=f"a/{i}.xyz\nb/{i}.xyz\n")
    assert splits(source(tmp_path)) == {"a/0.xyz": "train", "b/0.xyz": "train", "a/1.xyz": "test", "b/1.xyz": "test"}


@pytest.mark.parametrize(
    "tops",
    [
        ("data_train", "data_test"),
        ("TrainSet", "TestSet"),
        ("test-set", "holdout"),
        ("01 train", "02 val", "03 test"),
        ("scans_train", "scans_test"),
        ("my_training_data", "my_testing_data", "other"),
        ("train_2048", "test_2048"),
    ],
)
def test_hidden_splits_are_refused(tmp_path: Path, tops: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"have the same folders in them, a, b; .*train, val and test"):
        source(classes(tmp_path, *tops))


@pytest.mark.parametrize(
    "tops",
    [
        ("chair", "table"),
        ("chair", "table", "lamp"),
        ("train_steam", "train_diesel"),
        ("train_station", "bus_stop"),
        ("test_tube", "flask", "evaluation_board"),
        ("data", "set"),
    ],
)
@pytest.mark.parametrize("inside", [("high", "low"), ("high",), ("train", "test"), ("",)])
def test_classes_with_the_same_folders_are_classes(
    tmp_path: Path, tops: tuple[str, ...], inside: tuple[str, ...]
) -> None:
    assert source(classes(tmp_path, *tops, inside=inside)).class_names == tuple(sorted(tops))


@pytest.mark.parametrize("tops", [("train", "test"), ("Training", "eval", "dev"), ("data_train", "data_test")])
def test_splits_without_classes_are_refused(tmp_path: Path, tops: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="are splits, not classes; put a folder for each class into them"):
        source(classes(tmp_path, *tops, inside=("",)))


@pytest.mark.parametrize("inside", [("data_train", "data_test"), ("TrainSet", "val_set"), ("2048_train", "2048_test")])
def test_hidden_splits_in_the_classes_are_refused(tmp_path: Path, inside: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"/cup: .* look like splits; call them train"):
        source(classes(tmp_path, "cup", "pen", inside=inside))


@pytest.mark.parametrize(
    "names", [("train_list", "test_list"), ("modelnet40_train", "modelnet40_test"), ("trainset", "VALSET")]
)
def test_hidden_lists_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    classes(tmp_path, "cup", "pen", inside=("",))
    put(tmp_path, "readme.txt", "training_notes.txt" if "set" in names[0] else "license.txt", f"{names[0]}.txt")
    assert len(source(tmp_path).items) == 4
    put(tmp_path, f"{names[1]}.txt")
    with pytest.raises(DataError, match=rf"{names[0]}\.txt.* look like lists of splits; call them train\.txt"):
        source(tmp_path)


def test_classes_in_one_split_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path, "train", inside=("a", "b", "c"))
    put(tmp_path, "test/a/1.xyz")
    opened = source(tmp_path)
    assert len(opened.notes) == 1
    assert "b, c" in opened.notes[0]
    with caplog.at_level(logging.WARNING):
        load("train", Path(), path=str(tmp_path))
        load("test", Path(), path=str(tmp_path))
    assert [record.getMessage() for record in caplog.records] == list(opened.notes)  # once
    put(tmp_path, "test/only/1.xyz")
    with pytest.raises(DataError, match=r"empty class, no training shape of: only; add some"):
        source(tmp_path)


def test_classes_that_differ_only_in_case(tmp_path: Path) -> None:
    classes(tmp_path / "both", "Ball", "ball", "box", inside=("",))
    (note,) = source(tmp_path / "both").notes
    assert "Ball, ball" in note
    put(tmp_path / "one", "train/Ball/1.xyz", "train/box/1.xyz", "test/ball/1.xyz", "test/box/1.xyz")
    with pytest.raises(DataError, match=r"no training shape of: ball; Ball, ball differ only in case"):
        source(tmp_path / "one")


def test_a_folder_above_the_splits_is_one_class(tmp_path: Path) -> None:
    (note,) = source(classes(tmp_path, "shapes/train", "shapes/test")).notes
    assert "one class, shapes" in note
    assert f"did you mean {tmp_path / 'shapes'}, which has a, b?" in note


@pytest.mark.parametrize("names", [("cup/1", "cup/2"), ("cup/old/1", "cup/2"), ("cup/train/1", "cup/test/1")])
def test_one_class_without_classes_below(tmp_path: Path, names: tuple[str, ...]) -> None:
    (note,) = source(put(tmp_path, *(f"{name}.xyz" for name in names))).notes
    assert "one class, cup" in note
    assert "did you mean" not in note


def test_without_a_test_split_no_class_is_called_untested(tmp_path: Path) -> None:
    assert source(classes(tmp_path, "a", "b", inside=("",)), test_fraction=0).notes == ()


@pytest.mark.parametrize("pattern", [r"\d+", r"/(\d+)_", r"^[^/]+/(\d+)"])
def test_shapes_of_one_group_are_drawn_together(tmp_path: Path, pattern: str) -> None:
    views = [f"{label}/{i:02}_{view}.xyz" for label in ("cup", "pen") for i in range(20) for view in "abc"]
    put(tmp_path, *views)
    for seed in range(5):
        drawn = splits(source(tmp_path, group_by=pattern, seed=seed))
        assert drawn.keys() == set(views)
        of_object = {(name[4:6], split) for name, split in drawn.items()}
        assert len(of_object) == 20  # one split each, in both classes
        for label in ("cup", "pen"):
            counts = Counter(split for name, split in drawn.items() if name.startswith(label))
            assert abs(counts["test"] - 12) <= 3


def test_shapes_that_the_pattern_does_not_find_are_drawn_alone(tmp_path: Path) -> None:
    put(tmp_path, *(f"cup/{name}.xyz" for name in ("scan1_a", "scan1_b", "x", "y", "z")))
    drawn = splits(source(tmp_path, group_by=r"scan\d", test_fraction=0.4))
    assert drawn["cup/scan1_a.xyz"] == drawn["cup/scan1_b.xyz"]
    assert sorted(Counter(drawn.values()).items()) == [("test", 2), ("train", 3)]


def test_a_group_never_takes_all_shapes_of_a_class(tmp_path: Path) -> None:
    put(tmp_path, *(f"cup/{i}_{view}.xyz" for i in range(2) for view in "abcdefgh"), "pen/9_a.xyz")
    for seed in range(10):
        drawn = splits(source(tmp_path, group_by=r"(\d+)_", seed=seed, test_fraction=0.9))
        assert {split for name, split in drawn.items() if name.startswith("cup")} >= {"train"}
        assert drawn["pen/9_a.xyz"] == "train"


def files(names: Iterable[str], turned: bool = False) -> dict[str, Found]:
    return {name: Found(Path(name), name.split("/")[0], None) for name in sorted(names, reverse=turned)}


SETS = st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=2)


@settings(deadline=None, max_examples=100)
@given(shapes=SETS, fraction=st.floats(0, 0.99), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_file_more_or_less_moves_at_most_one_other_of_its_class(
    shapes: set[tuple[str, int]], fraction: float, seed: int, data: st.DataObject
) -> None:
    names = {f"{label}/{i}.stl" for label, i in shapes}
    less = names - {data.draw(st.sampled_from(sorted(names)))}
    (changed,) = names - less
    after, before = (drawn_splits(files(some), fraction, seed) for some in (names, less))
    moved = {name for name in less if before[name] != after[name]}
    assert len(moved) <= 1
    assert all(name[0] == changed[0] for name in moved)
    assert drawn_splits(files(names, turned=True), fraction, seed) == after


def test_a_view_more_seldom_moves_another_object() -> None:
    random = np.random.RandomState(0)
    moved = []
    for seed in range(200):
        names = {
            f"{label}/{label}{i}_{view}.stl" for label in "ab" for i in range(20) for view in range(random.choice(5))
        }
        names -= (new := {f"a/a{random.choice(25)}_9.stl"})
        before, after = (drawn_splits(files(some), 0.2, seed, r"/(.+)_") for some in (names, names | new))
        changed = {name.split("_")[0] for name in names if before[name] != after[name]}
        assert all(name[0] == "a" for name in changed)
        moved.append(len(changed))
    assert max(moved) <= 2
    assert moved.count(0) > 150


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "not a regular expression"),
        ("*", "not a regular expression"),
        ("scan", "finds nothing in any name"),
        ("xyz", "all shapes into one group"),
        (r"(c)|(d)", "all shapes into one group"),
    ],
)
def test_patterns_that_group_nothing(tmp_path: Path, pattern: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"group_by is .*{reason}"):
        source(put(tmp_path, "cup/1.xyz", "cup/2.xyz"), group_by=pattern)


def test_told_splits_are_not_grouped(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="defines its splits; leave it out"):
        source(classes(tmp_path, "train", "test"), group_by=r"\d+")
