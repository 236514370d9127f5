"""Convert a source of any format to one file in our layout, in one pass over its files and with bounded memory."""

import tempfile
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
        skip_defects: skip a shape that cannot be read, instead of raising.

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
    """Convert a source. If `skipped` is a list, defective shapes are appended to it instead of raising."""
    kept: list[Item] = []
    parts: list[NDArray[np.uint8]] = []
    largest, count = 0.0, num_points or source.num_points
    with new_file(path) as file, tempfile.TemporaryFile(dir=path.parent) as spool:
        # The scale of int16 depends on the largest coordinate of all shapes. Shapes are therefore spooled to a
        # temporary file in float32; reading the sources twice would take longer, and memory may not hold them.
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
            kept.append(item)
            if sample.parts is not None:
                parts.append(sample.parts)
        if not kept or count is None:
            raise DataError(f"{source.name}: no shape could be read")
        write_attributes(file, source.class_names, source.split_names, source.up_axis, source.licence)
        _store(file, spool, (len(kept), count, 3), dtype, largest)
        splits = np.array([source.split_names.index(item.split) for item in kept], np.uint8)
        write_columns(file, np.array([item.label for item in kept]), splits, [item.name for item in kept])
        if parts:
            file["part"] = np.stack(parts)
        if source.part_names:
            file.attrs["part_names"] = list(source.part_names)
    return Converted(len(kept), skipped or [])


def _store(file: h5py.File, spool: IO[bytes], shape: tuple[int, int, int], dtype: str, largest: float) -> None:
    """Copy the points from the spool to the file, _CHUNK clouds at a time."""
    # Without chunks and compression HDF5 stores the array contiguously, which is what makes it mappable.
    data = file.create_dataset("data", shape, dtype)
    scale = 32767 / (largest or 1.0)
    if dtype == "int16":
        data.attrs["scale"] = scale
    spool.seek(0)
    for begin in range(0, shape[0], _CHUNK):
        some = min(_CHUNK, shape[0] - begin)
        points: NDArray[Any] = np.frombuffer(spool.read(some * shape[1] * 12), np.float32).reshape(some, *shape[1:])
        if dtype == "int16":
            # In float64, because a product in float32 would be rounded once more before `rint`.
            points = np.rint(points.astype(np.float64) * scale)
        # `new_file` reads the file back and refuses the infinity that an overflow of float16 gives.
        with np.errstate(over="ignore"):
            data[begin : begin + some] = points.astype(dtype)
