"""Classes, splits and file lists that are common to all formats of ModelNet."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pc_ewa.data.clouds import UpAxis
from pc_ewa.data.formats.text_files import FRESH, read_lines
from pc_ewa.data.source import Item, Source
from pc_ewa.errors import DataError

Variant = Literal["40", "10"]

_CLASSES_40 = """
    airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot glass_box
    guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio range_hood sink sofa stairs stool
    table tent toilet tv_stand vase wardrobe xbox
"""
_CLASSES_10 = "bathtub bed chair desk dresser monitor night_stand sofa table toilet"
CLASSES: dict[str, tuple[str, ...]] = {"40": tuple(_CLASSES_40.split()), "10": tuple(_CLASSES_10.split())}
SPLITS = ("train", "test")


def new_source(
    variant: Variant, what: str, items: Sequence[Item], up_axis: UpAxis, num_points: int | None = None
) -> Source:
    """Return a source of ModelNet. Its licence names the format and the counts, and is stored in prepared files."""
    # Two training sets are called ModelNet40, with 9,843 and 9,840 shapes; a prepared file must not hide its origin.
    counts = [sum(item.split == split for item in items) for split in SPLITS]
    licence = f"academic research use only; ModelNet{variant} as {what}, {counts[0]} train and {counts[1]} test shapes"
    return Source(f"modelnet{variant}", items, CLASSES[variant], up_axis, licence, SPLITS, num_points)


def find(folder: Path, own: str, files: Sequence[str]) -> Path | None:
    """Return `folder`, or its subfolder `own`, if it has any of these files. None means that neither has."""
    return next((home for home in (folder, folder / own) if any(os.path.lexists(home / name) for name in files)), None)


def files_in(folder: Path) -> set[str]:
    """Return the names of the files in a folder, including links to files; empty if the folder does not exist.

    Raises:
        DataError: a folder that cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}; make it readable") from error


def list_lines(path: Path) -> list[str]:
    """Read a list of names, one on each line.

    Raises:
        DataError: a file that cannot be read, or without a name.
    """
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path}: it is empty; {FRESH}")
    return lines


def check_classes(path: Path, variant: Variant) -> None:
    """Compare a list of classes, if it exists, with the published list, whose positions are the labels.

    Raises:
        DataError: the lists differ.
    """
    if not os.path.lexists(path):
        return
    names = list_lines(path)
    if tuple(names) != CLASSES[variant]:
        pairs = zip([*names, None], CLASSES[variant], strict=False)
        wrong = next(((name, right) for name, right in pairs if name != right), (names[-1], None))
        raise DataError(f"{path}: has {wrong[0]!r} where {wrong[1]!r} belongs; labels would be wrong, get a fresh copy")
