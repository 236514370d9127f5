"""Safe access to HDF5 files from others: only arrays that are stored entirely in the file itself are read.

HDF5 can store an array in any other file of the machine: by an external link, by external storage, or as a virtual
dataset. A file of a few kB can also declare terabytes. Both are refused before anything is read or allocated.
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

# Bytes that an array may declare at any compression ratio.
_SMALL = 1 << 26
# Largest compression ratio of an array above _SMALL. Point clouds compress 2 to 30 times, padded ones 100 times.
_RATIO = 200
# Bytes of one chunk: HDF5 decompresses a whole chunk to read one element of it.
_LARGEST_CHUNK = 1 << 28
# Bytes of one attribute: parsing JSON of that size allocates up to 30 times as much.
_ATTRIBUTE = 1 << 20
# Rows in memory at a time, in addition to the result.
_ROWS = 256


@contextmanager
def open_hdf5(path: Path, remedy: str) -> Iterator[h5py.File]:
    """Open a file for reading, and turn any exception of h5py, inside the block too, into a DataError.

    Raises:
        DataError: the path is not a file, or the file cannot be read or is damaged; `remedy` ends the message.
    """
    try:
        # Opening a named pipe would block until somebody writes to it.
        if not os.path.isfile(path):
            raise OSError("it is missing, or not a file")
        with h5py.File(path, "r") as file:
            yield file
    except Error:
        raise
    # h5py has no base class for its errors: damage raises OSError, RuntimeError, KeyError, ValueError and others.
    except Exception as error:
        reason = printable(" ".join(str(error).split()) or type(error).__name__, 300)
        raise DataError(f"cannot read {path}: {reason}; {remedy}") from error


def own_dataset(file: h5py.File, key: str, path: Path) -> h5py.Dataset | None:
    """Return the dataset `key` of an open file. None means that `key` is absent or is a group.

    The declared shape is not checked here. Before reading, compare it with the expected shape or call `check_stored`.

    Args:
        file: the open file.
        key: a name at the top level of the file.
        path: the path to print in messages.

    Raises:
        DataError: the dataset is stored in another file, is reached through a link, or has oversized chunks.
    """
    # Inspect the link before `file[key]`, which would already open the file that an external link points to.
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
        _refuse(path, f"{key} is stored in another file, {place}, which is not read", "store it in this file")
    if found.is_virtual:
        _refuse(path, f"{key} is a virtual dataset, assembled from others", "store the array itself")
    if found.chunks and _size(found, found.chunks) > _LARGEST_CHUNK:
        _refuse(path, f"{key} has chunks of {found.chunks}, larger than memory may be", "store smaller ones")
    return found


def check_stored(array: h5py.Dataset, path: Path) -> None:
    """Compare the declared size of an array with the bytes that are stored of it.

    Raises:
        DataError: an array that was not written completely, or that declares over 64 MiB and far more than is stored.
    """
    name, declared = array.name.lstrip("/"), _size(array, array.shape or (0,))
    # Unallocated chunks read as zeros, so a file whose writer crashed would give plausible clouds of zeros.
    if declared and array.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
        _refuse(path, f"{name} was not written to the end", "write it again, or get a fresh copy")
    # A crafted header can lie about the stored size too, but not about the size of the file on disk.
    stored = min(array.id.get_storage_size(), os.path.getsize(array.file.filename))
    largest = max(declared, _size(array, array.chunks or (0,)))
    if largest > max(_SMALL, _RATIO * stored):
        defect = f"{name} declares {largest:,} bytes, but {stored:,} are stored"
        _refuse(path, defect, "store it uncompressed, or get a fresh copy")


def _refuse(path: Path, defect: str, remedy: str) -> NoReturn:
    raise DataError(f"cannot read {path}: {defect}; {remedy}")


def names_of(file: h5py.File) -> str:
    """List the names at the top level of a file, for a message."""
    return printable(", ".join(islice(map(str, file), 20)) or "nothing", 200)


def own_attribute(of: h5py.File | h5py.Dataset, key: str, path: Path) -> Any:
    """Return an attribute. None means that it is absent.

    Raises:
        DataError: a value of over 1 MiB.
    """
    if key not in of.attrs:
        return None
    attribute = of.attrs.get_id(key)
    size = math.prod(attribute.shape) * int(attribute.dtype.itemsize)
    value = of.attrs[key] if size <= _ATTRIBUTE else None
    # The item size of a string of variable length is that of a pointer to it.
    if isinstance(value, str | bytes):
        size = len(value)
    if size > _ATTRIBUTE:
        raise DataError(f"cannot read {path}: attribute {key} has {size:,} bytes; store at most {_ATTRIBUTE:,}")
    return value


def read_rows(array: h5py.Dataset, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Read these rows, which must ascend, with at most _ROWS rows in memory in addition to the result."""
    # Read slices and select in memory: h5py's selection by a list of rows is slow, as its documentation warns.
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
