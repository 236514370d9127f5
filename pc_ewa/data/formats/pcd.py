"""PCD files: a header that declares fields, then points as text, as bytes, or compressed.

Sources: the description of PCD 0.7 by the Point Cloud Library, and that of the compression by LibLZF. Memory is
bounded by the size of the file, whatever the header claims.
"""

import re
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.formats.ply import MAX_HEADER
from pc_ewa.data.formats.words import as_text, is_marked, numbers

_HEADER = re.compile(rb"((?:[^\n]*\n)*?)DATA[ \t]+(\w+)[ \t]*\r?\n")
_KEYS = ("VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS")


class Header(NamedTuple):
    """A header: the number of points, and the name, type and count of each field."""

    number: int
    names: list[str]
    kinds: list[str]
    counts: list[int]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each field."""
        return [np.dtype(kind).itemsize * count for kind, count in zip(self.kinds, self.counts, strict=True)]


def parse_pcd(data: bytes) -> NDArray[np.float64]:
    """Return the points (P, 3) of a whole file. Points without a measurement, NaN in x, y and z, are dropped.

    Raises:
        ValueError: damaged; the message names the defect.
    """
    marked = is_marked(data)
    if marked:
        data = as_text(data)
    match = _HEADER.match(data[:MAX_HEADER])
    if match is None:
        raise ValueError("no PCD header that ends with a line DATA")
    header, storage, body = _header(match[1]), match[2].decode().lower(), data[match.end() :]
    if storage not in ("ascii", "binary", "binary_compressed"):
        raise ValueError(f"DATA is {storage[:40]!r}; expected ascii, binary or binary_compressed")
    if marked and storage != "ascii":
        raise ValueError("a byte order mark in front of binary data: an editor has changed it")
    # Convert text to binary records in which every value is a float64, so that one path reads both.
    if storage == "ascii":
        body, header = numbers(body.split()).tobytes(), header._replace(kinds=["<f8"] * len(header.kinds))
    total = header.number * sum(header.sizes)
    if storage == "binary_compressed":
        body = _unpacked(body, total)
    if len(body) < total or (storage == "ascii" and len(body) != total):
        raise ValueError(f"it does not hold the {header.number} points that it claims")
    columns = _columns(np.frombuffer(body, np.uint8, total), header, by_field=storage == "binary_compressed")
    points = np.stack([columns[header.names.index(axis)] for axis in "xyz"], axis=-1).astype(np.float64)
    return points[~np.isnan(points).all(axis=1)]


def _header(text: bytes) -> Header:
    entries: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, *values = line.split(b"#")[0].decode("latin-1").split() or [""]
        if key and key not in _KEYS:
            raise ValueError(f"the header has a line {line[:60].decode('latin-1')!r} that means nothing")
        entries[key] = values
    names, sizes, kinds = (entries.get(key, []) for key in ("FIELDS", "SIZE", "TYPE"))
    counts = entries.get("COUNT", ["1"] * len(names))
    if [names.count(axis) for axis in "xyz"] != [1, 1, 1] or not len(names) == len(sizes) == len(kinds) == len(counts):
        raise ValueError(f"FIELDS are {' '.join(names)[:60]!r}; expected x, y and z, and a SIZE and TYPE for each")
    types = [f"<{kind.lower()}{size}" for kind, size in zip(kinds, sizes, strict=True)]
    bad = [kind for kind in types if not re.fullmatch("<([iu][1248]|f[248])", kind)]
    if bad or any(not count.isdecimal() for count in counts) or any(counts[names.index(a)] != "1" for a in "xyz"):
        raise ValueError("SIZE, TYPE or COUNT of a field makes no sense")
    claims = [entries.get(key, []) for key in ("POINTS", "WIDTH", "HEIGHT")]
    points, width, height = (int(c[0]) if len(c) == 1 and c[0].isdecimal() else None for c in claims)
    if points is None and width is not None and height is not None:
        points = width * height
    if points is None or points == 0:
        raise ValueError(
            "the header claims no points" if points == 0 else "the header has neither POINTS nor WIDTH and HEIGHT"
        )
    return Header(points, names, types, [int(count) for count in counts])


def _columns(data: NDArray[np.uint8], header: Header, *, by_field: bool) -> list[NDArray[Any]]:
    """Split bytes into one column per field. The bytes are stored point by point, or `by_field` field by field."""
    columns, begin, width = [], 0, sum(header.sizes)
    rows = data.reshape(header.number, width)
    for size, kind in zip(header.sizes, header.kinds, strict=True):
        end = begin + size
        if by_field:
            column = data[header.number * begin : header.number * end]
        else:
            # `view` changes the type of contiguous bytes only.
            column = np.ascontiguousarray(rows[:, begin:end]).reshape(-1)
        columns.append(column.view(kind))
        begin = end
    return columns


def _unpacked(body: bytes, total: int) -> bytes:
    packed, unpacked = struct.unpack_from("<II", body) if len(body) >= 8 else (1, 0)
    if unpacked != total or len(body) < 8 + packed:
        raise ValueError("it ends early, or its size is not what the header claims")
    return unpack_lzf(body[8 : 8 + packed], unpacked)


def unpack_lzf(data: bytes, size: int) -> bytes:
    """Decompress data of LibLZF.

    Raises:
        ValueError: damaged, or the result does not have `size` bytes.
    """
    # `<= size` stops at the first excess: a back reference of three bytes can produce 264.
    out, i = bytearray(), 0
    damaged = "its compressed data are damaged"
    while i < len(data) and len(out) <= size:
        control = data[i]
        i += 1
        # A literal run of control + 1 bytes.
        if control < 32:
            out += data[i : i + control + 1]
            i += control + 1
            continue
        # A back reference: length in 3 bits, continued in the next byte if all are set, then distance in 13 bits.
        length, more = (control >> 5) + 2, control >> 5 == 7
        if i + more >= len(data):
            raise ValueError(damaged)
        length += data[i] if more else 0
        begin = len(out) - ((control & 31) << 8) - data[i + more] - 1
        i += 1 + more
        if begin < 0:
            raise ValueError(damaged)
        # A reference may overlap its own output, which then repeats with the period of the slice.
        piece = out[begin : begin + length]
        out += (piece * (length // len(piece) + 1))[:length]
    if len(out) != size or i != len(data):
        raise ValueError(damaged)
    return bytes(out)
