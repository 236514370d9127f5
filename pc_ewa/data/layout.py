"""Our HDF5 layout, and every check that training relies on.

Datasets:
    data: (N, P, 3) float32, float16, or int16 with the attribute `scale`: coordinates = data / scale.
    label: (N,) integers, positions in `class_names`.
    split: optional, (N,) integers, positions in `split_names`. Without it, all shapes belong to the first split.
    name: optional, (N,) strings.
    part: optional, (N, P) uint8, the part label of each point.

Attributes of the file: `class_names` and `split_names` (JSON lists; the latter defaults to ["train", "test"]),
`up_axis` and `licence`. Other content is ignored.

Contiguous points, neither chunked nor compressed, are memory-mapped and not read.
"""

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn, cast

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from pc_ewa.data.clouds import Clouds, MissingSplitError, UpAxis
from pc_ewa.data.contained import check_stored, names_of, own_attribute, own_dataset, read_rows
from pc_ewa.data.mapped import MappedFile
from pc_ewa.errors import DataError
from pc_ewa.text import printable

DEFAULT_SPLITS = ("train", "test")

_ARRAYS = ("data", "label", "split", "name", "part")
_CHUNK = 256  # clouds in memory at a time
# Names of shapes that are read at a time: each may be as long as the file.
_NAMES = 16
# Characters of all names together that are accepted in any file.
_ALL_NAMES = 1 << 24


class Layout:
    """An open file in our layout. Opening checks everything except the points; `clouds` checks those of its split.

    Args:
        file: the open file.
        path: the path to print in messages.

    Raises:
        DataError: contents that training cannot use; one line with the remedy.
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.file, self.path = file, path
        found = {key: own_dataset(file, key, path) for key in _ARRAYS}
        self.arrays = {key: array for key, array in found.items() if array is not None}
        for array in self.arrays.values():
            check_stored(array, path)
        missing = [key for key in ("data", "label") if key not in self.arrays]
        if missing:
            self.fail(f"there is no dataset {' and no '.join(missing)} (found: {names_of(file)})", "add it")
        self.count = self._checked_shape()[0]
        self.scale = self._checked_scale()
        self.class_names = self._name_list("class_names")
        self.split_names = self._name_list("split_names") if "split_names" in file.attrs else DEFAULT_SPLITS
        self.labels = self._positions("label", "class_names", self.class_names)
        self.splits = np.zeros(self.count, dtype=np.int64)
        if "split" in file:
            self.splits = self._positions("split", "split_names", self.split_names)
        self.shape_names = self._shape_names() if "name" in file else None
        # `in file`, not `in self.arrays`, which has no groups: a group of this name is an error, not absent.
        if "part" in file:
            self._check_parts()
        self.up_axis = self._checked_up_axis()

    def fail(self, defect: str, remedy: str) -> NoReturn:
        """Raise a DataError of one line: the file, the defect and the remedy."""
        raise DataError(f"{self.path}: {defect}; {remedy}")

    def used_splits(self) -> dict[str, int]:
        """Return the number of shapes in each split that is not empty."""
        counts = np.bincount(self.splits, minlength=len(self.split_names))
        return {name: int(count) for name, count in zip(self.split_names, counts, strict=True) if count}

    def clouds(self, split: str, name: str) -> Clouds:
        """Read the shapes of one split; "train" must have a shape of every class.

        Raises:
            MissingSplitError: no shapes in this split.
            DataError: an empty class, NaN or infinity.
        """
        rows = self._rows(split)
        keys = [key for key in ("data", "part") if key in self.arrays]
        file = None
        # `rows` is None for arrays that were read: they hold the shapes of this split alone.
        if all(self._in_one_piece(key) for key in keys):
            file = MappedFile(Path(self.file.filename), self.path)
            stored, positions = {key: self._map(file, key) for key in keys}, rows
        else:
            stored, positions = {key: read_rows(self.arrays[key], rows) for key in keys}, None
        self.check_finite(stored["data"], rows, positions)
        return Clouds(
            points=torch.from_numpy(stored["data"]),
            scale=self.scale,
            labels=torch.from_numpy(self.labels[rows]),
            class_names=self.class_names,
            up_axis=self.up_axis,
            name=name,
            shape_names=None if self.shape_names is None else tuple(self.shape_names[i] for i in rows),
            rows=None if positions is None else torch.from_numpy(positions),
            parts=torch.from_numpy(stored["part"]) if "part" in stored else None,
            file=file,
        )

    def check_finite(
        self, points: NDArray[Any], rows: NDArray[np.int64], positions: NDArray[np.int64] | None = None
    ) -> None:
        """Refuse NaN and infinity.

        Args:
            points: stored clouds, all of the file or those of `rows`.
            rows: number of each cloud in the file, for the message.
            positions: index of each cloud in `points`. None means that `points` has the clouds of `rows`, in order.
        """
        # int16 has neither NaN nor infinity, so these points are not read at all.
        if points.dtype.kind != "f":
            return
        bad = []
        for begin in range(0, len(rows), _CHUNK):
            some = slice(begin, begin + _CHUNK)
            chunk = points[some if positions is None else positions[some]]
            for i in np.flatnonzero(~np.isfinite(chunk).all(axis=(1, 2))):
                bad.append((rows[begin + i], chunk[i][~np.isfinite(chunk[i])][0]))
        if bad:
            row, value = bad[0]
            number = f"{len(bad)} such shape{'s' if len(bad) > 1 else ''} of {len(rows)}"
            self.fail(f"shape {row} of data has {value} ({number})", "remove or repair it")

    def _in_one_piece(self, key: str) -> bool:
        """Return True if the bytes in the file are those of the array in memory, so that it can be mapped."""
        # HDF5 gives an offset only to contiguous storage. Another byte order would need a copy.
        return self.arrays[key].id.get_offset() is not None and self.arrays[key].dtype.isnative

    def _map(self, file: MappedFile, key: str) -> NDArray[Any]:
        data = self.arrays[key]
        return file.array(data.dtype, data.id.get_offset(), data.shape)

    def _rows(self, split: str) -> NDArray[np.int64]:
        used = self.used_splits()
        if split not in used:
            defect = f"split {split!r} is empty" if split in self.split_names else f"there is no split {split!r}"
            listed = ", ".join(f"{name} ({count} shapes)" for name, count in used.items())
            raise MissingSplitError(
                f"{self.path}: {defect}; choose one of: {listed}, or assign shapes to it in the dataset split"
            )
        rows = np.flatnonzero(self.splits == self.split_names.index(split))
        counts = np.bincount(self.labels[rows], minlength=len(self.class_names))
        if split == "train" and 0 in counts:
            empty = ", ".join(self.class_names[label] for label in np.flatnonzero(counts == 0))
            self.fail(f"empty class, no training shape of: {empty}", "add some, or correct class_names")
        return rows

    def _checked_shape(self) -> tuple[int, int, int]:
        shape = self.arrays["data"].shape
        if shape is None or len(shape) != 3 or shape[2] != 3:
            self.fail(f"data has shape {shape}", "store clouds as (shapes, points, 3)")
        if 0 in shape:
            defect = "there are no shapes" if shape[0] == 0 else "clouds have zero points"
            self.fail(f"data has shape {shape}: {defect}", "store at least one shape of one point")
        return cast(tuple[int, int, int], shape)

    def _checked_scale(self) -> float | None:
        """Check the type of the points, and return the scale of int16 ones."""
        data = self.arrays["data"]
        dtype, scale = data.dtype, own_attribute(data, "scale", self.path)
        if (dtype.kind, dtype.itemsize) not in (("f", 4), ("f", 2), ("i", 2)):
            self.fail(f"data is {dtype}", "store float32, float16, or int16 with an attribute scale")
        if dtype.kind == "f":
            if scale is not None:
                self.fail(f"data is {dtype} with scale {scale}", "divide by it and remove it: it is for int16")
            return None
        remedy = "set data.attrs['scale'] to a number above 0 (coordinates = data / scale)"
        if scale is None:
            self.fail("data is int16 without an attribute scale", remedy)
        if not isinstance(scale, np.integer | np.floating) or not (math.isfinite(scale) and scale > 0):
            self.fail(f"data has scale {scale}", remedy)
        return float(scale)

    def _name_list(self, key: str) -> tuple[str, ...]:
        """Read a JSON list of distinct names from an attribute of the file."""
        stored = own_attribute(self.file, key, self.path)
        try:
            names = json.loads(stored) if isinstance(stored, str | bytes) else None
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            found = "missing" if stored is None else repr(stored)[:60]
            self.fail(f"attribute {key} is {found}", 'set it to a JSON list such as ["chair", "table"]')
        name, number = Counter(names).most_common(1)[0]
        if number > 1:
            self.fail(f"attribute {key} has {printable(name)!r} twice", "make the names distinct")
        return tuple(names)

    def _positions(self, key: str, names_key: str, names: tuple[str, ...]) -> NDArray[np.int64]:
        """Read `label` or `split`, which has one position in `names` per shape."""
        values = self._column(key, "integers")[:]
        bad = np.flatnonzero((values < 0) | (values >= len(names)))
        if len(bad):
            defect = f"{key} of shape {bad[0]} is {values[bad[0]]}"
            allowed = f"0 to {len(names) - 1}, as there are {len(names)} {names_key}"
            self.fail(f"{defect}; allowed: {allowed}", f"correct {key} or {names_key}")
        return cast("NDArray[np.int64]", values.astype(np.int64))

    def _check_parts(self) -> None:
        part, shape = self.arrays.get("part"), self.arrays["data"].shape[:2]
        if part is None or part.shape != shape or part.dtype != np.uint8:
            found = "a group" if part is None else f"{part.shape} {part.dtype}"
            self.fail(f"part is {found}", f"store uint8 of shape {shape}")

    def _shape_names(self) -> list[str]:
        column = self._column("name", "strings").asstr("utf-8", errors="replace")
        names: list[str] = []
        length, most = 0, os.path.getsize(self.file.filename)
        for begin in range(0, self.count, _NAMES):
            some = [str(name) for name in column[begin : begin + _NAMES]]
            length += sum(map(len, some))
            # All entries may refer to one long string, so a small file can expand to any number of characters.
            if length > max(most, _ALL_NAMES):
                self.fail(f"name has over {length:,} letters, more than the file", "shorten the names")
            names += some
        return names

    def _column(self, key: str, kind: str) -> h5py.Dataset:
        """Return the dataset `key`, which must have one entry of this kind per shape."""
        column = self.arrays.get(key)
        if column is None:
            self.fail(f"{key} is a group", f"store a dataset of {self.count} {kind}")
        fits = h5py.check_string_dtype(column.dtype) if kind == "strings" else column.dtype.kind in "iu"
        if not fits or column.shape is None or len(column.shape) != 1:
            found = f"{key} has shape {column.shape} and type {column.dtype}"
            self.fail(found, f"store {kind} of shape ({self.count},)")
        if len(column) != self.count:
            self.fail(f"{key} has {len(column)} entries, data {self.count}", "store one for each shape")
        return column

    def _checked_up_axis(self) -> UpAxis:
        up_axis = own_attribute(self.file, "up_axis", self.path)
        if isinstance(up_axis, bytes):
            up_axis = up_axis.decode(errors="replace")
        if not isinstance(up_axis, str) or up_axis not in ("x", "y", "z"):
            found = "missing" if up_axis is None else repr(up_axis)[:60]
            self.fail(f"attribute up_axis is {found}", "set it to the axis that points up: x, y or z")
        return cast(UpAxis, up_axis)
