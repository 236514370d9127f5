"""Folders of the user's own files, listed alike on every system."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pc_ewa.errors import DataError

IGNORED = (".", "__MACOSX")  # how the names begin of what is hidden, or was left behind by a system
Kind = Literal["folder", "file", "other"]


class Entry(NamedTuple):
    """An entry of a folder: its name in the one spelling of Unicode that we use, its path as this system spells it."""

    name: str
    path: Path
    kind: Kind


def walk(
    folder: Path, name: str, extensions: tuple[str, ...], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, Path]]:
    """Yield the files with certain extensions at any depth below a folder; links are followed.

    Args:
        folder: where.
        name: how the names of what is in it begin.
        extensions: in small letters, with the point.
        above: the folders that this one lies in, which a link must not lead back to.

    Yields:
        The name, with "/" on every system, and the path of each.

    Raises:
        DataError: a folder that cannot be listed, a link to nothing or in a circle, what is no file but named as one.
    """
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"{folder} is a link to a folder that it lies in; remove it")
    for entry in entries(folder):
        known = os.path.splitext(entry.name)[1].lower() in extensions
        if entry.kind == "folder" and not known:
            yield from walk(entry.path, f"{name}/{entry.name}", extensions, (*above, real))
        elif known and entry.kind == "file":
            yield f"{name}/{entry.name}", entry.path
        elif known:
            raise DataError(f"{entry.path} is not a file, whatever its name says; remove or rename it")


def entries(folder: Path) -> list[Entry]:
    """List what lies in a folder and is not hidden.

    Raises:
        DataError: a folder that cannot be listed, a link to nothing, or names that not every system can have.
    """
    found = []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                if entry.name.startswith(IGNORED):
                    continue
                if entry.is_symlink() and not os.path.exists(entry.path):
                    raise DataError(f"{entry.path} is a link to nothing; mend or remove it")
                kind: Kind = "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
                found.append(Entry(unicodedata.normalize("NFC", entry.name), Path(entry.path), kind))
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror or error}; give access to it, or remove it") from error
    for name, number in Counter(entry.name for entry in found).items():
        # Bytes that are not UTF-8 come as surrogates, Cs.
        if not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            raise DataError(f"{str(folder)!a} has {name!r}, which is no name on every system; rename it")
        if number > 1:
            raise DataError(f"{folder} has {name!r} twice, in two spellings of Unicode; rename one")
    return found
