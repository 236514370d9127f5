"""Sanitising of untrusted text, such as the names of classes in a file, for one line of a terminal."""

import unicodedata
from collections import Counter
from collections.abc import Iterable


def printable(text: str, limit: int | None = 60) -> str:
    r"""Return the text on one line, without terminal control.

    Control characters, line breaks, marks of the writing direction and all other characters that are not printable
    become "?". A space of any width becomes one plain space.

    Args:
        text: text of any length.
        limit: largest number of characters, 5 or more. The middle of a longer text becomes "...". None sets no limit.

    Example:
        >>> printable("chair\x1b[31m")
        'chair?[31m'
        >>> printable("a" * 50 + "b" * 50, limit=11)
        'aaaaaa...bb'
    """
    if limit is not None and len(text) > limit:
        end = (limit - 3) // 4
        text = f"{text[: limit - 3 - end]}...{text[len(text) - end :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if unicodedata.category(c) == "Zs" else "?" for c in text)


def doubled(names: Iterable[str]) -> str | None:
    """Return the first name that occurs more than once. None means that all names are distinct.

    Example:
        >>> doubled(["cup", "lamp", "cup"])
        'cup'
    """
    return next((name for name, number in Counter(names).items() if number > 1), None)
