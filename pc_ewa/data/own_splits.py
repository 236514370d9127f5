"""The splits of a folder of the user's shapes: defined by the folder, or drawn."""

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pc_ewa.data.folders import entries
from pc_ewa.data.source import Item
from pc_ewa.data.split_names import SPLITS, listed, refuse_hidden_lists, refuse_hidden_splits
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.text import printable


class Found(NamedTuple):
    """A file of the folder: its class, and its split. The split is None if no folder defines it."""

    path: Path
    label: str
    split: str | None


def is_by_split(folder: Path, names: Iterable[str]) -> bool:
    """Return True if the top folders are splits and False if they are classes.

    Raises:
        DataError: a mixture of both.
    """
    parts = [name.split("/") for name in names]
    # A top folder "train" that holds files directly is a class of locomotives, not a split.
    above = [p[0].lower() in SPLITS and len(p) > 2 for p in parts]
    if all(above):
        return True
    for p, is_above in zip(parts, above, strict=True):
        if is_above and p[1].lower() not in SPLITS:
            other = "/".join(parts[above.index(False)])
            raise DataError(
                f"{folder}: {p[0]}/{p[1]} looks like a class in a folder of a split, {other} does not; put all shapes "
                "into such folders, or none"
            )
    refuse_hidden_splits(folder, parts)
    return False


def told_splits(folder: Path, found: Mapping[str, Found]) -> dict[str, str] | None:
    """Return the split of each shape as defined by lists or folders. None means that neither defines any.

    Raises:
        DataError: splits that contradict each other, or that do not cover every shape.
    """
    lists = _lists(folder)
    if lists:
        splits = _listed(folder, found, lists)
    elif any(file.split for file in found.values()):
        splits = _told(folder, found)
    else:
        return None
    # "eval" is the test split of some datasets and the validation split of others; a "test" beside it decides.
    evaluation = "val" if "test" in splits.values() else "test"
    return {name: evaluation if split == "eval" else split for name, split in splits.items()}


def _told(folder: Path, found: Mapping[str, Found]) -> dict[str, str]:
    """Return the splits as defined by folders."""
    splits = {name: file.split for name, file in found.items() if file.split}
    for name in found.keys() - splits.keys():
        raise DataError(
            f"{folder / name} is not in a folder of a split, as others are: train/, val/ or test/; move it there"
        )
    return splits


def _lists(folder: Path) -> dict[Path, str]:
    """Return the lists of the folder, each with its split."""
    found = {entry.name.lower(): entry.path for entry in entries(folder)}
    lists = {found[f"{stem}.txt"]: split for stem, split in SPLITS.items() if f"{stem}.txt" in found}
    if not lists:
        refuse_hidden_lists(folder, found)
    return lists


def _listed(folder: Path, found: Mapping[str, Found], lists: Mapping[Path, str]) -> dict[str, str]:
    """Return the splits as defined by lists. Files that no list names are left out."""
    splits: dict[str, str] = {}
    for path, split in lists.items():
        try:
            # Opening a named pipe would block until somebody writes to it.
            if not os.path.isfile(path):
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


def drawn_splits(
    found: Mapping[str, Found], test_fraction: float, seed: int, group_by: str | None = None
) -> dict[str, str]:
    """Draw a test split at random, as a share of each class. Shapes of one group stay together.

    A file that is added to a class or removed moves at most one other shape of that class; with groups of different
    sizes, seldom more than one group.

    Raises:
        ConfigError: `group_by` is not a regular expression, matches no name, or puts all shapes into one group.
    """
    keys = _group_keys(found, group_by)
    groups: dict[str, list[str]] = defaultdict(list)
    for name, key in keys.items():
        groups[key].append(name)
    splits: dict[str, str] = {}
    for label in sorted({file.label for file in found.values()}):
        names = [name for name, file in found.items() if file.label == label]
        share = min(max(round(test_fraction * len(names)), 1), len(names) - 1) if test_fraction else 0
        # Groups that have shapes in another class too may be drawn already.
        tests = sum(splits.get(name) == "test" for name in names)
        undrawn, full = {keys[name] for name in names if name not in splits}, False
        for key in sorted(undrawn, key=partial(_rank, seed)):
            size = sum(found[name].label == label for name in groups[key])
            # Take a group that exceeds the share if the result is nearer to the share than without it, but never the
            # whole class: it needs a shape to train on.
            is_test = not full and 2 * (share - tests) >= size and tests + size < len(names)
            # Filling up with smaller groups would move those whenever another group grows.
            full |= tests > 0 and not is_test
            splits.update(dict.fromkeys(groups[key], "test" if is_test else "train"))
            tests += size if is_test else 0
    return {name: splits[name] for name in found}


