"""Progress on a terminal; nothing moves when the output is a file."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Terminal:
    """The terminal on stderr, to draw on: one that is closed ends no work."""

    def write(self, text: str) -> None:
        """Write, if the terminal is still there."""
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """Show what was written."""
        with suppress(OSError):
            sys.stderr.flush()


def bar(title: str, total: int, *, done: int = 0, show: bool = True) -> "tqdm[None]":
    """Return a bar that counts steps up to `total`, on a terminal only."""
    drawn = show and sys.stderr.isatty()
    return tqdm(total=total, initial=done, desc=title, unit="step", file=Terminal(), disable=not drawn)


def progress(items: Sequence[T], title: str, *, show: bool = True) -> Iterable[T]:
    """Iterate with a bar that appears once the loop has run for two seconds, on a terminal only."""
    drawn = show and sys.stderr.isatty()
    return tqdm(items, title, delay=2, leave=False, file=Terminal(), disable=not drawn)
