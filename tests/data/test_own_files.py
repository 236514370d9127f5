"""A folder of one's own shapes as clouds: drawn splits, damaged and far shapes, conversion."""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_folders import SQUARE, put, splits

from pc_ewa.data import MissingSplitError, read_hdf5
from pc_ewa.data.convert import convert
from pc_ewa.data.own_files import load, source
from pc_ewa.data.shapes import FEWEST_POINTS
from pc_ewa.errors import ConfigError, DataError


def test_a_folder_per_class_becomes_clouds(folder: Path) -> None:
    train, test = (load(split, Path(), path=str(folder), stored_points=100, up_axis="y") for split in ("train", "test"))
    assert (train.name, train.class_names, train.up_axis, train.num_points) == (
        "mine",
        ("chair", "lamp", "table"),
        "y",
        100,
    )
    assert train.labels.bincount().tolist() == [4, 1, 8]
    assert test.labels.bincount(minlength=3).tolist() == [1, 0, 2]
    assert train.shape_names is not None
    assert test.shape_names is not None
    assert "lamp/deep/er/1.TXT" in train.shape_names
    assert not set(train.shape_names) & set(test.shape_names)
    points, labels = train.batch(range(len(train)))
    for name, cloud, label in zip(train.shape_names, points, labels, strict=True):
        assert name.startswith(train.class_names[label])
        if name.startswith("chair"):  # points all over the square
            assert cloud[:, 2].abs().max() == 0
            assert (cloud[:, :2] // 1).unique(dim=0).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
        else:
            stored = np.loadtxt(folder / name, dtype=np.float32)
            assert np.array_equal(cloud[:40].numpy(), stored)
            assert {tuple(p) for p in cloud.tolist()} == {tuple(p) for p in stored.tolist()}


def test_the_same_on_every_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = source(folder)
    clouds = first.clouds("train").points
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: Path) -> None:
            with scandir(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    again = source(folder)
    assert list(splits(again).items()) == list(splits(first).items())
    assert torch.equal(again.clouds("train").points, clouds)
    tests = [name for name, split in splits(first).items() if split == "test"]
    assert tests == ["chair/1.off", "table/2.xyz", "table/4.xyz"]  # frozen: other values mean other test sets
    assert splits(source(folder, seed=1)) != splits(first)


def test_another_class_changes_nothing_in_the_others(folder: Path) -> None:
    before = splits(source(folder))
    put(folder, *(f"bed/{i}.xyz" for i in range(7)))
    assert before.items() < splits(source(folder)).items()


@settings(deadline=None, max_examples=25)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_class_has_its_share_of_the_test(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], fraction: float, seed: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "shares"
    shutil.rmtree(folder, ignore_errors=True)
    for label, count in enumerate(counts):
        put(folder, *(f"class {label}/{i}.xyz" for i in range(count)), text="0 0 0\n")
    drawn = Counter((item.label, item.split) for item in source(folder, test_fraction=fraction, seed=seed).items)
    for label, count in enumerate(counts):
        tests = drawn[label, "test"]
        assert tests + drawn[label, "train"] == count
        assert abs(tests - fraction * count) <= 1
        assert (0 < tests < count) or count == 1 or fraction == 0


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("empty.xyz", "", None),
        ("nan.xyz", "0 0 0\nnan 0 0\n", "nan among the coordinates"),
        ("huge.xyz", "".join(f"{i} 0 1e300\n" for i in range(10)), r"coordinates up to 1e\+300"),
        ("flat.off", "OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n3 0 1 2\n", "no area"),
        ("cut.off", SQUARE[:20], "ends early"),
    ],
)
def test_damaged_shapes_are_named_when_they_are_read(folder: Path, name: str, text: str, reason: str | None) -> None:
    (folder / "table" / name).write_text(text)
    opened = source(folder, test_fraction=0)
    with pytest.raises(DataError, match=rf"mine/table/{name}.*{reason or 'no points'}"):
        opened.clouds("train")
    converted = convert(opened, folder.parent / "mine.h5", skip_defects=True)
    assert converted.shapes == 16
    assert [shape for shape, _ in converted.skipped] == [f"table/{name}"]


@pytest.mark.parametrize("distinct", [1, 2, FEWEST_POINTS - 1, FEWEST_POINTS])
@pytest.mark.parametrize("repeated", [1, 500])
def test_a_cloud_has_some_distinct_points(tmp_path: Path, distinct: int, repeated: int) -> None:
    put(tmp_path, "a/few.xyz", text="".join(f"{i} 0 1\n" for i in range(distinct)) * repeated)
    opened = source(tmp_path, test_fraction=0)
    if distinct >= FEWEST_POINTS:
        assert len(opened.clouds("train").batch([0])[0][0].unique(dim=0)) == distinct
        return
    with pytest.raises(DataError, match=rf"a/few\.xyz has {distinct} distinct point.*{FEWEST_POINTS} or more"):
        opened.clouds("train")


def test_clouds_far_away_keep_their_shape(tmp_path: Path) -> None:
    put(tmp_path, "a/map.txt", text="".join(f"{4500000 + i / 8} 500000.25 100\n" for i in range(10)))
    (far,) = source(tmp_path, stored_points=10, test_fraction=0).clouds("train").batch([0])[0]
    assert far.tolist() == [[i / 8 - 0.5625, 0, 0] for i in range(10)]


def test_a_class_that_cannot_be_read_is_left_out_of_the_file(tmp_path: Path) -> None:
    """Shapes of the class in another split are left out too, and labels of the classes behind it are moved up."""
    put(tmp_path / "in", *(f"{split}/{label}/1.xyz" for split in ("train", "test") for label in "abc"))
    (tmp_path / "in/train/a/1.xyz").write_text("?")
    (tmp_path / "in/test/c/1.xyz").write_text("?")
    for name in ("a.h5", "b.h5"):
        dtype: Literal["int16", "float32"] = "int16" if name == "a.h5" else "float32"
        done = convert(source(tmp_path / "in"), tmp_path / name, dtype=dtype, skip_defects=True)
        assert (done.shapes, sorted(name for name, _ in done.skipped)) == (
            3,
            ["test/a/1.xyz", "test/c/1.xyz", "train/a/1.xyz"],
        )
        train, test = (read_hdf5(tmp_path / name, split, name="mine") for split in ("train", "test"))
        assert train.class_names == test.class_names == ("b", "c")
        assert (train.shape_names, train.labels.tolist()) == (("train/b/1.xyz", "train/c/1.xyz"), [0, 1])
        assert (test.shape_names, test.labels.tolist()) == (("test/b/1.xyz",), [0])
        stored = np.loadtxt(tmp_path / "in/train/c/1.xyz", dtype=np.float32)
        assert np.allclose(train.batch([1])[0][0][:40], stored, atol=1e-4)
    (tmp_path / "in/train/b/1.xyz").write_text("?")
    (tmp_path / "in/train/c/1.xyz").write_text("?")
    with pytest.raises(DataError, match="no shape could be read"):
        convert(source(tmp_path / "in"), tmp_path / "none.h5", skip_defects=True)


def test_converted_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    opened = source(folder, stored_points=50)
    assert convert(opened, tmp_path / "mine.h5", dtype="float32").shapes == 16
    for split in ("train", "test"):
        inplace, prepared = opened.clouds(split), read_hdf5(tmp_path / "mine.h5", split, name="mine")
        assert torch.equal(prepared.batch(range(len(prepared)))[0], inplace.points)
        assert torch.equal(prepared.labels, inplace.labels)
        assert (prepared.shape_names, prepared.class_names) == (inplace.shape_names, inplace.class_names)
        assert prepared.up_axis == inplace.up_axis


def test_wrong_options(folder: Path) -> None:
    for options, reason in (
        ({"stored_points": 0}, "stored_points is 0; allowed: 1 to"),
        ({"stored_points": 10**12}, "allowed: 1 to"),
        ({"up_axis": "up"}, "up_axis is 'up'; allowed: x, y, z"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0; allowed"),
        ({"test_fraction": float("nan")}, "test_fraction is nan"),
        ({"seed": -1}, "seed is -1; allowed: 0 to"),
    ):
        with pytest.raises(ConfigError, match=reason):
            source(folder, **options)  # type: ignore[arg-type]
    file = folder / "mine.h5"
    file.touch()
    with pytest.raises(ConfigError, match=r"mine\.h5 is a file, not a folder.*name: hdf5"):
        load("train", Path(), path=str(file))
    with pytest.raises(MissingSplitError, match="no split 'val'; choose one of: test, train"):
        load("val", Path(), path=str(folder))
