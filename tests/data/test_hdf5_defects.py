"""Every defect of a file is refused in one line that names the file, the defect and the remedy."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pc_ewa.data import read_hdf5
from pc_ewa.errors import DataError

Change = Callable[[h5py.File], None]


def put(key: str, value: object) -> Change:
    """Replace a dataset."""

    def change(file: h5py.File) -> None:
        if key in file:
            del file[key]
        if value is not None:
            file[key] = value

    return change


def attribute(key: str, value: object) -> Change:
    def change(file: h5py.File) -> None:
        if value is None:
            del file.attrs[key]
        else:
            file.attrs[key] = value

    return change


def floats(points: np.ndarray) -> Change:
    return put("data", points.astype(np.float32))


def scale(value: object) -> Change:
    def change(file: h5py.File) -> None:
        del file["data"].attrs["scale"]
        if value is not None:
            file["data"].attrs["scale"] = value

    return change


def bad_points(value: float) -> np.ndarray:
    points = np.zeros((9, 5, 3))
    points[[4, 7], 2, 1] = value
    return points


def group(file: h5py.File) -> None:
    del file["name"]
    file.create_group("name")


DEFECTS: list[tuple[str, Change, str, str]] = [
    ("no data", put("data", None), "no dataset data .*found: label, name, split", "add it"),
    ("no label", put("label", None), "no dataset label ", "add it"),
    (
        "two axes",
        floats(np.zeros((9, 5))),
        r"data has shape \(9, 5\)",
        r"store clouds as \(shapes, points, 3\)",
    ),
    ("four columns", floats(np.zeros((9, 5, 4))), r"data has shape \(9, 5, 4\)", "store clouds as"),
    ("no points", floats(np.zeros((9, 0, 3))), "clouds have zero points", "store at least"),
    ("no shapes", floats(np.zeros((0, 5, 3))), "there are no shapes", "store at least"),
    ("doubles", put("data", np.zeros((9, 5, 3))), "data is float64", "store float32, float16"),
    ("no scale", scale(None), "int16 without an attribute scale", "set data.attrs"),
    ("zero scale", scale(0.0), "data has scale 0.0", "set data.attrs.* above 0"),
    ("NaN scale", scale(float("nan")), "data has scale nan", "set data.attrs"),
    ("complex scale", scale(np.complex64(2 + 1j)), r"data has scale \(2\+1j\)", "set data.attrs"),
    ("text scale", scale("big"), "data has scale big", "set data.attrs"),
    ("NaN", floats(bad_points(np.nan)), r"shape 4 of data has nan \(1 such shape of 6\)", "remove or repair"),
    ("infinity", floats(bad_points(-np.inf)), "shape 4 of data has -inf", "remove or repair"),
    (
        "label too high",
        put("label", [0, 1, 2, 0, 3, 2, 0, 1, 2]),
        "label of shape 4 is 3; allowed: 0 to 2",
        "correct",
    ),
    (
        "label below 0",
        put("label", [0, -1, 2, 0, 1, 2, 0, 1, 2]),
        "label of shape 1 is -1; allowed",
        "correct",
    ),
    ("float labels", put("label", np.zeros(9)), r"label has shape \(9,\) and type float64", "store integers"),
    ("label column", put("label", np.zeros((9, 1), int)), r"label has shape \(9, 1\)", r"of shape \(9,\)"),
    ("labels missing", put("label", [0, 1, 2]), "label has 3 entries, data 9", "one for each shape"),
    ("splits missing", put("split", [0, 1]), "split has 2 entries, data 9", "one for each shape"),
    (
        "split too high",
        put("split", [0] * 8 + [2]),
        "split of shape 8 is 2; allowed: 0 to 1",
        "correct split",
    ),
    ("names missing", put("name", ["a"]), "name has 1 entries, data 9", "one for each shape"),
    ("number names", put("name", np.arange(9)), "name has shape .* int64", "store strings"),
    ("group", group, "name is a group", "store a dataset of 9 strings"),
    ("empty class", put("label", [0, 1, 0, 1, 0, 1, 2, 2, 2]), "no training shape of: lamp", "add some"),
    ("no classes", attribute("class_names", None), "class_names is missing", "JSON list such as"),
    (
        "no JSON",
        attribute("class_names", "chair, table"),
        "class_names is 'chair, table'",
        "JSON list such as",
    ),
    ("twice", attribute("class_names", json.dumps(["a", "b", "a"])), "class_names has 'a' twice", "distinct"),
    ("numbers", attribute("split_names", "[1, 2]"), r"split_names is '\[1, 2\]'", "JSON list"),
    ("no up", attribute("up_axis", None), "up_axis is missing", "x, y or z"),
    ("wrong up", attribute("up_axis", "up"), "up_axis is 'up'", "x, y or z"),
]


@pytest.mark.parametrize(("change", "defect", "remedy"), [case[1:] for case in DEFECTS], ids=[c[0] for c in DEFECTS])
def test_a_defect_is_named_with_the_file_and_the_remedy(path: Path, change: Change, defect: str, remedy: str) -> None:
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(DataError, match=f"{defect}.*; .*{remedy}") as caught:
        read_hdf5(path, "train", name="toy")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_float_points_with_a_scale_are_refused(path: Path) -> None:
    with h5py.File(path, "a") as file:
        put("data", np.zeros((9, 5, 3), np.float16))(file)
        file["data"].attrs["scale"] = 10.0
    with pytest.raises(DataError, match=r"data is float16 with scale 10.0; divide by it and remove it"):
        read_hdf5(path, "train", name="toy")


def test_unknown_and_empty_splits_list_those_there_are(path: Path) -> None:
    listed = r"choose one of: train \(6 shapes\), test \(3 shapes\), or"
    with pytest.raises(DataError, match=f"there is no split 'val'; {listed}"):
        read_hdf5(path, "val", name="toy")
    with h5py.File(path, "a") as file:
        attribute("split_names", json.dumps(["train", "test", "val"]))(file)
    with pytest.raises(DataError, match=f"split 'val' is empty; {listed}"):
        read_hdf5(path, "val", name="toy")


def test_a_class_without_test_shapes_is_allowed(path: Path) -> None:
    with h5py.File(path, "a") as file:
        put("label", [0, 1, 2, 0, 1, 2, 0, 0, 0])(file)
    assert len(read_hdf5(path, "test", name="toy")) == 3


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.h5 does not exist; look in the cellar"):
        read_hdf5(tmp_path / "none.h5", "train", name="toy", remedy="look in the cellar")


@pytest.mark.parametrize("keep", [0, 10, 600, -200, -1])
def test_truncated_files_are_refused_in_one_line(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cannot read .*toy\.h5: .*Get a fresh copy") as caught:
        read_hdf5(path, "train", name="toy")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [lambda path: path.write_text("x,y,z\n" * 99), lambda path: path.mkdir()])
def test_what_is_no_hdf5_file_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "points.csv")
    with pytest.raises(DataError, match=r"cannot read .*points\.csv: .*is it an HDF5 file"):
        read_hdf5(tmp_path / "points.csv", "train", name="toy")


def test_damaged_points_are_refused(path: Path) -> None:
    with h5py.File(path) as file:
        start = file["data"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = bytes(40)  # the head of the compressed points
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*Get a fresh copy"):
        read_hdf5(path, "train", name="toy")
