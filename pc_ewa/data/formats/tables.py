"""Tables of points as text: XYZ, CSV and similar files."""

import csv
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.formats.npy import refuse_transposed
from pc_ewa.data.formats.text_files import shown
from pc_ewa.data.formats.words import as_text, number

_COMMENTS = (b"#", b"%", b"//")
_HEADER_LINES = 10  # before the first point
_FIRST = (0, 1, 2)  # columns

# The number of a line that is not empty, and the line.
Row = tuple[int, bytes]


def parse_table(data: bytes) -> NDArray[np.float64]:
    """Read rows of x, y, z and optional further columns, separated by commas, semicolons, tabs or spaces.

    A header line, or the last comment above the rows, names the columns x, y and z, in any order and any case. Without
    names, they are the first three columns.

    Raises:
        ValueError: incomplete rows, or a header that does not name exactly one x, y and z.
    """
    lines = [(i, row) for i, line in enumerate(as_text(data).splitlines(), 1) if (row := line.strip())]
    if not lines:
        return np.zeros((0, 3))
    rows = [(i, row) for i, row in lines if not row.startswith(_COMMENTS)]
    skipped = _header_length(rows)
    header, rows = rows[:skipped], rows[skipped:]
    if not rows:
        first = shown(lines[0][1][:60].decode("utf-8", "replace"))
        raise ValueError(f"it has no points: no line has three numbers, and the first is {first}")
    # The semicolon first: files with semicolons may use a decimal comma, which is then refused as not a number.
    separator = next((s for s in (b";", b",") if s in rows[0][1]), None)
    width = len(_cells(rows[0], separator))
    comments = [row for i, row in lines if i < rows[0][0] and row.startswith(_COMMENTS)]
    columns = _columns_of([row for _, row in header], comments, separator, width)
    points = np.array(list(_points(rows, separator, width, columns or _FIRST)))
    if columns is None:
        refuse_transposed(len(rows), width)
    if header and header[0][1].isdigit() and int(header[0][1]) != len(rows):
        raise ValueError(f"its first line claims {int(header[0][1])} points, but it has {len(rows)}")
    return points


def _points(
    rows: list[Row], separator: bytes | None, width: int, columns: tuple[int, int, int]
) -> Iterator[tuple[float, float, float]]:
    x, y, z = columns
    for row in rows:
        cells = _cells(row, separator)
        try:
            point = number(cells[x]), number(cells[y]), number(cells[z])
        except (ValueError, IndexError) as error:
            start = row[1][:40].decode("latin-1")
            place = "does not begin with x, y and z" if columns == _FIRST else "has no x, y and z in their columns"
            raise ValueError(f"line {row[0]} {place}, with decimal points: {start!r}") from error
        if len(cells) != width:
            raise ValueError(f"line {row[0]} has {len(cells)} columns, the first {width}")
        yield point


def _cells(row: Row, separator: bytes | None) -> list[bytes]:
    """Split a row into cells without their quotes. A separator inside quotes is text."""
    if b'"' not in row[1]:
        return row[1].split(separator)
    if row[1].count(b'"') % 2:
        raise ValueError(f"line {row[0]} has a quote that does not end in it")
    text, delimiter = (row[1], separator) if separator else (b" ".join(row[1].split()), b" ")
    cells = next(csv.reader([text.decode("latin-1")], delimiter=delimiter.decode(), skipinitialspace=True))
    return [cell.strip().encode("latin-1") for cell in cells]


def _header_length(rows: list[Row]) -> int:
    """Count the lines before the first point: names of columns, the number of points, a title."""
    for length, (_, row) in enumerate(rows[:_HEADER_LINES]):
        cells = re.split(rb"[;,\s]+", row)
        # Below a header with names, a row may begin with columns of text, so all of its cells are tried.
        named = length > 0 and _places(_names(rows[length - 1][1], None)) is not None
        if any(map(_is_number, cells if named else cells[:3])) and not (len(cells) == 1 and row.isdigit()):
            return length
    return min(len(rows), _HEADER_LINES)


def _is_number(cell: bytes) -> bool:
    try:
        number(cell.strip(b'"'))
    except ValueError:
        return False
    return True


def _columns_of(
    header: list[bytes], comments: list[bytes], separator: bytes | None, width: int
) -> tuple[int, int, int] | None:
    """Find the columns of x, y and z in the lines above the points. None means that no line names columns."""
    for line in reversed(header):
        names = _names(line, separator)
        places = _places(names)
        if places and len(names) != width and (places != _FIRST or len(names) == width - 1):
            raise ValueError(f"the header names {len(names)} columns, but the rows have {width}; name each, or none")
        if places:
            return places
        if len(names) == width and (width > 3 or _axes(names)):
            listed = shown(b" ".join(names).decode("utf-8", "replace"))
            raise ValueError(f"the header names the columns {listed}; name exactly one x, one y and one z")
    # A comment may contain any text, so only one with the right number of names counts, and none is an error.
    for line in reversed(comments):
        names = _names(line, separator)
        if len(names) == width and (places := _places(names)):
            return places
    return None


def _names(line: bytes, separator: bytes | None) -> list[bytes]:
    """Split a line into candidate names of columns."""
    line = re.sub(rb"^[#%/\s]+", b"", line)
    # Drop a caption, as in "columns: x y z".
    if line.count(b":") == 1 and len(line.split(b":")[1].split()) > 1:
        line = line.split(b":")[1].strip()
    cells = line.split(separator) if separator and separator in line else re.split(rb"[;,\s]+", line)
    return [name for cell in cells if (name := cell.strip(b"\"' \t").lower())]


def _places(names: list[bytes]) -> tuple[int, int, int] | None:
    """Find x, y and z: as whole names, or else as a word of a name, such as "pos_x", "X [m]" or "coord.x"."""
    for found in (names, _axes_of_names(names)):
        if [found.count(axis) for axis in (b"x", b"y", b"z")] == [1, 1, 1]:
            return found.index(b"x"), found.index(b"y"), found.index(b"z")
    return None


def _axes_of_names(names: list[bytes]) -> list[bytes]:
    words = [[w for w in re.split(rb"[^a-z0-9]+", name) if w in (b"x", b"y", b"z")] for name in names]
    return [w[0] if len(w) == 1 else b"" for w in words]


def _axes(names: list[bytes]) -> bool:
    return any(_axes_of_names(names))
