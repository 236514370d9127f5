"""Damage files as disks, networks and people do."""

import os
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from pc_ewa.errors import DataError

Edits = list[tuple[str, float, bytes]]

# What to do, where (0 to 1), and with which bytes.
EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "insert", "delete", "cut"]), st.floats(0, 1), st.binary(min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: Edits, within: int | None = None) -> bytes:
    """Overwrite, insert, delete or cut off bytes, among the first `within` or all."""
    for kind, where, new in edits:
        at = int(where * min(len(content), len(content) if within is None else within))
        skip = {"flip": len(new), "insert": 0, "delete": len(new), "cut": len(content)}[kind]
        content = content[:at] + (new if kind in ("flip", "insert") else b"") + content[at + skip :]
    return content


def attempt(call: Callable[[], object]) -> object:
    """Return what the call returns, or the DataError it raises, which must be one line; other exceptions pass."""
    try:
        return call()
    except DataError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017, both outcomes are fine
        return error


def folder_instead(path: Path) -> None:
    """Put a folder in the place of a file."""
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    """Put a pipe in the place of a file: opening it would wait for ever."""
    path.unlink()
    os.mkfifo(path)


def dangling(path: Path) -> None:
    """Put a link to nothing in the place of a file."""
    path.unlink()
    path.symlink_to("nowhere")


def replace(old: bytes, new: bytes) -> Callable[[Path], object]:
    """Return a damage that replaces some bytes, once."""
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new, 1))


def write(content: bytes | str) -> Callable[[Path], object]:
    """Return a damage that writes other contents."""
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)
