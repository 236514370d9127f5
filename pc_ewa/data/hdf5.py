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
    """Load a split of the user's file. `root` is not used.

    Args:
        split: name of the split.
        root: not used.
        path: a file in our layout, as written by `pc-ewa prepare` and `write_hdf5`.

    Raises:
        MissingSplitError: no such split.
        DataError: a missing or damaged file.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise DataError(f"{file} is a folder; a folder of shapes is loaded with name: files, not hdf5")
    return read_hdf5(file, split, name=file.stem, remedy="check data.path, or make it with pc-ewa prepare files")


def read_hdf5(path: Path, split: str, *, name: str, remedy: str = "check the path") -> Clouds:
    """Read one split and check it.

    Args:
        path: a file in our layout.
        split: one of its split names; "train" must have a shape of every class.
        name: name of the dataset.
        remedy: end of the message if the file is missing.

    Raises:
        MissingSplitError: no shapes in this split.
        DataError: a missing or damaged file, or contents that training cannot use; one line with the remedy.

    Example:
        >>> pc_ewa.data.write_hdf5("toys.h5", torch.rand(3, 8, 3), [0, 1, 0], ["cube", "ball"], up_axis="z")
        >>> pc_ewa.data.read_hdf5("toys.h5", "train", name="toys").labels
        tensor([0, 1, 0])
    """
    if not os.path.exists(path):
        raise DataError(f"{path} does not exist; {remedy}")
    with open_layout(path) as layout:
        return layout.clouds(split, name)


@contextmanager
def open_layout(path: Path, shown: Path | None = None) -> Iterator[Layout]:
    """Open a file in our layout. Any error, inside the block too, becomes a DataError of one line.

    Args:
        path: the file.
        shown: the path to print in messages. None prints `path`.

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
    """Write a file in our layout. It is written under a temporary name, read back and validated, then renamed.

    Args:
        path: the file to create or replace; a missing folder is created.
        points: coordinates (N, P, 3).
        labels: (N,) integers, positions in `class_names`.
        class_names: name of every class.
        up_axis: the axis that points up.
        split: (N,) integers, positions in `split_names`. None puts every shape into the first split.
        split_names: names of the splits.
        names: one name per shape. None stores no names.
        licence: licence of the data. None stores no licence.
        dtype: stored type; int16 has steps of 1/32767 of the largest coordinate.

    Raises:
        DataError: contents that `read_hdf5` would refuse, or a file that cannot be written.

    Example:
        >>> points, split = torch.rand(4, 16, 3), [0, 0, 0, 1]
        >>> pc_ewa.data.write_hdf5("toys.h5", points, [0, 1, 0, 1], ["cube", "ball"], up_axis="z", split=split)
        >>> len(pc_ewa.load_dataset("hdf5", "test", path="toys.h5"))
        1
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
    """Convert values to an array of one of the NumPy kinds `kinds`; DataError for anything else."""
    # `np.asarray` would drop the mask and store whatever value is under it.
    if np.ma.is_masked(values):
        raise DataError(f"cannot write {path}: {key} has masked entries; fill or remove them")
    try:
        array = np.asarray(values)
    # `__array__` of a foreign object may raise anything: TypeError of a tensor on a GPU, ValueError of a ragged list.
    except Exception as error:
        reason = printable(" ".join(str(error).split()), 200)
        raise DataError(f"cannot write {path}: {key} is not an array ({reason}); {remedy}") from error
    if array.dtype.kind not in kinds and array.size:
        example = printable(repr(array.flat[0]))
        raise DataError(f"cannot write {path}: {key} is {array.dtype}, such as {example}; {remedy}")
    return array


def _check_texts(path: Path, key: str, texts: Sequence[str]) -> None:
    # A str is a sequence of str too: "chair" would become five classes.
    if isinstance(texts, str | bytes):
        raise DataError(f"cannot write {path}: {key} is one text, {printable(repr(texts))}; give a list of them")
    for text in texts:
        if not isinstance(text, str) or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            shown = printable(repr(text))
            raise DataError(f"cannot write {path}: {key} has {shown}; give text, without NUL, that UTF-8 can store")


def write_attributes(
    file: h5py.File, class_names: Sequence[str], split_names: Sequence[str], up_axis: UpAxis, licence: str | None
) -> None:
    """Write the attributes of the file."""
    file.attrs["class_names"] = json.dumps(list(class_names))
    file.attrs["split_names"] = json.dumps(list(split_names))
    file.attrs["up_axis"] = up_axis
    if licence is not None:
        file.attrs["licence"] = licence


def write_columns(
    file: h5py.File, labels: NDArray[Any], split: NDArray[Any] | None, names: Sequence[str] | None
) -> None:
    """Write the arrays with one entry per shape: label, split and name."""
    file["label"] = labels
    if split is not None:
        file["split"] = split
    if names is not None:
        file.create_dataset("name", data=list(names), dtype=h5py.string_dtype())


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """Open a new file in our layout. At the end of the block it is read back and validated, then renamed to `path`.

    Raises:
        DataError: a folder that cannot be written, or contents that `read_hdf5` would refuse.
    """
    # In the same folder: a rename is atomic only within one file system. The process id keeps two writers apart.
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
    # The cast of NaN to int16 gives a plausible number, which reading back could not detect.
    if not np.isfinite(points).all():
        raise DataError(f"cannot write {path}: NaN or infinity in the points; remove or repair these shapes")
    scale = None
    if dtype == "int16":
        scale = 32767 / (float(np.abs(points).max(initial=0)) or 1.0)
        points = np.rint(points.astype(np.float64) * scale)
    # Reading back refuses the infinity that an overflow of float16 gives.
    with np.errstate(over="ignore"):
        stored = points.astype(dtype)
    file.create_dataset("data", data=stored, compression="gzip" if stored.size else None)
    if scale is not None:
        file["data"].attrs["scale"] = scale


def _read_all(temporary: Path, path: Path) -> None:
    """Read and check every split of the temporary file; messages print `path`."""
    with open_layout(temporary, path) as layout:
        for split in layout.used_splits():
            layout.clouds(split, path.stem)


@contextmanager
def _one_line_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn the exceptions of h5py and of the file system, such as those on a full disk, into one line."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py uses all four
        raise DataError(f"{what}: {' '.join(str(error).split())}; {remedy}") from error


DATASET = Dataset(
    name="hdf5",
    load=load,
    title="your file in our HDF5 layout",
    licence="yours",
    manual="data.path is the file; `pc-ewa prepare files FOLDER -o mine.h5` makes one from a folder of shapes",
    own_files=True,
)
