"""Readers of OFF and OBJ, which are text, and of STL, which is text or binary.

Sources: OFF, Geomview's manual; OBJ, Wavefront's Advanced Visualizer manual, appendix B; STL, 3D Systems'
StereoLithography Interface Specification.
"""

import re
from collections.abc import Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.formats.polygons import Lists
from pc_ewa.data.formats.words import as_text, is_marked, numbers, without_comment

Mesh = tuple[NDArray[np.float64], Lists]
_TRIANGLE = np.dtype([("normal", "<f4", 3), ("vertices", "<f4", (3, 3)), ("attribute", "<u2")])  # of binary STL
_FACET = b"facet normal . . . outer loop vertex . . . vertex . . . vertex . . . endloop endfacet".split()
# A statement of OBJ, its words separated by single blanks.
_ELEMENT = re.compile(rb"(v|vt|vn)( -?[\d.][^ ]*){2,}|f( -?\d[^ ]*){3,}")


def parse_off(data: bytes) -> Mesh:
    """Return the vertices (V, 3) and the polygons of vertex indices of a whole OFF file.

    Raises:
        ValueError: damaged, truncated, or binary.
    """
    lines = [row for line in as_text(data).splitlines() if (row := without_comment(line).split())]
    match = re.fullmatch(rb"(?:ST)?C?N?OFF(\d*)", lines[0][0] if lines else b"")
    if match is None or lines[0][1:2] == [b"BINARY"]:
        raise ValueError("its first line is not OFF, the only form that is read")
    # Thousands of ModelNet's files have no line break between the keyword and the counts: "OFF490 518 0".
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
    return _rows([row[:3] for row in vertices]), _lists(polygons)


def parse_obj(data: bytes) -> Mesh:
    """Return the vertices (V, 3) and the polygons of vertex indices of a whole OBJ file.

    Raises:
        ValueError: damaged.
    """
    vertices: list[list[bytes]] = []
    faces: list[list[int]] = []
    for words in _statements(as_text(data).splitlines()):
        if words[0] == b"v":
            if len(words) < 4:
                raise ValueError(f"a vertex has {len(words) - 1} coordinates")
            vertices.append(words[1:4])
        elif words[0] in (b"f", b"fo"):
            corners = [int(word.split(b"/")[0]) for word in words[1:]]
            if 0 in corners:
                raise ValueError("a face has vertex 0, but OBJ counts from 1")
            # OBJ counts from 1. A negative index counts back from the last vertex so far.
            faces.append([c - 1 if c > 0 else len(vertices) + c for c in corners])
    return _rows(vertices), _lists(faces)


def _statements(lines: list[bytes]) -> Iterator[list[bytes]]:
    """Yield the words of each statement. Comments are dropped before lines that end in a backslash are joined."""
    begun: list[bytes] = []
    for line in lines:
        text = without_comment(line)
        words = text.removesuffix(b"\\").split()
        if begun and begun[0] not in (b"v", b"f") and _ELEMENT.fullmatch(b" ".join(words)):
            # By the format, the next line belongs to the name. But a name such as C:\models\ was not meant to
            # continue, and silently losing a vertex would shift all faces.
            raise ValueError(f"{words[0].decode()} stands behind a name that ends in a backslash: remove the backslash")
        begun += words
        if not text.endswith(b"\\"):
            if begun:
                yield begun
            begun = []
    if begun:
        yield begun


def _rows(rows: list[list[bytes]]) -> NDArray[np.float64]:
    return numbers(list(chain.from_iterable(rows))).reshape(-1, 3)


def _lists(polygons: list[list[int]]) -> Lists:
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    return Lists(lengths, np.fromiter(chain.from_iterable(polygons), np.int64, lengths.sum()))


def parse_stl(data: bytes) -> Mesh:
    """Return the vertices (3 F, 3) and the triangles of a whole STL file. Triangles do not share vertices.

    Raises:
        ValueError: damaged or truncated.
    """
    # The exact size decides first, because many programs begin the header of binary files with "solid" too.
    count = int.from_bytes(data[80:84], "little")
    if len(data) >= 84 and len(data) == 84 + 50 * count:
        text = None
    else:
        text = as_text(data).lstrip() if is_marked(data) else data.lstrip()
        if not (text[:5].lower() == b"solid" and b"facet" in text[:4096].lower()):
            text = None
    if text is not None:
        vertices = _facets(as_text(text))
    elif len(data) < 84 or len(data) < 84 + 50 * count or is_marked(data):
        raise ValueError("it ends early, or is not STL")
    else:
        vertices = np.frombuffer(data, _TRIANGLE, count, 84)["vertices"].astype(np.float64)
    number = vertices.size // 9
    return vertices.reshape(-1, 3), Lists(np.full(number, 3), np.arange(3 * number))


def _facets(text: bytes) -> NDArray[np.float64]:
    lines = text.splitlines()
    # A file in a single line: break it before each facet, so that the name of the solid is on a separate line.
    if len(lines) == 1:
        lines = re.sub(rb"(?i)\s(facet\s+normal|endsolid)\b", rb"\n\1", text).splitlines()
    firsts = [line[:20].lower().split()[:1] for line in lines]
    # The rest of a line "solid" or "endsolid" is a name, which may contain keywords and numbers.
    named = [first in ([b"solid"], [b"endsolid"]) for first in firsts]
    words = b" ".join(line for line, is_name in zip(lines, named, strict=True) if not is_name).split()
    if [b"endsolid"] not in firsts or len(words) % len(_FACET):
        raise ValueError("it ends early, or its facets are not triangles")
    for i, word in enumerate(_FACET):
        if word != b"." and any(other.lower() != word for other in words[i :: len(_FACET)]):
            raise ValueError(f"its facets are not triangles: {word.decode()} is not where it should be")
    places = [i + 1 for i, word in enumerate(_FACET) if word == b"vertex"]
    columns = [numbers(words[place + axis :: len(_FACET)]) for place in places for axis in range(3)]
    return np.stack(columns, axis=-1) if columns else np.zeros((0, 9))
