"""Small files and folders of published datasets: read whole but never without bound, each problem in one line."""

import os
from collections.abc import Iterable
from pathlib import Path

from pc_ewa.errors import DataError

FRESH = "get a fresh copy of the dataset"

_LIST_BYTES = 64 * 2**20  # the longest published list has 2 MB


def read_file(path: str | Path, limit: int) -> bytes:
    """Return the contents of a file of at most `limit` bytes.

    Raises:
        DataError: missing, a folder or a device, larger than that, or not readable.
    """
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise DataError(f"{path} is missing, or no file; {FRESH}")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}; make it readable, or {FRESH}") from error
    if len(content) > limit:
        raise DataError(f"{path} has more than {limit} bytes, far too many for what it should be; {FRESH}")
    return content


def read_text(path: str | Path, limit: int = _LIST_BYTES) -> str:
    """Return the contents of a UTF-8 file; DataError as `read_file`, and for other encodings."""
    try:
        return read_file(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text: byte {error.start} is not UTF-8; {FRESH}") from error


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a text file without blank ones and without white space around them."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def names_in(folder: str | Path) -> set[str]:
    """Return the names in a folder; one call instead of one per shape, which takes minutes on network drives.

    Raises:
        DataError: no folder, or not readable.
    """
    try:
        return set(os.listdir(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot list the folder {folder}: {one_line(error)}; {FRESH}") from error


def refuse_missing(path: str | Path, names: Iterable[str], missing: Iterable[str]) -> None:
    """Refuse a list with names of which there is no file; `path` is the list.

    Raises:
        DataError: how many, and the first.
    """
    absent = list(missing)
    if absent:
        raise DataError(
            f"{path} names {len(absent)} of {len(list(names))} shapes that are missing, the first: {absent[0]}; "
            "unpack the whole dataset, or take them out of the list"
        )


def refuse_repeated(path: str | Path, names: Iterable[str], seen: set[str]) -> None:
    """Refuse a name that an earlier list has or that is in this one twice, then add the names to `seen`.

    Raises:
        DataError: the first such name; the same shape in train and test would make the test worthless.
    """
    for name in names:
        if name in seen:
            raise DataError(
                f"{path} names {name}, which is there already, here or in another split; remove one of them"
            )
        seen.add(name)


def shown(text: object) -> str:
    """Return any text as a message can have it: in quotes, on one line, not too long."""
    quoted = repr(text)
    return quoted if len(quoted) <= 80 else f"{quoted[:77]}..."


def one_line(error: BaseException) -> str:
    """Return the message of an exception on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
