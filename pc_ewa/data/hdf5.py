"""Read and write HDF5 files in our layout (layout.py describes it)."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pc_ewa.data.clouds import Clouds, UpAxis
from pc_ewa.data.contained import open_hdf5
from pc_ewa.data.dataset import Dataset
from pc_ewa.data.layout import DEFAULT_SPLITS, Layout
from pc_ewa.errors import DataError
from pc_ewa.text import printable

_STORED_TYPES = ("int16", "float16", "float32")


def load(split: str, root: Path, *, path: str | Path) -> Clouds:
    """Load a split of the user's own file; `root` plays no part.

    Args:
        split: name of the split.
        root: not used.
        path: the file in our layout, as `pc-ewa prepare` and `write_hdf5` write it.

    Raises:
        MissingSplitError: no such split.
        DataError: a missing or damaged file.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise DataError(f"{file} is a folder; a folder of shapes is loaded with name: files, not hdf5")
    return read_hdf5(file, split, name=file.stem, remedy="check the option path")


def read_hdf5(path: Path, split: str, *, name: str, remedy: str = "check the path") -> Clouds:
    """Read one split and check it.

    Args:
        path: a file in our layout.
        split: one of its split names; "train" must have a shape of every class.
        name: name of the dataset.
        remedy: what to do when the file is missing, for the message.

    Raises:
        MissingSplitError: no shapes in this split.
        DataError: a missing or damaged file, or contents that training cannot use; one line with the remedy.
    """
    if not os.path.exists(path):
        raise DataError(f"{path} does not exist; {remedy}")
    with open_layout(path) as layout:
        return layout.clouds(split, name)


@contextmanager
def open_layout(path: Path, shown: Path | None = None) -> Iterator[Layout]:
    """Open a file in our layout; whatever is wrong with it, in the block too, is one line.

    Args:
        path: the file.
        shown: the name the user knows it by, if that is another one.

    Raises:
        DataError: as `read_hdf5`.
    """
    with open_hdf5(path, "is it an HDF5 file, whole and readable? Get a fresh copy") as file:
        yield Layout(file, shown or path)


def write_hdf5(
    path: str | Path,
    points: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    *,
    up_axis: UpAxis,
    split: ArrayLike | None = None,
    split_names: Sequence[str] = DEFAULT_SPLITS,
    names: Sequence[str] | None = None,
    licence: str | None = None,
    dtype: Literal["int16", "float16", "float32"] = "int16",
) -> None:
    """Write a file in our layout; it gets its name only when it is whole and reads back without complaint.

    Args:
        path: the file to create or replace; its folder is made when missing.
        points: coordinates (N, P, 3).
        labels: (N,) integers, positions in `class_names`.
        class_names: name of every class.
        up_axis: the axis that points up.
        split: (N,) integers, positions in `split_names`; None puts every shape into the first.
        split_names: names of the splits.
        names: one name per shape.
        licence: of the whole file.
        dtype: stored type; int16 has steps of 1/32767 of the largest coordinate.

    Raises:
        DataError: contents that `read_hdf5` would refuse, or a file that cannot be written.
    """
    path = Path(path)
    coordinates = _array(path, "points", points, "fiu", "give coordinates (shapes, points, 3)")
    numbers = _array(path, "label", labels, "iu", "store integers, positions in class_names")
    if split is not None:
        split = _array(path, "split", split, "iu", "store integers, positions in split_names")
    for key, texts in (("class_names", class_names), ("split_names", split_names), ("names", names or ())):
        _check_texts(path, key, texts)
    for key, value, allowed in (("up_axis", up_axis, get_args(UpAxis)), ("dtype", dtype, _STORED_TYPES)):
        if not isinstance(value, str) or value not in allowed:
            raise DataError(f"cannot write {path}: {key} is {value!r:.60}; choose {', '.join(allowed)}")
    with new_file(path) as file:
        write_attributes(file, class_names, split_names, up_axis, None if licence is None else str(licence))
        _write_points(file, coordinates, dtype, path)
        write_columns(file, numbers, split, names)


