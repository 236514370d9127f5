"""Listing of the user's folders, with the same result on every operating system."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pc_ewa.errors import DataError

# Prefixes of ignored names: hidden files, and the metadata that macOS adds to archives.
IGNORED = (".", "__MACOSX")
Kind = Literal["folder", "file", "other"]


class Entry(NamedTuple):
    """An entry of a folder. `name` is normalised to Unicode NFC; `path` is spelled as on this file system."""

    name: str
    path: Path
    kind: Kind


def walk(
    folder: Path, name: str, extensions: tuple[str, ...], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, Path]]:
    """Yield the files with certain extensions at any depth below a folder. Symbolic links are followed.

    Args:
        folder: the folder to search.
        name: prefix of the yielded names.
        extensions: file extensions in lower case, with the dot.
        above: resolved paths of the enclosing folders, to detect a circle of links.

    Yields:
        The name, with "/" on every system, and the path of each file.

    Raises:
        DataError: a folder that cannot be listed, a dangling or circular link, or a folder or device whose name has
            one of the extensions.
    """
    # Only ancestors are compared: two links to the same folder are no circle, and both are read.
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"{folder} is a link to a folder that contains it; remove it")
    for entry in entries(folder):
        known = os.path.splitext(entry.name)[1].lower() in extensions
        if entry.kind == "folder" and not known:
            yield from walk(entry.path, f"{name}/{entry.name}", extensions, (*above, real))
        elif known and entry.kind == "file":
            yield f"{name}/{entry.name}", entry.path
        elif known:
            raise DataError(f"{entry.path} is not a file, whatever its name says; remove or rename it")


def entries(folder: Path) -> list[Entry]:
    """List the entries of a folder that are not hidden.

    Raises:
        DataError: a folder that cannot be listed, a dangling link, or names that are not valid on every system.
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
                # Linux keeps names as written, macOS may decompose "é" into two characters. Names decide the drawn
                # points and the drawn splits, so they must not depend on the system.
                found.append(Entry(unicodedata.normalize("NFC", entry.name), Path(entry.path), kind))
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror or error}; give access to it, or remove it") from error
    for name, number in Counter(entry.name for entry in found).items():
        # Python decodes bytes that are not UTF-8 as surrogates (category Cs). Cc are control characters.
        if not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            raise DataError(f"{str(folder)!a} has {name!r}, which is not a valid name on every system; rename it")
        if number > 1:
            raise DataError(f"{folder} has {name!r} twice, in two spellings of Unicode; rename one")
    return found
