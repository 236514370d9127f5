"""Your own shapes: a folder with one folder per class, `chair/one.ply`, of point clouds or meshes.

The split is what the folder says: folders train/, val/ (or valid/, validation/) and test/ above the classes or inside
them, or lists train.txt, val.txt and test.txt beside them, one path a line. Without any, a test split is drawn.
"""

import logging
import os
import unicodedata
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from pc_ewa.data.clouds import Clouds, UpAxis
from pc_ewa.data.dataset import Dataset
from pc_ewa.data.folders import entries, walk
from pc_ewa.data.formats.meshes import sample_surface
from pc_ewa.data.formats.readers import EXTENSIONS, Shape, read_shape
from pc_ewa.data.source import Item, Sample, Source, resize
from pc_ewa.errors import ConfigError, DataError

NAME = "files"
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_KNOWN = " ".join(EXTENSIONS)
_MAX_POINTS = 1 << 20
_LARGEST = 1e15  # coordinate: the square of it is safe in float32
_FAR = 1000  # times its size: float32 would round a cloud that far from the origin, as in map coordinates, to a grid

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """A file of the folder: its class, and its split where folders tell it."""

    path: Path
    label: str
    split: str | None


def load(
    split: str,
    root: Path,
    *,
    path: str,
    stored_points: int = 2048,
    up_axis: UpAxis = "z",
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Clouds:
    """Read a split of your own folder, every file of it; `path` is taken as it is, `root` plays no part.

    `pc-ewa prepare files FOLDER -o mine.h5` does so once and for all: {name: hdf5, path: mine.h5}.

    Raises:
        MissingSplitError: no shapes in this split.
        ConfigError, DataError: as `source`; any file that cannot be read.
    """
    folder = Path(os.path.expanduser(path))
    if os.path.isfile(folder):
        raise ConfigError(f"{folder} is a file, not a folder of shapes; an HDF5 file goes with data: {{name: hdf5}}")
    opened = source(folder, stored_points=stored_points, up_axis=up_axis, test_fraction=test_fraction, seed=seed)
    log.info("pc-ewa prepare files %s -o mine.h5 makes later starts quick", folder)
    return opened.clouds(split)


def source(
    folder: Path, *, stored_points: int = 2048, up_axis: UpAxis = "z", test_fraction: float = 0.2, seed: int = 0
) -> Source:
    """Find the shapes of a folder; classes are its folders in the order of their names.

    Args:
        folder: one folder per class with files in it, at any depth, that have one of EXTENSIONS.
        stored_points: of each shape: meshes are sampled evenly over their surface, of point clouds some are drawn or
            repeated; both at random but the same every time.
        up_axis: the axis that points up in these files.
        test_fraction: share of each class that is set aside for the test when the folder tells no splits, at least
            one shape of each class that has two; 0 for none.
        seed: draws the test split; the files of one class do not change the draw of another.

    Raises:
        ConfigError: a value that is not allowed.
        DataError: no shapes, a class without any, splits that contradict each other, or lists of files that are
            missing.
    """
    _check_options(stored_points, up_axis, test_fraction, seed)
    folder = Path(os.path.expanduser(folder))
    found, lists = _find(folder), _lists(folder)
    if lists:
        splits = _listed(folder, found, lists)
    elif any(file.split for file in found.values()):
        splits = _told(folder, found)
    else:
        splits = _drawn(found, test_fraction, seed)
    classes = tuple(sorted({file.label for file in found.values()}))
    return Source(
        name=os.path.basename(os.path.realpath(folder)) or NAME,
        items=[
            Item(name, classes.index(found[name].label), split, partial(_read, found[name].path, name, stored_points))
            for name, split in splits.items()
        ],
        class_names=classes,
        up_axis=up_axis,
        licence="your own files",
        split_names=tuple(s for s in ("train", "val", "test") if s != "val" or "val" in splits.values()),
        num_points=stored_points,
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


def _read(path: Path, name: str, stored_points: int) -> Sample:
    return sample_shape(near_origin(read_shape(path), path), stored_points, name, path)


def near_origin(shape: Shape, where: str | Path) -> Shape:
    """Move a shape that is far from the origin to it, while its coordinates are float64; `where` begins the message.

    Raises:
        DataError: coordinates of no sensible unit.
    """
    points = shape.vertices
    if np.abs(points).max() > _LARGEST:
        raise DataError(f"{where}: coordinates up to {np.abs(points).max():.1g}; store it in a sensible unit")
    low, high = points.min(0), points.max(0)
    if 0 < (high - low).max() < np.abs((low + high) / 2).max() / _FAR:
        return shape._replace(vertices=points - (low + high) / 2)
    return shape


def sample_shape(shape: Shape, count: int, seed: str, where: str | Path) -> Sample:
    """Bring a shape near the origin to a number of points: meshes by their surface, clouds by drawing or repeating.

    Args:
        shape: as `near_origin` returns it.
        count: how many points.
        seed: text that decides what is drawn, the same on every machine.
        where: begins the message.

    Raises:
        DataError: a mesh without a surface.
    """
    points, faces = shape
    if faces is None:
        return resize(Sample(points.astype(np.float32)), count, seed=seed)
    try:
        sampled = sample_surface(points, faces, count, _random(seed))
    except ValueError as error:
        raise DataError(f"{where}: {error}; repair the mesh, or store it without faces as a point cloud") from error
    return Sample(sampled.astype(np.float32))


def _random(name: str, *more: int) -> np.random.RandomState:
    return np.random.RandomState([*more, *name.encode("utf-8")])


def _find(folder: Path) -> dict[str, Found]:
    """Every file with a known extension in a folder of a class, by its path from `folder`, sorted."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder} is not a folder; check the option path")
    tops = {entry.name: entry.path for entry in entries(folder) if entry.kind == "folder"}
    paths = {name: path for top, place in tops.items() for name, path in walk(place, top, EXTENSIONS)}
    if not paths:
        raise DataError(f"{folder} has no shapes in folders of classes, such as chair/one.ply; known are {_KNOWN}")
    by_split = _is_by_split(folder, paths)
    found: dict[str, Found] = {}
    for name in sorted(paths):
        top, below, *deeper = name.split("/")
        if by_split:
            found[name] = Found(paths[name], below, _SPLITS[top.lower()])
        else:
            found[name] = Found(paths[name], top, _SPLITS.get(below.lower()) if deeper else None)
    if by_split:
        tops = {
            entry.name: entry.path
            for top, place in tops.items()
            if top.lower() in _SPLITS
            for entry in entries(place)
            if entry.kind == "folder"
        }
    for name in sorted(tops.keys() - {file.label for file in found.values()}):
        raise DataError(f"{tops[name]} has no shapes; add files that end in one of {_KNOWN}, or remove it")
    return found


def _is_by_split(folder: Path, names: Iterable[str]) -> bool:
    """Tell folders of splits above the classes from classes: one of trains may be called "train" as well."""
    parts = [name.split("/") for name in names]
    above = [p[0].lower() in _SPLITS and len(p) > 2 for p in parts]
    if all(above):
        return True
    for p, is_above in zip(parts, above, strict=True):
        if is_above and p[1].lower() not in _SPLITS:
            other = "/".join(parts[above.index(False)])
            raise DataError(
                f"{folder}: {p[0]}/{p[1]} looks like a class in a folder of a split, {other} does not; put all shapes "
                "into such folders, or none"
            )
    return False


def _told(folder: Path, found: Mapping[str, Found]) -> dict[str, str]:
    """Splits as folders tell them."""
    splits = {name: file.split for name, file in found.items() if file.split}
    for name in found.keys() - splits.keys():
        raise DataError(
            f"{folder / name} is in no folder of a split, as others are: train/, val/ or test/; move it there"
        )
    return splits


def _lists(folder: Path) -> dict[Path, str]:
    """The lists that are there, and the split that each tells."""
    return {path: split for stem, split in _SPLITS.items() if os.path.exists(path := folder / f"{stem}.txt")}


def _listed(folder: Path, found: Mapping[str, Found], lists: Mapping[Path, str]) -> dict[str, str]:
    """Splits as lists tell them; files in no list are left out."""
    splits: dict[str, str] = {}
    for path, split in lists.items():
        try:
            if not os.path.isfile(path):  # opening a pipe would wait for ever
                raise OSError("it is not a file")
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}; it lists one path a line, in UTF-8") from error
        names = [line.strip().replace("\\", "/").removeprefix("./") for line in lines]
        for i, name in enumerate(names, 1):
            name = unicodedata.normalize("NFC", name)
            if not name or name.startswith("#"):
                continue
            if name not in found:
                raise DataError(f"{path}: line {i} lists {name!r}, but there is no such shape in {folder}; correct it")
            if name in splits or found[name].split not in (None, split):
                other = splits.get(name, found[name].split)
                raise DataError(f"{path}: line {i} puts {name} into {split}, but it is in {other}; remove one of both")
            splits[name] = split
        if split not in splits.values():
            raise DataError(f"{path} lists no shapes; list one path a line, or remove it")
    return splits


def _drawn(found: Mapping[str, Found], test_fraction: float, seed: int) -> dict[str, str]:
    """Splits at random: a share of each class is for the test."""
    splits = dict.fromkeys(found, "train")
    for label in {file.label for file in found.values()}:
        names = [name for name, file in found.items() if file.label == label]
        share = min(max(round(test_fraction * len(names)), 1), len(names) - 1) if test_fraction else 0
        # RandomState: its stream is frozen for all versions of numpy.
        for i in _random(label, seed).permutation(len(names))[:share]:
            splits[names[i]] = "test"
    return splits


DATASET = Dataset(
    name=NAME,
    load=load,
    title="a folder of your own shapes, one folder per class",
    licence="yours",
    manual="data.path is the folder; `pc-ewa prepare files FOLDER -o mine.h5` makes later starts quick",
    own_files=True,
)
