"""`modelnet40_normal_resampled`: ModelNet as published by PointNet++, and the caches that Point-BERT made of it.

It has a text file per shape and lists of the shapes. `modelnet40_train_8192pts_fps.dat` has farthest points of all.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pc_ewa.data.formats.pickles import read_pickle
from pc_ewa.data.published.modelnet_common import (
    CLASSES,
    SPLITS,
    Variant,
    check_classes,
    files_in,
    find,
    list_lines,
    new_source,
)
from pc_ewa.data.source import Item, Sample, Source, check_sample
from pc_ewa.errors import DataError


def resampled(variant: Variant, folder: Path) -> Source | None:
    """Find the lists and the text files that they name. None means that there are no lists."""
    home = find(folder, "modelnet40_normal_resampled", [f"modelnet{variant}_{split}.txt" for split in SPLITS])
    if home is None:
        return None
    items = []
    there: dict[str, set[str]] = {}
    for name, label, split in _listed(variant, home):
        place = home / CLASSES[variant][label]
        # One directory listing per class: a test per file takes minutes on network drives.
        if place.name not in there:
            there[place.name] = files_in(place)
        path = place / f"{name}.txt"
        if path.name not in there[place.name]:
            raise DataError(f"{path}: listed in modelnet{variant}_{split}.txt, but not there; get a fresh copy of it")
        items.append(Item(name, label, split, partial(_read_text, path)))
    return new_source(variant, "modelnet40_normal_resampled", items, "y")


def _listed(variant: Variant, home: Path) -> Iterator[tuple[str, int, str]]:
    """Yield the name, label and split of each shape in the lists."""
    classes = CLASSES[variant]
    check_classes(home / f"modelnet{variant}_shape_names.txt", variant)
    seen = set()
    for split in SPLITS:
        path = home / f"modelnet{variant}_{split}.txt"
        for name in list_lines(path):
            kind = name.rpartition("_")[0]
            if kind not in classes or name in seen:
                defect = "is listed twice" if name in seen else "is of no class of the dataset"
                raise DataError(f"{path}: {name[:80]!r} {defect}; get a fresh copy")
            seen.add(name)
            yield name, classes.index(kind), split


def _read_text(path: Path) -> Sample:
    """Read lines of x,y,z,nx,ny,nz."""
    try:
        lines = path.read_text("ascii").splitlines()
        # Check every line first: `np.loadtxt` skips blank lines, and its messages do not quote the line.
        wrong = next((i for i, line in enumerate(lines) if line.count(",") != 5), None)
        if wrong is not None:
            raise ValueError(f"line {wrong + 1} is {lines[wrong][:60]!r}, not x,y,z,nx,ny,nz")
        if not lines:
            raise ValueError("it is empty")
        points = np.loadtxt(lines, np.float32, comments=None, delimiter=",", usecols=(0, 1, 2), ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}; get a fresh copy") from error
    return check_sample(Sample(points), str(path))


def caches(variant: Variant, folder: Path) -> Source | None:
    """Find the caches. None means that there are none. Names come from the lists, if these exist too."""
    home = next((h for h in (folder, folder / "modelnet40_normal_resampled") if _cache_sizes(variant, h)), None)
    if home is None:
        return None
    sizes = _cache_sizes(variant, home)
    names = None
    if all((home / f"modelnet{variant}_{split}.txt").is_file() for split in SPLITS):
        names = list(_listed(variant, home))
    items: list[Item] = []
    for split in SPLITS:
        path = home / f"modelnet{variant}_{split}_{max(sizes)}pts_fps.dat"
        listed = None if names is None else [entry for entry in names if entry[2] == split]
        items += _read_cache(path, CLASSES[variant], split, listed)
    return new_source(variant, "the FPS caches of modelnet40_normal_resampled", items, "y", max(sizes))


def _cache_sizes(variant: Variant, home: Path) -> set[int]:
    """Return the numbers of points of the caches, which are part of their names."""
    pattern = re.compile(rf"modelnet{variant}_(?:train|test)_(\d{{1,6}})pts_fps\.dat")
    return {int(match[1]) for name in files_in(home) if (match := pattern.fullmatch(name))}


def _read_cache(
    path: Path, classes: tuple[str, ...], split: str, listed: list[tuple[str, int, str]] | None
) -> Iterator[Item]:
    content = read_pickle(path)
    if not _is_list(content, 2) or not all(_is_list(column, None) for column in content):
        raise DataError(f"{path}: not a list of points and a list of labels; get a fresh copy")
    points, labels = content
    if not points or len(points) != len(labels) or (listed is not None and len(listed) != len(points)):
        others = "" if listed is None else f", {len(listed)} names in the list beside it"
        raise DataError(f"{path}: {len(points)} shapes, {len(labels)} labels{others}; get all from one place")
    for i, (array, number) in enumerate(zip(points, labels, strict=True)):
        where = f"{path}: shape {i}"
        label = label_of(number, len(classes), where)
        if listed is not None and listed[i][1] != label:
            raise DataError(f"{where} is {classes[label]}, but {listed[i][0]} in the list; get both from one place")
        name = f"{split}_{i:05}" if listed is None else listed[i][0]
        yield Item(name, label, split, partial(sample_of, array, where))


def _is_list(value: Any, length: int | None) -> bool:
    return isinstance(value, list | tuple) and length in (None, len(value))


def label_of(value: Any, count: int, where: str) -> int:
    """Check and return one label of a pickle, a number or an array of one. `where` begins the message.

    Raises:
        DataError: not an integer from 0 to `count` - 1.
    """
    # `type(number) is int` refuses bool and float, which `isinstance` or a comparison would accept.
    number = value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
    if type(number) is not int or not 0 <= number < count:
        found = number if type(number) is int else f"a {type(number).__name__}"
        raise DataError(f"{where} has label {found}, allowed are 0 to {count - 1}; get a fresh copy")
    return number


def sample_of(value: Any, where: str) -> Sample:
    """Check and return one cloud of a pickle: x, y, z and optional columns. `where` begins the message.

    Raises:
        DataError: not an array of points, or one that training cannot use.
    """
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.shape[1] < 3:
        found = f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise DataError(f"{where} is {found}, not an array (points, 6); get a fresh copy")
    return check_sample(Sample(value[:, :3]), where)
