"""PLY files: a header that declares records, then the records as text or as bytes.

Source: G. Turk, The PLY Polygon File Format (1994), and the names of types that later programs use. Memory is bounded
by the size of the file, whatever the header claims.

plyfile 1.1.5 is not used. On the files of tests/data/formats/test_readers.py it fails on a comment with a letter beyond
ASCII, accepts a binary list of -3 entries, takes 3.6 GB for a header that claims 300 million vertices
(`test_claims_take_no_memory`), and needs 2.2 s where this module needs 9 ms (200,000 triangles). It is under the GPL.
trimesh 5.2, open3d 0.20 and meshio 5.3.5 silently accept truncated files.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.formats.polygons import Lists
from pc_ewa.data.formats.words import as_text, is_marked, numbers

MAX_HEADER = 1 << 16
_HEADER = re.compile(rb"ply[ \t]*\r?\n(.*?)(?<=\n)end_header[ \t]*\r?\n", re.DOTALL)
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4"},
    **{"uint32": "u4", "int64": "i8", "uint64": "u8", "float32": "f4", "float64": "f8"},
}
_INDICES = ("vertex_indices", "vertex_index")  # lists of the corners of a face
_ORDER = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}


class Property(NamedTuple):
    """A column of an element: its type and, for a list, `ahead`, the type of the length in front of its values."""

    name: str
    dtype: str
    ahead: str | None = None


class Element(NamedTuple):
    """A kind of record, and the number of its records."""

    name: str
    number: int
    properties: list[Property]


def parse_ply(data: bytes) -> tuple[NDArray[np.float64], Lists | None]:
    """Return the vertices (V, 3) and the polygons of vertex indices of a whole file. None means no polygons.

    Raises:
        ValueError: damaged, or without vertices; the message names the defect.
    """
    marked = is_marked(data)
    if marked:
        data = as_text(data)
    match = _HEADER.match(data[:MAX_HEADER])
    if match is None:
        raise ValueError("no PLY header, from the line ply to the line end_header")
    ascii_text, elements = _header(match[1])
    # A slice of a memoryview does not copy, unlike a slice of bytes.
    body = memoryview(data)[match.end() :]
    # Convert text to binary records in which every value is a float64, so that one path reads both.
    if ascii_text:
        body = memoryview(numbers(bytes(body).split()).tobytes())
        elements = [
            element._replace(properties=[Property(p.name, "<f8", p.ahead and "<f8") for p in element.properties])
            for element in elements
        ]
    elif marked:
        raise ValueError("a byte order mark in front of binary data: an editor has changed it")
    start, polygons = 0, list[Lists]()
    vertices: NDArray[np.float64] | None = None
    for element in elements:
        start, columns = _read_element(body, start, element)
        if element.name == "vertex":
            xyz = [column for axis in "xyz" if isinstance(column := columns.get(axis), np.ndarray)]
            if len(xyz) == 3:
                vertices = np.empty((element.number, 3))
                for axis, column in enumerate(xyz):
                    vertices[:, axis] = column
        elif (found := _polygons(element, columns)) is not None:
            polygons.append(found)
    if vertices is None:
        raise ValueError("no element vertex with the properties x, y and z")
    return vertices, _joined(polygons)


def _polygons(element: Element, columns: dict[str, NDArray[Any] | Lists]) -> Lists | None:
    """Return the polygons of an element. None means that the element has none.

    Raises:
        ValueError: the element has faces in an unsupported form, which would be lost.
    """
    lists = {name: column for name, column in columns.items() if isinstance(column, Lists)}
    known = [lists[name] for name in _INDICES if name in lists]
    if element.name == "face" and element.number and len(known) != 1:
        raise ValueError(f"element face has the lists {_shown(lists)}; expected one of {' and '.join(_INDICES)}")
    if element.name in ("tristrips", "tristrip") and element.number and len(known) != 1:
        raise ValueError(f"element {element.name} has the lists {_shown(lists)}; expected {_INDICES[0]}")
    if element.name == "face":
        return known[0] if known else None
    if element.name in ("tristrips", "tristrip"):
        return _strips(known[0]) if known else None
    # Records of range images list one vertex or none, and edges two: only longer lists can be faces.
    doubtful = list(lists.values()) if re.search("face|poly|tri|quad|strip", element.name.lower()) else known
    if any((column.lengths > 2).any() for column in doubtful):
        raise ValueError(f"element {element.name[:40]} seems to have faces; read are those of face and tristrips")
    return None


def _shown(names: Iterable[str]) -> str:
    return ", ".join(name[:40] for name in names)[:100] or "none"


def _strips(strips: Lists) -> Lists:
    """Split triangle strips into triangles. -1 among the corners begins a new strip."""
    values = strips.values
    last = np.zeros(len(values), bool)  # True at the last corner of each list
    last[(np.cumsum(strips.lengths) - 1)[strips.lengths > 0]] = True
    begins = np.concatenate([[True], (last | (values == -1))[:-1]])[: len(values)]
    begin = np.maximum.accumulate(np.where(begins, np.arange(len(values)), 0))
    # Every corner from the third of its strip on closes a triangle. Every second triangle has its first two corners
    # exchanged, because the strip alternates their orientation.
    third = np.flatnonzero((np.arange(len(values)) - begin >= 2) & (values != -1))
    turned = (third - begin[third]) % 2
    corners = np.stack([third - 2 + turned, third - 1 - turned, third], axis=-1)
    return Lists(np.full(len(third), 3), values[corners].reshape(-1))


def _joined(polygons: list[Lists]) -> Lists | None:
    if not polygons:
        return None
    if any((found.values != found.values.astype(np.int64)).any() for found in polygons):
        raise ValueError("a face has a vertex that is not a whole number")
    return Lists(
        np.concatenate([found.lengths for found in polygons]),
        np.concatenate([found.values for found in polygons]).astype(np.int64),
    )


def _header(text: bytes) -> tuple[bool, list[Element]]:
    """Return True if the records are text, and the declared elements."""
    form, elements = "", list[Element]()
    for line in text.splitlines():
        match line.decode("latin-1").split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", form, _]:
                if form not in _ORDER:
                    raise ValueError(f"unknown format {form[:40]!r}")
            case ["element", name, number] if number.isdecimal():
                elements.append(Element(name, int(number), []))
            case ["property", "list", count, kind, name] if elements and form:
                elements[-1].properties.append(Property(name, _type(form, kind), _type(form, count)))
            case ["property", kind, name] if elements and form:
                elements[-1].properties.append(Property(name, _type(form, kind)))
            case _:
                raise ValueError(f"the header has a line {line[:60].decode('latin-1')!r} that means nothing")
    if not form:
        raise ValueError("the header has no format")
    for names in ([e.name for e in elements], *([p.name for p in e.properties] for e in elements)):
        if len(set(names)) < len(names):
            raise ValueError(f"the header has {_shown(n for n in names if names.count(n) > 1)} more than once")
    return form == "ascii", elements


def _type(form: str, kind: str) -> str:
    if kind not in _TYPES:
        raise ValueError(f"unknown type {kind[:40]!r} in the header")
    return _ORDER[form] + _TYPES[kind]


def _read_element(body: memoryview, start: int, element: Element) -> tuple[int, dict[str, NDArray[Any] | Lists]]:
    """Return the offset behind the records of an element, and its columns by name."""
    properties, number = element.properties, element.number
    if not properties or not number:
        return start, {
            p.name: Lists(np.zeros(0, np.int64), np.zeros(0)) if p.ahead else np.zeros(0) for p in properties
        }
    least = sum(np.dtype(p.ahead or p.dtype).itemsize for p in properties)
    if start + number * least > len(body):
        raise ValueError(
            f"it ends early: {number} of element {element.name[:40]} do not fit into what follows the header"
        )
    # Almost every file has lists of one length only (triangles). Then all records have the size of the first one, and
    # one structured array reads them; the check below confirms it. Otherwise they are read one by one.
    lengths = _first_lengths(body, start, properties)
    fields = [
        field
        for p, length in zip(properties, lengths, strict=True)
        for field in ([(f"{p.name} ", p.ahead)] if p.ahead else []) + [(p.name, p.dtype, (length,) if p.ahead else ())]
    ]
    if start + number * (least + _list_bytes(properties, lengths)) <= len(body):
        rows = np.frombuffer(body, np.dtype(fields), number, start)
        if all((rows[f"{p.name} "] == n).all() for p, n in zip(properties, lengths, strict=True) if p.ahead):
            return start + rows.nbytes, {
                p.name: Lists(np.full(number, n), rows[p.name].reshape(-1)) if p.ahead else rows[p.name]
                for p, n in zip(properties, lengths, strict=True)
            }
    return _read_rows(body, start, element)


def _first_lengths(body: memoryview, start: int, properties: list[Property]) -> list[int]:
    """Return the lengths of the lists of the first record, with 0 for a property that is not a list."""
    lengths = []
    for p in properties:
        if p.ahead:
            length = _list_length(body, start, p.ahead)
            start += np.dtype(p.ahead).itemsize + length * np.dtype(p.dtype).itemsize
        else:
            length, start = 0, start + np.dtype(p.dtype).itemsize
        lengths.append(length)
    return lengths


def _list_bytes(properties: list[Property], lengths: list[int]) -> int:
    return sum(np.dtype(p.dtype).itemsize * n for p, n in zip(properties, lengths, strict=True))


def _list_length(body: memoryview, start: int, dtype: str) -> int:
    size = np.dtype(dtype).itemsize
    if start + size > len(body):
        raise ValueError("it ends early, before a list")
    # The length is signed or even a float in some files, so it may be negative, NaN or fractional.
    value = float(np.frombuffer(body, dtype, 1, start)[0])
    if not 0 <= value <= len(body) or value != int(value):
        raise ValueError(f"a list of {value:g} entries does not fit into the file")
    return int(value)


def _read_rows(body: memoryview, start: int, element: Element) -> tuple[int, dict[str, NDArray[Any] | Lists]]:
    """Read records whose lists differ in length, one by one."""
    # (name, size of a value, size of the length in front, type of that length)
    plan = [
        (p.name, np.dtype(p.dtype).itemsize, np.dtype(p.ahead).itemsize if p.ahead else 0, p.ahead)
        for p in element.properties
    ]
    chunks: dict[str, list[memoryview]] = {p.name: [] for p in element.properties}
    lengths: dict[str, list[int]] = {p.name: [] for p in element.properties}
    for _ in range(element.number):
        for name, size, ahead, count in plan:
            length = _list_length(body, start, count) if count else 1
            end = start + ahead + length * size
            if end > len(body):
                raise ValueError(f"it ends early, in element {element.name[:40]}")
            chunks[name].append(body[start + ahead : end])
            lengths[name].append(length)
            start = end
    columns: dict[str, NDArray[Any] | Lists] = {}
    for p in element.properties:
        values = np.frombuffer(b"".join(chunks[p.name]), p.dtype)
        columns[p.name] = Lists(np.array(lengths[p.name], np.int64), values) if p.ahead else values
    return start, columns
