"""NPY files, and the shape of the array of a cloud."""

import io
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.formats.text_files import one_line

_MOST_COLUMNS = 16  # of a cloud with fewer points than columns: x y z, a normal, colours, and what a LAS point has
_MOST_OF_THREE = 7  # of three points: with a normal or colours


def parse_npy(data: bytes) -> NDArray[Any]:
    """View a whole NPY file as the array of numbers that it holds; nothing is unpickled.

    `numpy.load` would do, but for two files ("huge header" and "trailing" in test_shapenet55.py): it asks for the 2 GB
    that a header claims to have, and leaves unread what follows the array. Its parser of headers, `ast.literal_eval` of
    at most 10,000 characters, is the one used here. Source: NEP 1.

    Raises:
        ValueError: damaged, cut short, or not an array of numbers.
    """
    stream, parse = io.BytesIO(data), np.lib.format
    headers = {(1, 0): parse.read_array_header_1_0, (2, 0): parse.read_array_header_2_0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's parser about a damaged header, of NumPy about an old one
            shape, by_column, dtype = headers[parse.read_magic(stream)](stream)
    except Exception as error:  # parsing a damaged Python literal raises almost anything
        raise ValueError(f"no NPY header of an array of numbers: {one_line(error)}") from error
    if dtype.kind not in "fiu" or dtype.names is not None:
        raise ValueError(f"no NPY header of an array of numbers, but of {str(dtype)[:60]}")
    body = data[stream.tell() :]
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"it ends early, or late: it has {len(body)} bytes for {str(shape)[:60]} {dtype}")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if by_column else "C")


def npy_points(data: bytes) -> NDArray[np.float64]:
    """Read the points (P, 3) of a whole file: the first three columns of its array.

    Raises:
        ValueError: as `parse_npy` and `refuse_transposed`, or an array of another shape.
    """
    table = parse_npy(data)
    if table.ndim != 2 or table.shape[1] < 3:
        raise ValueError(f"the array has shape {table.shape}; expected (points, 3), or more columns after x, y and z")
    refuse_transposed(*table.shape)
    return table[:, :3].astype(np.float64)


def refuse_transposed(points: int, columns: int) -> None:
    """Refuse a table that seems to be stored as (3, points).

    Raises:
        ValueError: fewer rows than columns, and more columns than a point has attributes.
    """
    if columns > max(points, _MOST_OF_THREE if points == 3 else _MOST_COLUMNS):
        raise ValueError(f"it has {points} rows of {columns} columns; expected one row for each point: transpose it")
