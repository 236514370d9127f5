"""Files with the points or the mesh of one shape, in the formats in which such files are exchanged.

Nothing but coordinates and faces is read: materials, textures and other files that a file names are left alone, and
nothing in it is run. Memory is bounded by the size of the file, whatever its header claims. A file that
ends early or makes no sense is refused, never read in part; only XYZ and OBJ do not tell how long they should be.

That is why these readers are ours. Of files cut short, trimesh 5.2.0 accepts OFF (49 of 180 faces) and STL (an empty
mesh), open3d 0.20 all kinds (and reads ModelNet's `OFF100 180 0` as no points), meshio 5.3.5 drops bad faces of OBJ and
exits the program on ModelNet's OFF, pypcd4 1.5.1 accepts PCD (139 of 200 points): all without a word.

Sources: OBJ, Wavefront's Advanced Visualizer manual, appendix B; STL, 3D Systems' StereoLithography Interface
Specification; OFF, Geomview's manual; NPY, NEP 1; PLY and PCD as in their modules.
"""

import io
import math
import re
import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.formats.pcd import parse_pcd
from pc_ewa.data.formats.ply import Lists, numbers, parse_ply
from pc_ewa.data.formats.text_files import one_line
from pc_ewa.errors import DataError

_COMMENTS = (b"#", b"%", b"//")
_HEADER_LINES = 10  # of a text file, before the first point
_TRIANGLE = np.dtype([("normal", "<f4", 3), ("vertices", "<f4", (3, 3)), ("attribute", "<u2")])  # of binary STL


class Shape(NamedTuple):
    """Vertices (V, 3), and triangles (F, 3) of positions in them; None for a point cloud. Both are sound."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64] | None = None


def read_shape(path: Path) -> Shape:
    """Read a file; the ending of its name, one of EXTENSIONS, tells the format.

    Raises:
        DataError: missing, damaged, without points, or NaN or infinity among the coordinates.
    """
    kind = path.suffix.lower()
    try:
        with np.errstate(all="ignore"):
            shape = _checked(_PARSERS[kind](path.read_bytes()))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give access to it, or remove it") from error
    except MemoryError as error:
        raise DataError(f"cannot read {path}: it is too large for the memory; thin it out") from error
    except (ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]  # it may quote a word, of any length
        raise DataError(f"cannot read {path} as {kind[1:]}: {reason}; repair, replace or remove it") from error
    return shape


def _checked(shape: Shape) -> Shape:
    """Refuse what nothing can be made of; a mesh without faces is a point cloud."""
    vertices, faces = shape
    if not len(vertices):
        raise ValueError("it has no points")
    if not np.isfinite(vertices).all():
        raise ValueError(f"{vertices[~np.isfinite(vertices)][0]} among the coordinates")
    if faces is None or not len(faces):
        return Shape(vertices)
    if faces.min() < 0 or faces.max() >= len(vertices):
        bad = faces.min() if faces.min() < 0 else faces.max()
        raise ValueError(f"a face has vertex {bad}, counted from 0, but there are {len(vertices)}")
    return shape


def _triangles(polygons: Lists) -> NDArray[np.int64]:
    """Cut polygons into fans of triangles (F, 3)."""
    lengths, corners = polygons.lengths, polygons.values.astype(np.int64)
    number = np.maximum(lengths - 2, 0)
    first = np.repeat(np.cumsum(lengths) - lengths, number)
    step = np.arange(len(first)) - np.repeat(np.cumsum(number) - number, number)
    return np.stack([corners[first], corners[first + step + 1], corners[first + step + 2]], axis=-1)


def _ply(data: bytes) -> Shape:
    vertices, polygons = parse_ply(data)
    return Shape(vertices, None if polygons is None else _triangles(polygons))


def _pcd(data: bytes) -> Shape:
    return Shape(parse_pcd(data))


def parse_npy(data: bytes) -> NDArray[Any]:
    """View a whole NPY file as the array of numbers that it holds; nothing is unpickled.

    `numpy.load` would do, but for two files ("huge header" and "trailing" in test_shapenet55.py): it asks for the 2 GB
    that a header claims to have, and leaves unread what follows the array. Its parser of headers, `ast.literal_eval` of
    at most 10,000 characters, is the one used here.

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


def _npy(data: bytes) -> Shape:
    table = parse_npy(data)
    if table.ndim != 2 or table.shape[1] < 3:
        raise ValueError(f"the array has shape {table.shape}; expected (points, 3), or more columns after x, y and z")
    return Shape(table[:, :3].astype(np.float64))


