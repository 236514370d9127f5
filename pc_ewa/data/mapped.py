"""A memory-mapped data file that detects changes by other processes."""

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pc_ewa.errors import DataError


class MappedFile:
    """A file whose arrays are memory-mapped, with a check that it has not changed.

    Reading a page behind the end of a file that shrank ends the process with SIGBUS and no message. Data that another
    process writes into the file would be trained on unnoticed. A file that is replaced by a rename stays mapped as it
    was, because the mapping holds the old inode.

    Args:
        path: the file to map.
        shown: the path to print in messages.
    """

    def __init__(self, path: Path, shown: Path) -> None:
        self.shown = shown
        # `fstat` of an open descriptor describes the mapped inode, even after the name was given to another file.
        # O_BINARY exists on Windows only.
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._before = self._state()

    def array(self, dtype: DTypeLike, offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """Map an array copy-on-write: an accidental write changes this process alone, not the file."""
        # np.memmap duplicates the descriptor for the mapping, so `closefd=False` keeps ours open for `check`.
        with os.fdopen(self._descriptor, "rb", closefd=False) as file:
            return np.memmap(file, dtype, "c", offset, shape)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as None, because pickling an array copies it to memory, where it cannot change."""
        return type(None), ()

    def check(self) -> None:
        """Raise if the file was written to or truncated since it was opened. A call takes a microsecond.

        Raises:
            DataError: the file changed.
        """
        if (now := self._state()) != self._before:
            how = f"shrank from {self._before[0]:,} to {now[0]:,} bytes" if now[0] < self._before[0] else "was changed"
            raise DataError(
                f"{self.shown} {how} while it was in use; put it back and start again: a new version needs another "
                "name, or must replace the old one as a whole (mv)"
            )

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns
