"""ModelNet40 and ModelNet10 in every published format, written here as the published files look."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import modelnet_files
import numpy as np
import pytest
from modelnet_files import (
    POINT_FORMATS,
    POINTS,
    SPLITS,
    TEN,
    WRITERS,
    Shape,
    shapes,
    write_caches,
    write_meshes,
    write_resampled,
    write_shards,
)

from pc_ewa.data import Clouds, MissingSplitError, read_hdf5
from pc_ewa.data.convert import convert
from pc_ewa.data.published.modelnet import MODELNET10, MODELNET40
from pc_ewa.data.published.modelnet_common import CLASSES
from pc_ewa.errors import DataError


def check(clouds: Clouds, split: str, expected: list[Shape], tolerance: float = 0) -> None:
    rows = [row for row in expected if row[2] == split]
    points, labels = clouds.batch(range(len(clouds)))
    assert clouds.shape_names == tuple(row[0] for row in rows)
    assert labels.tolist() == [row[1] for row in rows]
    np.testing.assert_allclose(points.numpy(), np.stack([row[3][:, :3] for row in rows]), atol=tolerance)


def test_classes_are_in_the_published_order() -> None:
    assert len(CLASSES["40"]) == 40
    assert list(CLASSES["40"]) == sorted(CLASSES["40"])
    assert [CLASSES["40"].index(kind) for kind in ("airplane", "chair", "night_stand", "xbox")] == [0, 8, 23, 39]
    assert list(CLASSES["10"]) == TEN


@pytest.mark.parametrize("inside", [False, True], ids=["parent", "own folder"])
@pytest.mark.parametrize("form", POINT_FORMATS)
def test_points_labels_names_and_splits_in_place_and_converted(tmp_path: Path, form: str, inside: bool) -> None:
    if form == "caches":
        global_points = np.resize(POINTS, (80, 8192, 6))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(modelnet_files, "POINTS", global_points)
            home, expected = write_caches(tmp_path / "modelnet40"), shapes(CLASSES["40"])
    else:
        home, expected = WRITERS[form](tmp_path / "modelnet40"), shapes(CLASSES["40"])
    path = str(home) if inside else None
    for split in SPLITS:
        clouds = MODELNET40.load(split, tmp_path, path=path)
        check(clouds, split, expected)
        assert (clouds.class_names, clouds.up_axis, clouds.name) == (CLASSES["40"], "y", "modelnet40")
    with pytest.raises(MissingSplitError):
        MODELNET40.load("val", tmp_path, path=path)
    prepared = tmp_path / "modelnet40" / "modelnet40.h5"
    done = convert(MODELNET40.source(home if inside else home.parent), prepared)
    assert (done.shapes, done.skipped) == (80, [])
    shutil.rmtree(home)
    for split in SPLITS:
        check(MODELNET40.load(split, tmp_path), split, expected, tolerance=2e-5)
        check(MODELNET40.load(split, tmp_path, path=str(prepared)), split, expected, tolerance=2e-5)
    with h5py.File(prepared) as file:
        assert "academic" in file.attrs["licence"]
        assert "40 train and 40 test shapes" in file.attrs["licence"]


@pytest.mark.parametrize("writer", [write_resampled, write_meshes])
def test_modelnet10(tmp_path: Path, writer: Callable[[Path, str], Path]) -> None:
    home = writer(tmp_path / "anywhere", "10")
    found = MODELNET10.source(tmp_path / "anywhere")
    assert (list(found.class_names), len(found.items)) == (TEN, 20)
    assert [item.label for item in found.items if item.split == "test"] == list(range(10))
    clouds = MODELNET10.load("train", tmp_path, path=str(home))
    assert (clouds.name, len(clouds)) == ("modelnet10", 10)
    with pytest.raises(DataError, match="holds no modelnet40"):
        MODELNET40.source(home)


def test_meshes_of_modelnet40_are_not_taken_for_modelnet10(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no modelnet10 .*pc-ewa prepare modelnet10"):
        MODELNET10.source(write_meshes(tmp_path))


def test_meshes_become_clouds_in_the_unit_sphere(tmp_path: Path) -> None:
    home = write_meshes(tmp_path / "modelnet40")
    found = MODELNET40.source(home.parent)
    again = MODELNET40.source(home)
    assert (found.up_axis, found.num_points, len(found.items)) == ("z", 8192, 80)
    assert [(item.name, item.split) for item in found.items[:2]] == [
        ("airplane_0001", "train"),
        ("airplane_0002", "test"),
    ]
    first = found.items[4].read().points
    assert np.array_equal(first, again.items[4].read().points)
    assert not np.array_equal(first, found.items[5].read().points)
    np.testing.assert_allclose(first.mean(0), 0, atol=1e-5)
    assert np.linalg.norm(first, axis=1).max() == pytest.approx(1, abs=1e-5)
    convert(found, tmp_path / "few.h5", num_points=64)
    clouds = read_hdf5(tmp_path / "few.h5", "train", name="modelnet40")
    assert (clouds.num_points, len(clouds), clouds.up_axis) == (64, 40, "z")
    names = clouds.shape_names
    assert names is not None
    assert names[:2] == ("airplane_0001", "bathtub_0001")


def test_caches_and_shards_without_lists_of_names(tmp_path: Path) -> None:
    caches = MODELNET40.source(write_caches(tmp_path / "a", lists=False).parent)
    shards = MODELNET40.source(write_shards(tmp_path / "b", names=False).parent)
    assert [item.name for item in (caches.items[0], caches.items[79])] == ["train_00000", "test_00039"]
    assert [item.name for item in (shards.items[0], shards.items[79])] == [
        "ply_data_train0_0000",
        "ply_data_test1_0014",
    ]
    assert len({item.name for item in caches.items}) == len({item.name for item in shards.items}) == 80
    assert [item.label for item in caches.items] == [item.label for item in shards.items] == [*range(40), *range(40)]


def test_the_caches_come_before_the_texts_and_those_before_the_others(tmp_path: Path) -> None:
    for writer in (write_caches, write_shards, write_meshes):
        writer(tmp_path)
    write_resampled(tmp_path)
    assert "caches" in MODELNET40.source(tmp_path).licence
    for split in SPLITS:
        (tmp_path / "modelnet40_normal_resampled" / f"modelnet40_{split}_8192pts_fps.dat").unlink()
    assert MODELNET40.source(tmp_path).licence.count("as modelnet40_normal_resampled") == 1
    shutil.rmtree(tmp_path / "modelnet40_normal_resampled")
    assert "ply_hdf5" in MODELNET40.source(tmp_path).licence


def test_links_are_followed(tmp_path: Path) -> None:
    home = write_resampled(tmp_path / "real")
    (tmp_path / "modelnet40").symlink_to(home.parent)
    path = home / "bed" / "bed_0001.txt"
    path.rename(tmp_path / "elsewhere.txt")
    path.symlink_to(tmp_path / "elsewhere.txt")
    assert len(MODELNET40.load("train", tmp_path)) == 40
    (tmp_path / "elsewhere.txt").unlink()
    with pytest.raises(DataError, match=r"bed_0001\.txt: listed in modelnet40_train\.txt, but not there"):
        MODELNET40.load("train", tmp_path)
