"""The accepted names of splits, and detection of similar names.

A folder "test_set" that is taken for a class, or a list that is ignored, would spoil a result without an error.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from pc_ewa.errors import DataError
from pc_ewa.text import printable

# Accepted names of folders and lists, in any case. "eval" is the test split, or validation if there is also a "test".
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
}
# Words beside the name of a split that do not name a class, as in "test-set" or "data_train".
_PLAIN_WORDS = {"", "data", "split", "part", "list", "files", "shapes", "clouds", "models", "my", "the"}
_LISTED = 5  # names in a message


def refuse_hidden_splits(folder: Path, parts: Iterable[Sequence[str]]) -> None:
    """Refuse folders that are probably splits, but do not have an accepted name.

    Folders such as high/ and low/ in every class are sound, so only folders whose names resemble splits are refused.

    Args:
        folder: folder of all shapes, for the message.
        parts: path of each shape in it, split at each "/".

    Raises:
        DataError: splits above the classes, inside them, or in place of them.
    """
    below: dict[str, set[str]] = defaultdict(set)
    for top, second, *deeper in parts:
        below[top].update([second] if deeper else [])
    above = _look_like_splits(below)
    if _are_splits(above) and not any(below.values()):
        raise DataError(f"{folder}: {listed(below)} are splits, not classes; put a folder for each class into them")
    common = set.intersection(*below.values())
    if len(below) > 1 and any(above.values()) and any(name.lower() not in SPLITS for name in common):
        raise DataError(
            f"{folder}: {listed(below)} have the same folders in them, {listed(common)}; if these are the classes, "
            "call the folders above them train, val and test, else put the files of each class in one folder"
        )
    for top, inside in below.items():
        if _are_splits(_look_like_splits(inside)) and not SPLITS.keys() & {name.lower() for name in inside}:
            raise DataError(
                f"{folder / printable(top)}: {listed(inside)} look like splits; call them train, val and test"
            )


def refuse_hidden_lists(folder: Path, names: Iterable[str]) -> None:
    """Refuse text files beside the classes that are probably lists of splits, but do not have an accepted name.

    Raises:
        DataError: two or more files that look like lists of different splits.
    """
    told = _look_like_splits([name for name in names if name.lower().endswith(".txt")], ending=4)
    lists: dict[str, str | None] = {name: split for name, split in told.items() if split}
    if _are_splits(lists):
        raise DataError(
            f"{folder}: {listed(lists)} look like lists of splits; call them train.txt, val.txt and test.txt"
        )


def _look_like_splits(names: Iterable[str], ending: int = 0) -> dict[str, str | None]:
    """Return the split that each name denotes. None means that a name has other words too, or no split."""
    # Words that all candidates share do not count: "scans_train" and "scans_test" are a pair of splits.
    words = {name: _words(name[: len(name) - ending]) for name in names}
    candidates = [mine for mine in words.values() if mine & SPLITS.keys()]
    shared = set.intersection(*candidates) - SPLITS.keys() if len(candidates) > 1 else set()
    return {name: SPLITS.get(min(told)) if len(told := mine - shared) == 1 else None for name, mine in words.items()}


def _are_splits(told: dict[str, str | None]) -> bool:
    return all(told.values()) and len(set(told.values())) > 1


def _words(name: str) -> set[str]:
    """Return the words of a name without plain words and numbers: {"test"} of "TestSet_2048"."""
    words = (word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name))
    return {word.removesuffix("set").removesuffix("list") for word in words} - _PLAIN_WORDS


def listed(names: Iterable[str]) -> str:
    """List the first names for a message."""
    some = sorted(names)
    more = f" and {len(some) - _LISTED} more" if len(some) > _LISTED else ""
    return ", ".join(printable(name, 40) for name in some[:_LISTED]) + more
