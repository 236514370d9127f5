import os
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_ewa.data import read_hdf5, write_hdf5
from pc_ewa.errors import DataError


def test_reads_the_shapes_of_the_split(path: Path) -> None:
    test = read_hdf5(path, "test", name="toy")
    assert (len(test), test.num_points, test.class_names) == (3, 5, ("chair", "table", "lamp"))
    assert (test.up_axis, test.name) == ("y", "toy")
    assert test.shape_names == ("shape 6", "shape 7", "shape 8")
    assert test.labels.dtype == torch.int64
    assert test.labels.tolist() == [0, 1, 2]
    assert len(read_hdf5(path, "train", name="toy")) == 6


def test_without_split_all_shapes_are_in_the_first(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["split"], file["name"]
    train = read_hdf5(path, "train", name="toy")
    assert len(train) == 9
    assert train.shape_names is None


def test_other_byte_order_and_fixed_length_names_are_read(path: Path) -> None:
    points = np.arange(9 * 5 * 3).reshape(9, 5, 3)
    with h5py.File(path, "a") as file:
        del file["data"], file["label"], file["name"]
        file["data"] = points.astype(">f4")
        file["label"] = np.array([0, 1, 2] * 3, dtype=np.uint8)
        file["name"] = np.array([b"a", b"b\xc3\xa9", b"\xff"] * 3)
    train = read_hdf5(path, "train", name="toy")
    assert torch.equal(train.batch([5])[0][0], torch.from_numpy(points[5]).float())
    assert train.shape_names is not None
    assert train.shape_names[1] == "bé"


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 7)),
    size=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(["int16", "float16", "float32"]),
)
def test_round_trip_is_exact_to_the_rounding_of_the_type(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int],
    size: float,
    seed: int,
    dtype: Literal["int16", "float16", "float32"],
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.h5"
    points = np.random.RandomState(seed).uniform(-size, size, (*shape, 3)).astype(np.float32)
    labels = list(range(shape[0]))
    names = [f"é{i}" for i in labels]
    classes = [f"class {i}" for i in labels]
    write_hdf5(path, points, labels, classes, up_axis="x", names=names, dtype=dtype)
    clouds = read_hdf5(path, "train", name="toy")
    read, read_labels = clouds.batch(labels)
    assert str(clouds.points.dtype) == f"torch.{dtype}"
    steps = {
        "int16": np.full_like(points, np.abs(points).max() / 32767 / 2),
        "float16": np.maximum(np.abs(points) * 2.0**-11, 2.0**-25),
        "float32": np.zeros_like(points),
    }
    assert (np.abs(read.numpy() - points) <= steps[dtype] + np.abs(points) * 2.0**-22 * (dtype != "float32")).all()
    assert read_labels.tolist() == labels
    assert (clouds.shape_names, clouds.class_names) == (tuple(names), tuple(classes))


def test_clouds_of_zeros_survive_int16(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "zeros.h5", np.zeros((1, 2, 3)), [0], ["a"], up_axis="z")
    assert not read_hdf5(tmp_path / "zeros.h5", "train", name="toy").batch([0])[0].any()


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        (np.full((1, 2, 3), np.nan), [0], "cannot write .*toy.h5: NaN or infinity"),
        (np.zeros((1, 2, 3)), [1], "toy.h5: label of shape 0 is 1; allowed: 0 to 0"),
        (np.zeros((2, 3)), [0, 0], r"toy.h5: data has shape \(2, 3\)"),
        (np.zeros((0, 2, 3)), [], "there are no shapes"),
        (np.zeros((2, 2, 3)), [0], "label has 1 entries, data 2"),
    ],
)
def test_refused_contents_leave_the_old_file_and_no_litter(
    path: Path, points: np.ndarray, labels: list[int], message: str
) -> None:
    before = path.read_bytes()
    with pytest.raises(DataError, match=message):
        write_hdf5(path, points, np.array(labels, int), ["only"], up_axis="z")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_float16_overflow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shape 0 of data has inf"):
        write_hdf5(tmp_path / "far.h5", np.full((1, 2, 3), 1e6), [0], ["a"], up_axis="z", dtype="float16")