def _rank(seed: int, key: str) -> bytes:
    """Return the rank of a group, a random number that depends on nothing but its key and the seed."""
    # A generator would draw all ranks anew for each added file: shapes would move from test to train, and weights
    # that were trained on the old split would be tested on shapes that they have seen.
    return hashlib.sha256(f"{seed}/{key}".encode()).digest()


def _group_keys(found: Mapping[str, Found], group_by: str | None) -> dict[str, str]:
    """Return the key of the group of each shape. Shapes with the same key go to the same split."""
    # A name that is a group by itself begins with a slash, which keeps it apart from any matched text.
    alone = {name: f"/{name}" for name in found}
    if group_by is None:
        return alone
    try:
        pattern = re.compile(group_by)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"group_by is {group_by!r:.60}, not a regular expression: {error}; correct it") from error
    matches = {name: pattern.search(name) for name in found}
    keys = alone | {name: str(match[1 if pattern.groups else 0]) for name, match in matches.items() if match}
    if keys == alone:
        example = printable(next(iter(found)))
        raise ConfigError(
            f"group_by is {group_by!r:.60}, which finds nothing in any name, such as {example}; correct it"
        )
    if len(set(keys.values())) == 1:
        raise ConfigError(f"group_by is {group_by!r:.60}, which puts all shapes into one group; correct it")
    return keys


def lost_classes(items: Sequence[Item], kept: Sequence[Item], class_names: Sequence[str]) -> list[str]:
    """Return notes on the classes that unreadable files have left without any shape, or without one in a split."""
    gone = {item.label for item in items} - {item.label for item in kept}
    notes = []
    if gone:
        labels = listed(class_names[label] for label in gone)
        notes.append(f"left out, as no training shape can be read: {labels}; correct the files and prepare again")
    before, after = ({(item.split, item.label) for item in some if item.label not in gone} for some in (items, kept))
    for lost in sorted({split for split, _ in before - after}):
        labels = listed(class_names[label] for split, label in before - after if split == lost)
        notes.append(f"no {lost} shape of {labels} is left, as none can be read; correct the files and prepare again")
    return notes


def check_classes(folder: Path, found: Mapping[str, Found], splits: Mapping[str, str]) -> list[str]:
    """Check the classes, and return notes for the user: names alike but for case, no test shape.

    Raises:
        DataError: a class without a training shape.
    """
    counts = Counter((found[name].label, split) for name, split in splits.items())
    classes = sorted({file.label for file in found.values()})
    by_case: dict[str, list[str]] = defaultdict(list)
    for label in classes:
        by_case[label.casefold()].append(label)
    alike = [twins for twins in by_case.values() if len(twins) > 1]
    case = f"; {listed(alike[0])} differ only in case: are they one class?" if alike else ""
    empty = [label for label in classes if not counts[label, "train"]]
    if empty:
        raise DataError(
            f"{folder}: empty class, no training shape of: {listed(empty)}{case or '; add some, or remove the class'}"
        )
    notes = [
        f"classes that differ only in case: {listed(twins)}; give them one name if they are one" for twins in alike
    ]
    untested = [label for label in classes if not counts[label, "test"]]
    if untested and len(untested) < len(classes):
        notes.append(f"no test shape of {listed(untested)}: accuracy ignores {'it' if len(untested) == 1 else 'them'}")
    return notes
