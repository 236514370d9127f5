"""Convert a source of any format to one file in our layout, in one pass over its files and with bounded memory."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.hdf5 import new_file, write_attributes, write_columns
from pc_ewa.data.source import Item, Source
from pc_ewa.errors import DataError
from pc_ewa.progress import progress

_CHUNK = 256  # clouds in memory at a time


class Converted(NamedTuple):
    """The result of a conversion: the number of shapes written, and the skipped shapes, each with the reason."""

    shapes: int
    skipped: list[tuple[str, str]]


def convert(
    source: Source,
    path: Path,
    *,
    num_points: int | None = None,
    dtype: Literal["int16", "float16", "float32"] = "int16",
    skip_defects: bool = False,
) -> Converted:
    """Write all shapes of a source to one file. The points are stored contiguously, so that loading maps them.

    Args:
        source: the shapes to read.
        path: the file to create or replace.
        num_points: number of points of each shape, see `Source.samples`. None keeps the numbers, which must be equal.
        dtype: stored type; int16 has steps of 1/32767 of the largest coordinate.
        skip_defects: skip a shape that cannot be read, instead of raising, and then a class without a training shape.

    Raises:
        DataError: a shape that cannot be read or does not fit, nothing left to write, or a folder that cannot be
            written.
    """
    skipped: list[tuple[str, str]] = []
    try:
        return _convert(source, path, num_points, dtype, skipped if skip_defects else None)
    except DataError as error:
        if not skipped:
            raise
        raise DataError(f"{error}; {len(skipped)} were left out, the first: {skipped[0][1]}") from error


def _convert(
    source: Source, path: Path, num_points: int | None, dtype: str, skipped: list[tuple[str, str]] | None
) -> Converted:
    """Convert a source. If `skipped` is a list, what is left out is appended to it instead of raising."""
    # The scale of int16 depends on the largest coordinate of all shapes. Shapes are therefore spooled to a temporary
    # file in float32; reading the sources twice would take longer, and memory may not hold them.
    with new_file(path) as file, tempfile.TemporaryFile(dir=path.parent) as spool:
        spooled = _spool(source, spool, num_points, skipped)
        labels = range(len(source.class_names)) if skipped is None else _trained(spooled.items, skipped)
        rows = [row for row, item in enumerate(spooled.items) if item.label in labels]
        kept = [spooled.items[row] for row in rows]
        if not kept:
            raise DataError(f"{source.name}: no shape could be read")
        class_names = [source.class_names[label] for label in labels]
        write_attributes(file, class_names, source.split_names, source.up_axis, source.licence)
        _store(file, spool, rows, spooled, dtype)
        splits = np.array([source.split_names.index(item.split) for item in kept], np.uint8)
        write_columns(file, np.array([labels.index(item.label) for item in kept]), splits, [item.name for item in kept])
        if spooled.parts:
            file["part"] = np.stack([spooled.parts[row] for row in rows])
        if source.part_names:
            file.attrs["part_names"] = list(source.part_names)
    return Converted(len(kept), skipped or [])


class _Spooled(NamedTuple):
    """The shapes in the spool: each item, its part labels if there are any, and what all have in common."""

    items: list[Item]
    parts: list[NDArray[np.uint8]]
    num_points: int
    largest: float


def _spool(source: Source, spool: IO[bytes], num_points: int | None, skipped: list[tuple[str, str]] | None) -> _Spooled:
    """Write the points of every shape to the spool, in float32. Defective shapes are appended to `skipped`."""
    items: list[Item] = []
    parts: list[NDArray[np.uint8]] = []
    largest, count = 0.0, num_points or source.num_points or 0
    for item in progress(source.items, f"converting {source.name}"):
        try:
            (sample,) = source.samples([item], num_points)
            count = count or len(sample.points)
            if len(sample.points) != count:
                raise DataError(f"{source.name}: {item.name} has {len(sample.points)} points, others {count}")
        except DataError as error:
            if skipped is None:
                raise
            skipped.append((item.name, str(error)))
            continue
        spool.write(sample.points.tobytes())
        largest = max(largest, float(np.abs(sample.points).max()))
        items.append(item)
        if sample.parts is not None:
            parts.append(sample.parts)
    return _Spooled(items, parts, count, largest)


def _trained(items: Sequence[Item], skipped: list[tuple[str, str]]) -> list[int]:
    """Return the labels with a training shape. Shapes of the other classes are appended to `skipped`."""
    # Without the class, all others can be trained on. With it, the file would be refused.
    labels = sorted({item.label for item in items if item.split == "train"})
    left = (item.name for item in items if item.label not in labels)
    skipped += ((name, "no training shape of its class can be read") for name in left)
    return labels


def _store(file: h5py.File, spool: IO[bytes], rows: Sequence[int], spooled: _Spooled, dtype: str) -> None:
    """Copy the points of some rows from the spool to the file, _CHUNK clouds at a time."""
    # Without chunks and compression HDF5 stores the array contiguously, which is what makes it mappable.
    data = file.create_dataset("data", (len(rows), spooled.num_points, 3), dtype)
    scale = 32767 / (spooled.largest or 1.0)
    if dtype == "int16":
        data.attrs["scale"] = scale
    size = spooled.num_points * 12
    for begin in range(0, len(rows), _CHUNK):
        some = rows[begin : begin + _CHUNK]
        points: NDArray[Any] = np.empty((len(some), spooled.num_points, 3), np.float32)
        for cloud, row in zip(points, some, strict=True):
            spool.seek(row * size)
            cloud[:] = np.frombuffer(spool.read(size), np.float32).reshape(-1, 3)
        if dtype == "int16":
            # In float64, because a product in float32 would be rounded once more before `rint`.
            points = np.rint(points.astype(np.float64) * scale)
        # `new_file` reads the file back and refuses the infinity that an overflow of float16 gives.
        with np.errstate(over="ignore"):
            data[begin : begin + len(some)] = points.astype(dtype)
