"""NPY files, and the shape of the array of a cloud."""

import io
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.formats.text_files import one_line

# Columns that a cloud may have if it has fewer points than columns: x y z, normal, colours and the fields of LAS.
_MOST_COLUMNS = 16
# The same for three points, whose transposed table is the most likely mistake: x y z with a normal or colours.
_MOST_OF_THREE = 7


def parse_npy(data: bytes) -> NDArray[Any]:
    """Return a view of the array of numbers in a whole NPY file. Nothing is unpickled.

    `numpy.load` fails on two kinds of files ("huge header" and "trailing" in test_shapenet55.py): it allocates the 2 GB
    that a header claims, and it ignores bytes after the array. Its parser of headers, `ast.literal_eval` of at most
    10,000 characters, is also used here. Source: NEP 1.

    Raises:
        ValueError: damaged, truncated, or not an array of numbers.
    """
    stream, parse = io.BytesIO(data), np.lib.format
    headers = {(1, 0): parse.read_array_header_1_0, (2, 0): parse.read_array_header_2_0}
    try:
        with warnings.catch_warnings():
            # Python's parser warns about a damaged header, and NumPy about one of Python 2.
            warnings.simplefilter("ignore")
            shape, by_column, dtype = headers[parse.read_magic(stream)](stream)
    # Parsing a damaged Python literal raises SyntaxError, MemoryError, RecursionError and others.
    except Exception as error:
        raise ValueError(f"no NPY header of an array of numbers: {one_line(error)}") from error
    if dtype.kind not in "fiu" or dtype.names is not None:
        raise ValueError(f"no NPY header of an array of numbers, but of {str(dtype)[:60]}")
    body = data[stream.tell() :]
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"it ends early, or late: it has {len(body)} bytes for {str(shape)[:60]} {dtype}")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if by_column else "C")


def npy_points(data: bytes) -> NDArray[np.float64]:
    """Return the points (P, 3) of a whole file: the first three columns of its array.

    Raises:
        ValueError: as `parse_npy` and `refuse_transposed`, or an array of another shape.
    """
    table = parse_npy(data)
    if table.ndim != 2 or table.shape[1] < 3:
        raise ValueError(f"the array has shape {table.shape}; expected (points, 3), or more columns after x, y and z")
    refuse_transposed(*table.shape)
    return table[:, :3].astype(np.float64)


def refuse_transposed(points: int, columns: int) -> None:
    """Refuse a table that is probably stored as (3, points).

    Raises:
        ValueError: fewer rows than columns, and more columns than a point has attributes.
    """
    if columns > max(points, _MOST_OF_THREE if points == 3 else _MOST_COLUMNS):
        raise ValueError(f"it has {points} rows of {columns} columns; expected one row for each point: transpose it")
