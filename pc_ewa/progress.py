"""Progress bars on a terminal. Nothing is drawn if stderr is not a terminal."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Terminal:
    """The terminal on stderr as a file. Errors are ignored, so that a closed terminal does not end training."""

    def write(self, text: str) -> None:
        """Write text, if the terminal still exists."""
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """Flush the written text."""
        with suppress(OSError):
            sys.stderr.flush()


def bar(title: str, total: int, *, done: int = 0, show: bool = True) -> "tqdm[None]":
    """Return a progress bar that counts steps up to `total`."""
    drawn = show and sys.stderr.isatty()
    return tqdm(total=total, initial=done, desc=title, unit="step", file=Terminal(), disable=not drawn)


def progress(items: Sequence[T], title: str, *, show: bool = True) -> Iterable[T]:
    """Iterate over items with a progress bar that appears after two seconds."""
    drawn = show and sys.stderr.isatty()
    return tqdm(items, title, delay=2, leave=False, file=Terminal(), disable=not drawn)
