"""HDF5 of others: arrays are used only where all of them lies in the file itself.

HDF5 lets an array lie in any other file of the machine: by an external link, by external storage, or as a virtual
dataset. It also lets a file of some kB declare terabytes. Both are refused before anything is read or allocated.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np
from numpy.typing import NDArray

from pc_ewa.errors import DataError, Error
from pc_ewa.text import printable

_SMALL = 1 << 26  # bytes that any array may have, however well they are compressed
_RATIO = 200  # of larger ones to what is stored: clouds pack 2 to 30 times, padded ones 100
_LARGEST_CHUNK = 1 << 28  # bytes; HDF5 reads whole chunks
_ATTRIBUTE = 1 << 20  # bytes: JSON of that size becomes lists of up to 30 times as many
_ROWS = 256  # in memory at a time, beside those that are kept


@contextmanager
def open_hdf5(path: Path, remedy: str) -> Iterator[h5py.File]:
    """Open a file for reading; whatever h5py raises on a damaged one, in the block too, becomes one line.

    Raises:
        DataError: it is not a file, cannot be read, or is damaged; `remedy` ends the line.
    """
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise OSError("it is missing, or not a file")
        with h5py.File(path, "r") as file:
            yield file
    except Error:
        raise
    except Exception as error:
        reason = printable(" ".join(str(error).split()) or type(error).__name__, 300)
        raise DataError(f"cannot read {path}: {reason}; {remedy}") from error


def own_dataset(file: h5py.File, key: str, path: Path) -> h5py.Dataset | None:
    """Return the dataset `key` of an open file, or None where there is none, or a group.

    Compare its shape with what it must be, or call `check_stored`, before as much as it declares is allocated.

    Args:
        file: the open file.
        key: a name at the top of it.
        path: the name the user knows the file by, for messages.

    Raises:
        DataError: it refers to another file, goes through a link, or has chunks that no memory should hold.
    """
    link = file.get(key, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        target = printable(f"{getattr(link, 'filename', '')}:{getattr(link, 'path', '')}".lstrip(":"))
        _refuse(path, f"{key} is a link to {target}, which is not followed", "store the array itself under this name")
    found = file[key]
    if not isinstance(found, h5py.Dataset):
        return None
    if found.external:
        place = printable(str(found.external[0][0]))
        _refuse(path, f"{key} lies in another file, {place}, which is not read", "store it in this file")
    if found.is_virtual:
        _refuse(path, f"{key} is a virtual dataset, put together from others", "store the array itself")
    if found.chunks and _size(found, found.chunks) > _LARGEST_CHUNK:
        _refuse(path, f"{key} has chunks of {found.chunks}, larger than memory may be", "store smaller ones")
    return found


def check_stored(array: h5py.Dataset, path: Path) -> None:
    """Compare what an array declares with what the file holds of it; it may lie about both, not about its size.

    Raises:
        DataError: an array that was not written to the end, or declares over 64 MiB and far more than is stored.
    """
    name, declared = array.name.lstrip("/"), _size(array, array.shape or (0,))
    if declared and array.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
        _refuse(path, f"{name} was not written to the end", "write it again, or get a fresh copy")
    stored = min(array.id.get_storage_size(), os.path.getsize(array.file.filename))
    largest = max(declared, _size(array, array.chunks or (0,)))
    if largest > max(_SMALL, _RATIO * stored):
        defect = f"{name} declares {largest:,} bytes, but {stored:,} are stored"
        _refuse(path, defect, "store it uncompressed, or get a fresh copy")


def _refuse(path: Path, defect: str, remedy: str) -> NoReturn:
    raise DataError(f"cannot read {path}: {defect}; {remedy}")


def names_of(file: h5py.File) -> str:
    """List what is at the top of a file, for a message."""
    return printable(", ".join(islice(map(str, file), 20)) or "nothing", 200)


def own_attribute(of: h5py.File | h5py.Dataset, key: str, path: Path) -> Any:
    """Return an attribute, None where there is none.

    Raises:
        DataError: a value of over 1 MiB.
    """
    if key not in of.attrs:
        return None
    attribute = of.attrs.get_id(key)
    size = math.prod(attribute.shape) * int(attribute.dtype.itemsize)
    value = of.attrs[key] if size <= _ATTRIBUTE else None
    if isinstance(value, str | bytes):  # its size was that of a pointer
        size = len(value)
    if size > _ATTRIBUTE:
        raise DataError(f"cannot read {path}: attribute {key} has {size:,} bytes; store at most {_ATTRIBUTE:,}")
    return value


def read_rows(array: h5py.Dataset, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Read these rows, in their order, which is that of the file, with some more in memory at most."""
    selected = np.zeros(len(array), dtype=bool)
    selected[rows] = True
    values = np.empty((len(rows), *array.shape[1:]), array.dtype.newbyteorder("="))
    done = 0
    for begin in range(0, len(array), _ROWS):
        chunk = array[begin : begin + _ROWS][selected[begin : begin + _ROWS]]
        values[done : done + len(chunk)] = chunk
        done += len(chunk)
    return values


def _size(array: h5py.Dataset, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * int(array.id.get_type().get_size())