def _text(data: bytes) -> Shape:
    """Rows of x, y, z and what may follow, between commas, semicolons, tabs or spaces."""
    lines = data.removeprefix(b"\xef\xbb\xbf").splitlines()
    rows = [(i, row) for i, line in enumerate(lines, 1) if (row := line.strip()) and not row.startswith(_COMMENTS)]
    skipped = 0
    while skipped < min(len(rows), _HEADER_LINES) and _is_header(rows[skipped][1]):
        skipped += 1
    header, rows = rows[:skipped], rows[skipped:]
    if not rows:
        return Shape(np.zeros((0, 3)))
    separator = next((s for s in (b";", b",") if s in rows[0][1]), None)
    width = len(rows[0][1].split(separator))
    table = []
    for i, row in rows:
        cells = row.split(separator)
        try:
            table.append((float(cells[0]), float(cells[1]), float(cells[2])))
        except (ValueError, IndexError) as error:
            start = row[:40].decode("latin-1")
            raise ValueError(f"line {i} does not begin with x, y and z, with decimal points: {start!r}") from error
        if len(cells) != width:
            raise ValueError(f"line {i} has {len(cells)} columns, the first {width}")
    if header and header[0][1].isdigit() and int(header[0][1]) != len(rows):
        raise ValueError(f"its first line claims {int(header[0][1])} points, but it has {len(rows)}")
    return Shape(np.array(table))


def _is_header(row: bytes) -> bool:
    """Tell names of columns, or the number of points, from coordinates."""
    cells = re.split(rb"[;,\s]+", row)[:3]
    return not any(map(_is_number, cells)) or (len(cells) == 1 and row.isdigit())


def _is_number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _off(data: bytes) -> Shape:
    lines = [row for line in data.splitlines() if (row := line.split(b"#")[0].split())]
    match = re.fullmatch(rb"(?:ST)?C?N?OFF(\d*)", lines[0][0] if lines else b"")
    if match is None or lines[0][1:2] == [b"BINARY"]:
        raise ValueError("its first line is not OFF, the only form that is read")
    # Thousands of ModelNet's files have the counts right behind the keyword.
    lines[0] = [match[1]] * bool(match[1]) + lines[0][1:]
    if not lines[0]:
        del lines[0]
    counts = [int(count) for count in lines[0][:2]] if lines and len(lines[0]) > 1 else [-1]
    if min(counts) < 0 or sum(counts) > len(lines) - 1:
        raise ValueError("it ends early, or has no numbers of vertices and faces")
    vertices, faces = lines[1 : 1 + counts[0]], lines[1 + counts[0] : 1 + sum(counts)]
    if any(len(row) < 3 for row in vertices) or any(not 0 <= int(row[0]) < len(row) for row in faces):
        raise ValueError("it ends early: a vertex or a face is not whole")
    polygons = [list(map(int, row[1 : 1 + int(row[0])])) for row in faces]
    return Shape(_rows([row[:3] for row in vertices]), _fans(polygons))


def _obj(data: bytes) -> Shape:
    vertices: list[list[bytes]] = []
    faces: list[list[int]] = []
    for line in data.replace(b"\\\r\n", b" ").replace(b"\\\n", b" ").splitlines():
        words = line.split(b"#")[0].split()
        if words[:1] == [b"v"]:
            if len(words) < 4:
                raise ValueError(f"a vertex has {len(words) - 1} coordinates")
            vertices.append(words[1:4])
        elif words[:1] == [b"f"]:
            corners = [int(word.split(b"/")[0]) for word in words[1:]]
            if 0 in corners:
                raise ValueError("a face has vertex 0, but OBJ counts from 1")
            faces.append([c - 1 if c > 0 else len(vertices) + c for c in corners])
    return Shape(_rows(vertices), _fans(faces))


def _rows(rows: list[list[bytes]]) -> NDArray[np.float64]:
    return numbers(list(chain.from_iterable(rows))).reshape(-1, 3)


def _fans(polygons: list[list[int]]) -> NDArray[np.int64]:
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    return _triangles(Lists(lengths, np.fromiter(chain.from_iterable(polygons), np.int64, lengths.sum())))


def _stl(data: bytes) -> Shape:
    count = int.from_bytes(data[80:84], "little")
    if data[:5].lower() == b"solid" and b"facet" in data[:4096].lower() and len(data) != 84 + 50 * count:
        words = data.lower().split()
        starts = [i + 1 for i, word in enumerate(words) if word == b"vertex"]
        vertices = numbers([word for i in starts for word in words[i : i + 3]])
        if b"endsolid" not in words or len(vertices) != 9 * words.count(b"endfacet"):
            raise ValueError("it ends early, or its facets are not triangles")
    else:
        if len(data) < 84 or len(data) < 84 + 50 * count:
            raise ValueError("it ends early, or is no STL")
        vertices = np.frombuffer(data, _TRIANGLE, count, 84)["vertices"].astype(np.float64)
    return Shape(vertices.reshape(-1, 3), np.arange(vertices.size // 3).reshape(-1, 3))


_PARSERS: dict[str, Callable[[bytes], Shape]] = {
    ".ply": _ply,
    ".pcd": _pcd,
    ".xyz": _text,
    ".txt": _text,
    ".npy": _npy,
    ".off": _off,
    ".obj": _obj,
    ".stl": _stl,
}
EXTENSIONS = tuple(_PARSERS)