def test_a_folder_that_cannot_be_made_is_one_line(path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot write .*; choose a folder that is writable"):
        write_hdf5(path / "below_a_file.h5", np.zeros((1, 2, 3)), [0], ["a"], up_axis="z")


def test_licence_and_folder_are_written(path: Path, tmp_path: Path) -> None:
    with h5py.File(path) as file:
        assert file.attrs["licence"] == "CC0"
    write_hdf5(tmp_path / "new" / "a.h5", np.ones((1, 2, 3)), [0], ["a"], up_axis="z")
    assert (tmp_path / "new" / "a.h5").exists()


TWO = np.arange(12.0).reshape(2, 2, 3)
WRONG: dict[str, tuple[dict[str, object], str]] = {
    "text labels": ({"labels": ["a", "b"]}, "label is <U1, such as .*store integers"),
    "label objects": ({"labels": np.array([0, 1], object)}, "label is object.*store integers"),
    "float labels": ({"labels": [0.0, 1.0]}, "label is float64.*store integers"),
    "no labels": ({"labels": None}, "label is object.*store integers"),
    "truth for labels": ({"labels": [True, False]}, "label is bool"),
    "masked labels": ({"labels": np.ma.array([0, 1], mask=[0, 1])}, "label has masked entries"),
    "one label": ({"labels": 0}, r"label has shape \(\)"),
    "a column of labels": ({"labels": [[0], [1]]}, r"label has shape \(2, 1\)"),
    "too many labels": ({"labels": [0, 1, 1]}, "label has 3 entries, data 2"),
    "text splits": ({"split": ["train", "test"]}, "split is <U5, such as .*positions in split_names"),
    "masked points": ({"points": np.ma.masked_greater(TWO, 5)}, "points has masked entries"),
    "ragged points": ({"points": [[[0, 0, 0]], [[1, 1, 1], [2, 2, 2]]]}, "points is not an array"),
    "point objects": ({"points": TWO.astype(object)}, "points is object"),
    "complex points": ({"points": TWO * 1j}, "points is complex128"),
    "text points": ({"points": TWO.astype(str)}, "points is <U"),
    "a graph": ({"points": torch.zeros(2, 2, 3, requires_grad=True)}, "points is not an array"),
    "one class name": ({"class_names": "ab"}, "class_names is one text, 'ab'"),
    "numbers for classes": ({"class_names": [np.int64(1), 2]}, "class_names has"),
    "numbers for names": ({"names": [1, 2]}, "names has 1"),
    "bytes for names": ({"names": [b"a", b"b"]}, "names has b'a'"),
    "NUL": ({"names": ["a", "b\0"]}, "names has"),
    "a half of a pair": ({"names": ["a", "\ud800"]}, "names has"),
    "too few names": ({"names": ["a"]}, "name has 1 entries, data 2"),
    "up is a number": ({"up_axis": 2}, "up_axis is 2; choose x, y, z"),
    "no up": ({"up_axis": None}, "up_axis is None"),
    "another type": ({"dtype": "float64"}, "dtype is 'float64'; choose int16, float16, float32"),
}


@pytest.mark.parametrize(("changed", "message"), WRONG.values(), ids=WRONG)
def test_arguments_that_no_file_can_have_are_one_line(tmp_path: Path, changed: dict, message: str) -> None:
    path = tmp_path / "new" / "a.h5"
    arguments = {"points": TWO, "labels": [0, 1], "class_names": ["a", "b"], "up_axis": "z"} | changed
    with pytest.raises(DataError, match=message) as caught:
        write_hdf5(path, **arguments)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert not path.exists()


def test_lists_tensors_and_small_integers_are_written(tmp_path: Path) -> None:
    for points in (TWO.tolist(), torch.from_numpy(TWO), TWO.astype("u1"), np.ma.array(TWO), TWO.astype(">f8")):
        write_hdf5(
            tmp_path / "a.h5", points, torch.tensor([0, 1]), ("a", "b"), up_axis="z", dtype="float32", split=[0, 0]
        )
        read = read_hdf5(tmp_path / "a.h5", "train", name="toy").batch([0, 1])
        assert np.array_equal(read[0].numpy(), TWO)
        assert read[1].tolist() == [0, 1]
