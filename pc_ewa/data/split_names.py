"""The names of splits, and what looks like one: taken for a class or passed over, it would spoil a result unseen."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from pc_ewa.errors import DataError
from pc_ewa.text import printable

# What folders and lists may be called, in any case. "eval" is the test, or validation where there is a test as well.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
}
# Words beside the name of a split that say nothing of a class, as in "test-set" or "data_train".
_PLAIN_WORDS = {"", "data", "split", "part", "list", "files", "shapes", "clouds", "models", "my", "the"}
_LISTED = 5  # names in a message


def refuse_hidden_splits(folder: Path, parts: Iterable[Sequence[str]]) -> None:
    """Refuse folders that must be those of splits, but are not called as such.

    Folders such as high/ and low/ in every class are sound, so the names must say that these are splits.

    Args:
        folder: of all shapes, for the message.
        parts: the path of each shape in it, cut at each "/".

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
    """Refuse lists of splits, text files beside the classes, that are not called as such.

    Raises:
        DataError: two or more that look like lists of different splits.
    """
    told = _look_like_splits([name for name in names if name.lower().endswith(".txt")], ending=4)
    lists: dict[str, str | None] = {name: split for name, split in told.items() if split}
    if _are_splits(lists):
        raise DataError(
            f"{folder}: {listed(lists)} look like lists of splits; call them train.txt, val.txt and test.txt"
        )


def _look_like_splits(names: Iterable[str], ending: int = 0) -> dict[str, str | None]:
    """Return the split that each name tells beside plain words, numbers and what all share, as in scans_train."""
    words = {name: _words(name[: len(name) - ending]) for name in names}
    candidates = [mine for mine in words.values() if mine & SPLITS.keys()]
    shared = set.intersection(*candidates) - SPLITS.keys() if len(candidates) > 1 else set()
    return {name: SPLITS.get(min(told)) if len(told := mine - shared) == 1 else None for name, mine in words.items()}


def _are_splits(told: dict[str, str | None]) -> bool:
    return all(told.values()) and len(set(told.values())) > 1


def _words(name: str) -> set[str]:
    """Return the words of a name but for the plain ones and numbers: {"test"} of "TestSet_2048"."""
    words = (word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name))
    return {word.removesuffix("set").removesuffix("list") for word in words} - _PLAIN_WORDS


def listed(names: Iterable[str]) -> str:
    """List the first names for a message."""
    some = sorted(names)
    more = f" and {len(some) - _LISTED} more" if len(some) > _LISTED else ""
    return ", ".join(printable(name, 40) for name in some[:_LISTED]) + more
