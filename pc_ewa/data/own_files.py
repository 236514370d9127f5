"""The user's shapes: a folder of point clouds or meshes with one folder per class, `chair/one.ply`.

Splits are folders train/, val/ and test/ above the classes or inside them, or lists train.txt, val.txt and test.txt
beside the classes, one path a line. split_names.py has the accepted synonyms. Without them, a test split is drawn.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from pc_ewa.data.clouds import Clouds, UpAxis
from pc_ewa.data.dataset import Dataset
from pc_ewa.data.folders import IGNORED, entries, walk
from pc_ewa.data.formats.kinds import advice, refuse_unreadable
from pc_ewa.data.formats.meshes import sample_surface
from pc_ewa.data.formats.readers import EXTENSIONS, Shape, read_shape
from pc_ewa.data.own_splits import Found, check_classes, drawn_splits, is_by_split, random_of, told_splits
from pc_ewa.data.source import Item, Sample, Source, resize
from pc_ewa.data.split_names import SPLITS
from pc_ewa.errors import ConfigError, DataError

NAME = "files"
_KNOWN = " ".join(EXTENSIONS)
_MAX_POINTS = 1 << 20
# Largest coordinate, whose square float32 can still represent.
_LARGEST = 1e15
# Distance from the origin, in sizes of the shape, above which a shape is centred before the cast to float32. In map
# coordinates float32 would round its points to a visible grid.
_FAR = 1000

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
        DataError: no shapes, a class without shapes or without training shapes, contradictory splits, or lists that
            name missing files.
        MissingPackageError: files of a kind whose reader needs an extra that is not installed.
    """
    _check_options(stored_points, up_axis, test_fraction, seed)
    folder = Path(os.path.expanduser(folder))
    found = _find(folder)
    refuse_unreadable(file.path for file in found.values())
    splits = told_splits(folder, found)
    if splits is None:
        splits = drawn_splits(found, test_fraction, seed, group_by)
    elif group_by is not None:
        raise ConfigError(f"group_by is for splits that are drawn, but {folder} defines its splits; leave it out")
    notes = check_classes(folder, found, splits)
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
    shape = near_origin(read_shape(path), path)
    if seen is not None:
        seen(name, shape)
    return sample_shape(shape, stored_points, name, path)


def near_origin(shape: Shape, where: str | Path) -> Shape:
    """Move a shape that is far from the origin to it, in float64. `where` begins the message of an error.

    Raises:
        DataError: coordinates too large for any sensible unit.
    """
    points = shape.vertices
    if np.abs(points).max() > _LARGEST:
        raise DataError(f"{where}: coordinates up to {np.abs(points).max():.1g}; store it in a sensible unit")
    low, high = points.min(0), points.max(0)
    if 0 < (high - low).max() < np.abs((low + high) / 2).max() / _FAR:
        return shape._replace(vertices=points - (low + high) / 2)
    return shape


def sample_shape(shape: Shape, count: int, seed: str, where: str | Path) -> Sample:
    """Sample `count` points of a shape: from the surface of a mesh, or from the points of a cloud.

    Args:
        shape: a shape near the origin, as returned by `near_origin`.
        count: number of points.
        seed: text that seeds the draw, which is the same on every machine.
        where: beginning of the message of an error.

    Raises:
        DataError: a mesh without a surface.
    """
    points, faces = shape
    if faces is None:
        return resize(Sample(points.astype(np.float32)), count, seed=seed)
    try:
        sampled = sample_surface(points, faces, count, random_of(seed))
    except ValueError as error:
        raise DataError(f"{where}: {error}; repair the mesh, or store it without faces as a point cloud") from error
    return Sample(sampled.astype(np.float32))


def unread_kinds(folder: Path) -> Counter[str]:
    """Count the files in a folder that no reader supports, by extension."""
    kinds: Counter[str] = Counter()
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(IGNORED)]
        files = (Path(place, name) for name in names if not name.startswith(IGNORED))
        kinds.update(file.suffix.lower() or file.name for file in files if file.is_file())
    return Counter({kind: count for kind, count in kinds.items() if kind not in EXTENSIONS})


def _to_convert(folder: Path) -> str:
    """Return advice to convert the unsupported files of a folder, as the end of a message."""
    remedy = advice(unread_kinds(folder))
    return f"; {remedy}" if remedy else ""


def _find(folder: Path) -> dict[str, Found]:
    """Return every file with a supported extension in a folder of a class, by its path from `folder`, sorted."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder} is not a folder; check its name")
    tops = {entry.name: entry.path for entry in entries(folder) if entry.kind == "folder"}
    paths = {name: path for top, place in tops.items() for name, path in walk(place, top, EXTENSIONS)}
    if not paths:
        raise DataError(
            f"{folder} has no shapes in folders of classes, such as chair/one.ply; known are {_KNOWN}"
            f"{_to_convert(folder)}"
        )
    by_split = is_by_split(folder, paths)
    found: dict[str, Found] = {}
    # Sorted, because the order of a directory differs between file systems and would change the drawn splits.
    for name in sorted(paths):
        top, below, *deeper = name.split("/")
        if by_split:
            found[name] = Found(paths[name], below, SPLITS[top.lower()])
        else:
            found[name] = Found(paths[name], top, SPLITS.get(below.lower()) if deeper else None)
    if by_split:
        tops = {
            entry.name: entry.path
            for top, place in tops.items()
            if top.lower() in SPLITS
            for entry in entries(place)
            if entry.kind == "folder"
        }
    for name in sorted(tops.keys() - {file.label for file in found.values()}):
        raise DataError(
            f"{tops[name]} has no shapes; add files that end in one of {_KNOWN}, or remove it{_to_convert(tops[name])}"
        )
    return found


DATASET = Dataset(
    name=NAME,
    load=load,
    title="a folder of your own shapes, one folder per class",
    licence="yours",
    manual="data.path is the folder; `pc-ewa prepare files FOLDER -o mine.h5` makes later starts quick",
    own_files=True,
)
