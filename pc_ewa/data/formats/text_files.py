"""Bounded reading of small files and folders of published datasets. Each problem is a DataError of one line."""

import os
from collections.abc import Iterable
from pathlib import Path

from pc_ewa.errors import DataError

FRESH = "get a fresh copy of the dataset"

_LIST_BYTES = 64 * 2**20  # the longest published list has 2 MB


def read_file(path: str | Path, limit: int) -> bytes:
    """Return the contents of a file of at most `limit` bytes.

    Raises:
        DataError: missing, a folder or a device, larger than `limit`, or not readable.
    """
    try:
        # Opening a named pipe would block until somebody writes to it.
        if not os.path.isfile(path):
            raise DataError(f"{path} is missing, or not a file; {FRESH}")
        with open(path, "rb") as file:
            # One byte more detects a file that exceeds the limit; its size may change between `stat` and `read`.
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}; make it readable, or {FRESH}") from error
    if len(content) > limit:
        raise DataError(f"{path} has more than {limit} bytes, far too many for what it should be; {FRESH}")
    return content


def read_text(path: str | Path, limit: int = _LIST_BYTES) -> str:
    """Return the contents of a UTF-8 file. Raises DataError as `read_file`, and for other encodings."""
    try:
        return read_file(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text: byte {error.start} is not UTF-8; {FRESH}") from error


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a text file, stripped, without blank lines."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def names_in(folder: str | Path) -> set[str]:
    """Return the names in a folder.

    One call replaces a test per shape, which takes minutes on network drives.

    Raises:
        DataError: not a folder, or not readable.
    """
    try:
        return set(os.listdir(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot list the folder {folder}: {one_line(error)}; {FRESH}") from error


def refuse_missing(path: str | Path, names: Iterable[str], missing: Iterable[str]) -> None:
    """Refuse the list `path` if some of its names have no file.

    Raises:
        DataError: the message has the number of missing files, and the first one.
    """
    absent = list(missing)
    if absent:
        raise DataError(
            f"{path} names {len(absent)} of {len(list(names))} shapes that are missing, the first: {absent[0]}; "
            "unpack the whole dataset, or take them out of the list"
        )


def refuse_repeated(path: str | Path, names: Iterable[str], seen: set[str]) -> None:
    """Refuse a name that is repeated in this list or occurs in an earlier one, and add the names to `seen`.

    Raises:
        DataError: the message has the first such name.
    """
    # The same shape in train and test would inflate the score.
    for name in names:
        if name in seen:
            raise DataError(
                f"{path} names {name}, which is there already, here or in another split; remove one of them"
            )
        seen.add(name)


def shown(text: object) -> str:
    """Return a text for a message: quoted, on one line, at most 80 characters."""
    quoted = repr(text)
    return quoted if len(quoted) <= 80 else f"{quoted[:77]}..."


def one_line(error: BaseException) -> str:
    """Return the message of an exception on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