def _array(path: Path, key: str, values: ArrayLike, kinds: str, remedy: str) -> NDArray[Any]:
    """Make an array of values, of these kinds of numbers; DataError for anything else."""
    if np.ma.is_masked(values):
        raise DataError(f"cannot write {path}: {key} has masked entries; fill or remove them")
    try:
        array = np.asarray(values)
    except Exception as error:  # lists of unequal lengths, tensors on a GPU: objects of others raise what they like
        reason = printable(" ".join(str(error).split()), 200)
        raise DataError(f"cannot write {path}: {key} is not an array ({reason}); {remedy}") from error
    if array.dtype.kind not in kinds and array.size:
        example = printable(repr(array.flat[0]))
        raise DataError(f"cannot write {path}: {key} is {array.dtype}, such as {example}; {remedy}")
    return array


def _check_texts(path: Path, key: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str | bytes):  # a sequence too, of letters
        raise DataError(f"cannot write {path}: {key} is one text, {printable(repr(texts))}; give a list of them")
    for text in texts:
        if not isinstance(text, str) or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            shown = printable(repr(text))
            raise DataError(f"cannot write {path}: {key} has {shown}; give text, without NUL, that UTF-8 can store")


def write_attributes(
    file: h5py.File, class_names: Sequence[str], split_names: Sequence[str], up_axis: UpAxis, licence: str | None
) -> None:
    """Write what holds for the whole file."""
    file.attrs["class_names"] = json.dumps(list(class_names))
    file.attrs["split_names"] = json.dumps(list(split_names))
    file.attrs["up_axis"] = up_axis
    if licence is not None:
        file.attrs["licence"] = licence


def write_columns(
    file: h5py.File, labels: NDArray[Any], split: NDArray[Any] | None, names: Sequence[str] | None
) -> None:
    """Write what there is one of for each shape."""
    file["label"] = labels
    if split is not None:
        file["split"] = split
    if names is not None:
        file.create_dataset("name", data=list(names), dtype=h5py.string_dtype())


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """Open a new file in our layout; it gets its name only when it is whole and reads back without complaint.

    Raises:
        DataError: a folder that cannot be written, or contents that `read_hdf5` would refuse.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _one_line_errors(f"cannot write {path}", "choose a folder that is writable and has space"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with h5py.File(temporary, "w") as file:
                yield file
            _read_all(temporary, path)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _write_points(file: h5py.File, points: NDArray[Any], dtype: str, path: Path) -> None:
    if not np.isfinite(points).all():  # NaN would become a plausible int16
        raise DataError(f"cannot write {path}: NaN or infinity in the points; remove or repair these shapes")
    scale = None
    if dtype == "int16":
        scale = 32767 / (float(np.abs(points).max(initial=0)) or 1.0)
        points = np.rint(points.astype(np.float64) * scale)
    with np.errstate(over="ignore"):  # reading back refuses what overflows float16
        stored = points.astype(dtype)
    file.create_dataset("data", data=stored, compression="gzip" if stored.size else None)
    if scale is not None:
        file["data"].attrs["scale"] = scale


def _read_all(temporary: Path, path: Path) -> None:
    """Read every split with its checks; messages name the file `path`, as the user does."""
    with open_layout(temporary, path) as layout:
        for split in layout.used_splits():
            layout.clouds(split, path.stem)


@contextmanager
def _one_line_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn what h5py and the file system raise on a full disk into one line."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py uses all four
        raise DataError(f"{what}: {' '.join(str(error).split())}; {remedy}") from error


DATASET = Dataset(
    name="hdf5",
    load=load,
    title="a file of your own in our HDF5 layout",
    licence="yours",
    manual="data.path is the file; `pc-ewa prepare files FOLDER -o mine.h5` makes one from a folder of shapes",
    own_files=True,
)
