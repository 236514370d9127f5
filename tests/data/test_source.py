"""Sources of any format: read into memory, or converted to a file in our layout that is mapped, not read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pc_ewa.data import Clouds, MissingSplitError, read_hdf5
from pc_ewa.data.convert import convert
from pc_ewa.data.published.find import load_prepared
from pc_ewa.data.source import Item, Sample, Source, resize
from pc_ewa.errors import DataError


def source(
    counts: tuple[int, ...] = (6, 6, 6, 6),
    change: Callable[[int, NDArray[np.float32]], object] | None = None,
    **kwargs: object,
) -> Source:
    """Shapes "0", "1", ... of two classes in turn, the last a test shape, with a part for each point."""

    def read(i: int, count: int) -> Sample:
        points = np.random.RandomState(i).uniform(-3, 3, (count, 3)).astype(np.float32)
        changed = change(i, points) if change else None
        return Sample(points if changed is None else changed, np.arange(count, dtype=np.uint8))

    items = [
        Item(str(i), i % 2, "test" if i == len(counts) - 1 else "train", lambda i=i, n=n: read(i, n))
        for i, n in enumerate(counts)
    ]
    return Source(
        **{"name": "toy", "items": items, "class_names": ("a", "b"), "up_axis": "y", "licence": "CC0"} | kwargs
    )


def assert_equal(actual: Clouds, expected: Clouds, tolerance: float) -> None:
    index = range(len(expected))
    assert len(actual) == len(expected)
    for one, other in zip(actual.batch(index), expected.batch(index), strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)
    assert torch.equal(actual.part_labels(index), expected.part_labels(index))
    for key in ("class_names", "up_axis", "shape_names", "num_points"):
        assert getattr(actual, key) == getattr(expected, key), key


@pytest.mark.parametrize(("dtype", "tolerance"), [("int16", 3 / 32767), ("float16", 2e-3), ("float32", 0)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_converting_keeps_everything(tmp_path: Path, split: str, dtype: str, tolerance: float) -> None:
    path = tmp_path / "deep" / "toy.h5"
    assert convert(source(), path, dtype=dtype) == (4, [])
    clouds = read_hdf5(path, split, name="toy")
    assert clouds.rows is not None, "mapped"
    assert_equal(clouds, source().clouds(split), tolerance)
    assert [entry.name for entry in path.parent.iterdir()] == ["toy.h5"]


def test_one_number_of_points_for_all(tmp_path: Path) -> None:
    mixed = source((4, 9, 6, 1))
    with pytest.raises(DataError, match="toy: 1 has 9 points, not 4; give num_points to bring all to one number"):
        mixed.clouds("train")
    clouds = mixed.clouds("train", 6)
    assert clouds.num_points == 6
    convert(mixed, tmp_path / "toy.h5", num_points=6)
    assert_equal(read_hdf5(tmp_path / "toy.h5", "train", name="toy"), clouds, 3 / 32767)


@pytest.mark.parametrize(("number", "count"), [(9, 4), (4, 9), (1, 3), (5, 5)])
def test_resizing_draws_without_repeats_or_keeps_all(number: int, count: int) -> None:
    points = np.arange(3 * number, dtype=np.float32).reshape(number, 3)
    sample = Sample(points, np.arange(number, dtype=np.uint8))
    resized = resize(sample, count, "seed")
    assert resized.points.shape == (count, 3)
    assert len(set(resized.parts)) == min(number, count)
    assert np.array_equal(resized.points, points[resized.parts])
    again = resize(sample, count, "seed")
    assert np.array_equal(resized.points, again.points)
    if number > count:
        assert any(not np.array_equal(resized.parts, resize(sample, count, str(i)).parts) for i in range(20))


def test_the_draw_is_the_same_on_every_machine() -> None:
    sample = Sample(np.zeros((10, 3), np.float32), np.arange(10, dtype=np.uint8))
    assert resize(sample, 4, "chair/ü").parts.tolist() == [1, 7, 8, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, points: points[:0], "toy: 2: no points; remove it, or get a fresh copy"),
        (lambda i, points: points[:, :2], r"toy: 2: points are \(6, 2\) float32; expected \(points, 3\) numbers"),
        (lambda i, points: points.astype(object), r"toy: 2: points are \(6, 3\) object"),
        (lambda i, points: points * np.float32("nan"), "toy: 2: nan among the coordinates; remove or repair it"),
        (lambda i, points: points.astype(np.float64) * 1e300, "toy: 2: -?inf among the coordinates"),
    ],
)
def test_a_defect_is_named_and_can_be_left_out(
    tmp_path: Path, change: Callable[[int, NDArray[np.float32]], object], message: str
) -> None:
    broken = source(change=lambda i, points: change(i, points) if i == 2 else None)
    path = tmp_path / "toy.h5"
    for read in (lambda: broken.clouds("train"), lambda: convert(broken, path)):
        with pytest.raises(DataError, match=message):
            read()
    assert list(tmp_path.iterdir()) == []
    done = convert(broken, path, skip_defects=True)
    assert done.shapes == 3
    assert [name for name, _ in done.skipped] == ["2"]
    assert read_hdf5(path, "train", name="toy").shape_names == ("0", "1")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    empty = source(change=lambda i, points: points[:0])
    with pytest.raises(DataError, match="toy: no shape could be read; 4 were left out, the first: toy: 0: no points"):
        convert(empty, tmp_path / "toy.h5", skip_defects=True)
    with pytest.raises(DataError, match=r"toy: no shape could be read$"):
        convert(source(()), tmp_path / "toy.h5")


def test_a_class_without_a_training_shape_is_left_out(tmp_path: Path) -> None:
    broken = source(change=lambda i, points: points[:0] if i == 1 else None)
    done = convert(broken, tmp_path / "toy.h5", skip_defects=True)
    assert (done.shapes, [name for name, _ in done.skipped]) == (2, ["1", "3"])
    kept = read_hdf5(tmp_path / "toy.h5", "train", name="toy")
    assert (kept.class_names, kept.shape_names) == (("a",), ("0", "2"))
    assert kept.part_labels([1])[0].tolist() == [*range(6)]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*; choose a folder that is writable and has space"):
        convert(source(), tmp_path / "file" / "toy.h5")


def test_a_split_that_is_not_there() -> None:
    with pytest.raises(MissingSplitError, match="toy: there is no split 'val'; choose one of: test, train"):
        source().clouds("val")


def test_prepared_comes_first_then_the_published_files(tmp_path: Path) -> None:
    def toy(folder: Path) -> Source | None:
        return source() if (folder / "published").exists() else None

    def load(path: Path | None = None) -> Clouds:
        return load_prepared("toy", "train", tmp_path / "toy", "toy.h5", [lambda folder: None, toy], path)

    with pytest.raises(
        DataError, match=r"toy is not a folder or a prepared file; pc-ewa prepare toy gets it, or prints how"
    ):
        load()
    (tmp_path / "toy").mkdir()
    with pytest.raises(DataError, match=r"toy holds no toy in any published format; pc-ewa prepare toy"):
        load()
    (tmp_path / "toy" / "published").touch()
    assert load().points.dtype == torch.float32
    convert(source(), tmp_path / "toy" / "toy.h5")
    for clouds in (load(), load(tmp_path / "toy"), load(tmp_path / "toy" / "toy.h5")):
        assert clouds.points.dtype == torch.int16


def test_mapped_clouds_can_be_cut_and_moved(tmp_path: Path) -> None:
    convert(source((6,) * 12), tmp_path / "toy.h5")
    clouds = read_hdf5(tmp_path / "toy.h5", "train", name="toy")
    train, val = clouds.split_validation(0.2, seed=0)
    assert sorted([*map(int, train.shape_names), *map(int, val.shape_names)]) == list(range(11))
    for part in (train, val.select([1]), val.select([1, 0]).select([0])):
        whole = [int(name) for name in part.shape_names]
        expected = clouds.batch(whole)
        moved = part.to("cpu")
        assert len(moved.points) == len(part), "only what is needed moves"
        for one in (part, moved):
            assert torch.equal(one.batch(range(len(one)))[0], expected[0])
            assert torch.equal(one.part_labels(range(len(one))), clouds.part_labels(whole))
    assert part.nbytes == 6 * 3 * 2


def test_writing_to_a_batch_does_not_change_the_file(tmp_path: Path) -> None:
    convert(source(), tmp_path / "toy.h5")
    before = (tmp_path / "toy.h5").read_bytes()
    clouds = read_hdf5(tmp_path / "toy.h5", "train", name="toy")
    clouds.batch([0])[0].zero_()
    clouds.points.zero_()
    assert (tmp_path / "toy.h5").read_bytes() == before


def test_without_parts_there_is_one_line(toy_file: Path) -> None:
    with pytest.raises(DataError, match="toy has no parts; choose a dataset for segmentation"):
        read_hdf5(toy_file, "train", name="toy").part_labels([0])
