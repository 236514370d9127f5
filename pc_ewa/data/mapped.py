"""A data file whose arrays are mapped into memory and not read, watched for changes by others."""

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pc_ewa.errors import DataError


class MappedFile:
    """Maps arrays of a file, and tells when it is no longer what it was.

    A page behind the end of a file that shrank would end the process without a word (SIGBUS), and what others write
    into the file would be trained on unseen. A file that is replaced by another of its name stays mapped as it was.

    Args:
        path: of the file.
        shown: the name the user knows it by, for messages.
    """

    def __init__(self, path: Path, shown: Path) -> None:
        self.shown = shown
        # Open as long as this object lives: it answers for the mapped file, also when that has lost its name.
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._before = self._state()

    def array(self, dtype: DTypeLike, offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """Map an array; what is written to it, by mistake, stays in this process."""
        with os.fdopen(self._descriptor, "rb", closefd=False) as file:
            return np.memmap(file, dtype, "c", offset, shape)

    def __reduce__(self) -> tuple[Any, ...]:
        """Become None in a copy or a pickle: arrays are copied to memory there."""
        return type(None), ()

    def check(self) -> None:
        """Refuse a file that was written to or cut since it was opened; a call takes a microsecond.

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
