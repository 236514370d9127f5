"""`modelnet40_ply_hdf5_2048`: ModelNet40 as PointNet published it, in HDF5 files of up to 2048 shapes each."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.contained import check_stored, names_of, open_hdf5, own_dataset
from pc_ewa.data.formats.text_files import read_text
from pc_ewa.data.published.modelnet_common import CLASSES, SPLITS, check_classes, find, list_lines, new_source
from pc_ewa.data.source import Item, Sample, Source, check_sample
from pc_ewa.errors import DataError

# Largest number of shapes of a file and of points of a shape. Sound files have far fewer; a damaged header may claim
# any number.
_LARGEST = 1_000_000
# Points in memory at a time.
_POINTS_AT_ONCE = 2**19
_FRESH = "get a fresh copy"


def shards(folder: Path) -> Source | None:
    """Find train_files.txt and test_files.txt, and return the listed shapes. None means that neither file exists.

    Only the file name of each listed path is used, because the published paths are those of the authors' machine.
    """
    home = find(folder, "modelnet40_ply_hdf5_2048", [f"{split}_files.txt" for split in SPLITS])
    if home is None:
        return None
    check_classes(home / "shape_names.txt", "40")
    items: list[Item] = []
    seen: dict[Path, int] = {}
    for split in SPLITS:
        path = home / f"{split}_files.txt"
        for line in list_lines(path):
            place = home / line.rpartition("/")[2]
            if not place.is_file():
                raise DataError(f"{place}: listed in {path.name}, but not there; get a fresh copy of it")
            shard = _Shard(place)
            if shard.path in seen:
                raise DataError(f"{path}: {shard.path.name} is listed twice; get a fresh copy")
            seen[shard.path] = shard.num_points
            if len(set(seen.values())) > 1:
                others = next(iter(seen.values()))
                raise DataError(
                    f"{shard.path}: clouds of {shard.num_points} points, others have {others}; get all again"
                )
            items += shard.items(split)
    return new_source("40", "modelnet40_ply_hdf5_2048", items, "y", shard.num_points)


class _Shard:
    """One HDF5 file of the dataset. Shapes are read in blocks, and the last block is cached.

    The arrays are compressed in chunks of many shapes, so reading single shapes would decompress each chunk many times.

    Raises:
        DataError: a file that cannot be read, or contents other than clouds and their labels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels, self.num_points = self._check()
        self.names = self._read_names()
        self.begin, self.block = 0, np.empty((0, 0, 3), np.float32)

    def items(self, split: str) -> list[Item]:
        """Return all shapes."""
        labels = self.labels.tolist()
        return [Item(self.names[i], label, split, partial(self._read, i)) for i, label in enumerate(labels)]

    def _read(self, index: int) -> Sample:
        # Reading the shapes in order, as conversion does, reads each block once.
        if not self.begin <= index < self.begin + len(self.block):
            rows = max(1, _POINTS_AT_ONCE // self.num_points)
            self.begin = index - index % rows
            with open_hdf5(self.path, _FRESH) as file:
                data = own_dataset(file, "data", self.path)
                self.block = self.block[:0] if data is None else data[self.begin : self.begin + rows]
            if not self.begin <= index < self.begin + len(self.block):
                self._fail("it has changed while it was read")
        return check_sample(Sample(self.block[index - self.begin]), f"{self.path}: shape {index}")

    def _check(self) -> tuple[NDArray[Any], int]:
        with open_hdf5(self.path, _FRESH) as file:
            data, label = (own_dataset(file, key, self.path) for key in ("data", "label"))
            if data is None or label is None:
                self._fail(f"there is no data or no label (found: {names_of(file)})")
            shape: tuple[int, ...] = data.shape or ()
            if (
                len(shape) != 3
                or shape[2] != 3
                or data.dtype.kind != "f"
                or not 0 < min(shape) <= max(shape) <= _LARGEST
            ):
                self._fail(f"data is {shape} {data.dtype}, not clouds (shapes, points, 3)")
            if label.shape not in [(shape[0],), (shape[0], 1)] or label.dtype.kind not in "iu":
                self._fail(f"label is {label.shape} {label.dtype}, not one integer for each of {shape[0]} shapes")
            check_stored(data, self.path)
            labels = label[:].reshape(-1)
        bad = np.flatnonzero((labels < 0) | (labels >= len(CLASSES["40"])))
        if len(bad):
            self._fail(f"shape {bad[0]} has label {labels[bad[0]]}, allowed are 0 to {len(CLASSES['40']) - 1}")
        return labels, int(shape[1])

    def _read_names(self) -> list[str]:
        """Read names such as "airplane/airplane_0630.ply" from the file of names. Without it, number the shapes."""
        parts = re.fullmatch(r"(.*?)_?(\d+)", self.path.stem)
        path = self.path.with_name(f"{parts[1]}_{parts[2]}_id2file.json") if parts else self.path
        if not parts or not path.exists():
            return [f"{self.path.stem}_{i:04}" for i in range(len(self.labels))]
        try:
            names = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise DataError(f"cannot read {path}: {' '.join(str(error).split())}; get a fresh copy") from error
        if not isinstance(names, list) or len(names) != len(self.labels) or not all(isinstance(n, str) for n in names):
            raise DataError(f"{path}: not a list of {len(self.labels)} names, as {self.path.name} needs; remove it")
        for i, (name, label) in enumerate(zip(names, self.labels.tolist(), strict=True)):
            if name.partition("/")[0] != CLASSES["40"][label]:
                defect = f"name {i} is {name[:80]!r}, but the shape is {CLASSES['40'][label]} in {self.path.name}"
                raise DataError(f"{path}: {defect}; get both from one place")
        return [name.rpartition("/")[2].removesuffix(".ply") for name in names]

    def _fail(self, defect: str) -> NoReturn:
        raise DataError(f"{self.path}: {defect}; {_FRESH}")
