"""Progress on a terminal; nothing moves when the output is a file."""

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Sequence[T], title: str, *, show: bool = True) -> Iterable[T]:
    """Iterate with a bar that appears once the loop has run for two seconds, on a terminal only."""
    return tqdm(items, title, delay=2, leave=False, disable=not (show and sys.stderr.isatty()))
