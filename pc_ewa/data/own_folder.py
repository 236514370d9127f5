"""The files in a folder of the user's shapes, each with its class, and what lies there to no use."""

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

from pc_ewa.data.folders import IGNORED, Entry, entries, walk
from pc_ewa.data.formats.kinds import advice
from pc_ewa.data.formats.readers import EXTENSIONS
from pc_ewa.data.own_splits import Found, is_by_split
from pc_ewa.data.split_names import SPLITS, listed
from pc_ewa.errors import DataError
from pc_ewa.text import printable

_KNOWN = " ".join(EXTENSIONS)


def find(folder: Path) -> tuple[dict[str, Found], list[str]]:
    """Find every file with a supported extension in a folder of a class.

    Returns:
        The files by their path from `folder`, sorted. Notes for the user: files in no folder of a class, folders of
        a class without such files, and the folder that was meant if there is only one class.

    Raises:
        DataError: not a folder, nothing found, or a mixture of folders of splits and of classes.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder} is not a folder; check its name")
    inside = entries(folder)
    tops = {entry.name: entry.path for entry in inside if entry.kind == "folder"}
    paths = {name: path for top, place in tops.items() for name, path in walk(place, top, EXTENSIONS)}
    loose = [entry.name for entry in inside if _is_loose(entry)]
    if not paths:
        one = f"; if {folder.resolve().name} is itself a class, give the folder above it" if loose else ""
        raise DataError(
            f"{folder} has no shapes in folders of classes, such as chair/one.ply; known are {_KNOWN}"
            f"{_to_convert(folder)}{one}"
        )
    by_split = is_by_split(folder, paths)
    found: dict[str, Found] = {}
    # Sorted, because the order of a directory differs between file systems and would change the order of the shapes.
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
    return found, [*_loose(loose), *_empty(tops, found), *_one_class(tops, found, by_split)]


def unread_kinds(folder: Path) -> Counter[str]:
    """Count the files in a folder that no reader supports, by extension."""
    kinds: Counter[str] = Counter()
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(IGNORED)]
        files = (Path(place, name) for name in names if not name.startswith(IGNORED))
        kinds.update(file.suffix.lower() or file.name for file in files if file.is_file())
    return Counter({kind: count for kind, count in kinds.items() if kind not in EXTENSIONS})


def _is_loose(entry: Entry) -> bool:
    """Return True for a file that would be read in a folder of a class, and that is not a list of a split."""
    stem, extension = os.path.splitext(entry.name.lower())
    return entry.kind == "file" and extension in EXTENSIONS and not (extension == ".txt" and stem in SPLITS)


def _loose(names: list[str]) -> list[str]:
    if not names:
        return []
    lie = "it lies" if len(names) == 1 else "they lie"
    return [f"left out, as {lie} in no class folder: {listed(names)}; move shapes into the folder of a class"]


def _empty(tops: dict[str, Path], found: dict[str, Found]) -> list[str]:
    names = sorted(tops.keys() - {file.label for file in found.values()})
    remedies = dict.fromkeys(_to_convert(tops[name]) for name in names)
    return [f"left out, as no file in it is a shape: {listed(names)}{''.join(remedies)}"] if names else []


def _one_class(tops: dict[str, Path], found: dict[str, Found], by_split: bool) -> list[str]:
    """Return a note if all shapes are of one class, with the folder that was probably meant."""
    labels = {file.label for file in found.values()}
    if len(labels) > 1:
        return []
    (label,) = labels
    below, classes = tops[label], set()
    with suppress(DataError):  # it has files directly, or splits without classes
        classes = {file.label for file in find(below)[0].values()} if not by_split else set()
    meant = "give a folder that has one folder for each class"
    if len(classes) > 1:
        meant = f"did you mean {printable(str(below), None)}, which has {listed(classes)}?"
    return [f"all shapes are of one class, {listed([label])}: a classifier has nothing to tell apart; {meant}"]


def _to_convert(folder: Path) -> str:
    """Return advice to convert the unsupported files of a folder, as the end of a message."""
    remedy = advice(unread_kinds(folder))
    return f"; {remedy}" if remedy else ""
