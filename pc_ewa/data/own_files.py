"""The user's shapes: a folder of point clouds or meshes with one folder per class, `chair/one.ply`.

Splits are folders train/, val/ and test/ above the classes or inside them, or lists train.txt, val.txt and test.txt
beside the classes, one path a line. split_names.py has the accepted synonyms. Without them, a test split is drawn.
"""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

from pc_ewa.data.clouds import Clouds, UpAxis
from pc_ewa.data.dataset import Dataset
from pc_ewa.data.formats.kinds import refuse_unreadable
from pc_ewa.data.formats.readers import Shape
from pc_ewa.data.own_folder import find
from pc_ewa.data.own_splits import check_classes, drawn_splits, told_splits
from pc_ewa.data.shapes import near_origin, read_scan, sample_shape
from pc_ewa.data.source import Item, Sample, Source
from pc_ewa.errors import ConfigError

NAME = "files"
_MAX_POINTS = 1 << 20

log = logging.getLogger(__name__)


def load(
    split: str,
    root: Path,
    *,
    path: str,
    stored_points: int = 2048,
    up_axis: UpAxis = "z",
    test_fraction: float = 0.2,
    seed: int = 0,
    group_by: str | None = None,
) -> Clouds:
    """Read every file of one split of the user's folder.

    To read the files only once, run `pc-ewa prepare files FOLDER -o mine.h5` and load {name: hdf5, path: mine.h5}.

    Args:
        split: name of the split.
        root: not used.
        path: the folder, with one folder per class. Files with one of EXTENSIONS are found at any depth.
        stored_points: number of points of each shape. Meshes are sampled uniformly over their surface; points of
            clouds are drawn or repeated. Both are random, but the same every time.
        up_axis: the axis that points up in these files.
        test_fraction: share of each class for the test split if the folder does not define splits, at least one shape
            of each class that has two. 0 draws no test split.
        seed: seed of the drawn test split. The files of one class do not change the draw of another.
        group_by: regular expression that is searched in names such as "chair/12_side.ply". Shapes with the same match
            (of the first group, if there is one) are put into the same split, as views of one object must be.

    Raises:
        MissingSplitError: no shapes in this split.
        ConfigError, DataError: as `source`; a file that cannot be read.
    """
    folder = Path(os.path.expanduser(path))
    if os.path.isfile(folder):
        raise ConfigError(f"{folder} is a file, not a folder of shapes; an HDF5 file goes with data: {{name: hdf5}}")
    opened = source(
        folder,
        stored_points=stored_points,
        up_axis=up_axis,
        test_fraction=test_fraction,
        seed=seed,
        group_by=group_by,
    )
    # `load` is called for each split, and the notes are about all of them: print them once.
    for note in opened.notes if split == "train" else ():
        log.warning("%s", note)
    log.info("pc-ewa prepare files %s -o mine.h5 makes later starts quick", folder)
    return opened.clouds(split)


def source(
    folder: Path,
    *,
    stored_points: int = 2048,
    up_axis: UpAxis = "z",
    test_fraction: float = 0.2,
    seed: int = 0,
    group_by: str | None = None,
    seen: Callable[[str, Shape], None] | None = None,
) -> Source:
    """Find the shapes of a folder. Classes are its folders, sorted by name. See `load` for the arguments.

    `seen` is called with the name and the content of each file that is read, before points are drawn from it.

    Raises:
        ConfigError: a value that is not allowed, or `group_by` for a folder that defines its splits.
        DataError: no shapes, a class without training shapes, contradictory splits, or lists that name missing files.
        MissingPackageError: files of a kind whose reader needs an extra that is not installed.
    """
    _check_options(stored_points, up_axis, test_fraction, seed)
    folder = Path(os.path.expanduser(folder))
    found, notes = find(folder)
    refuse_unreadable(file.path for file in found.values())
    splits = told_splits(folder, found)
    if splits is None:
        splits = drawn_splits(found, test_fraction, seed, group_by)
    elif group_by is not None:
        raise ConfigError(f"group_by is for splits that are drawn, but {folder} defines its splits; leave it out")
    notes += check_classes(folder, found, splits)
    classes = tuple(sorted({file.label for file in found.values()}))
    read = partial(_read, stored_points=stored_points, seen=seen)
    return Source(
        name=os.path.basename(os.path.realpath(folder)) or NAME,
        items=[
            Item(name, classes.index(found[name].label), split, partial(read, found[name].path, name))
            for name, split in splits.items()
        ],
        class_names=classes,
        up_axis=up_axis,
        licence="your own files",
        split_names=tuple(s for s in ("train", "val", "test") if s != "val" or "val" in splits.values()),
        num_points=stored_points,
        notes=tuple(notes),
    )


def _check_options(stored_points: int, up_axis: str, test_fraction: float, seed: int) -> None:
    if not 1 <= stored_points <= _MAX_POINTS:
        raise ConfigError(f"stored_points is {stored_points}; allowed: 1 to {_MAX_POINTS}")
    if up_axis not in get_args(UpAxis):
        raise ConfigError(f"up_axis is {up_axis!r}; allowed: {', '.join(get_args(UpAxis))}")
    if not 0 <= test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction}; allowed: 0 to below 1")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}; allowed: 0 to 4294967295")


def _read(path: Path, name: str, stored_points: int, seen: Callable[[str, Shape], None] | None) -> Sample:
    shape = near_origin(read_scan(path), path)
    if seen is not None:
        seen(name, shape)
    return sample_shape(shape, stored_points, name, path)


DATASET = Dataset(
    name=NAME,
    load=load,
    title="a folder of your own shapes, one folder per class",
    licence="yours",
    manual="data.path is the folder; `pc-ewa prepare files FOLDER -o mine.h5` makes later starts quick",
    own_files=True,
)
