"""Text of others, such as the names of classes in a file, made fit for one line of a terminal."""

import unicodedata
from collections import Counter
from collections.abc import Iterable


def printable(text: str, limit: int | None = 60) -> str:
    r"""Return the text on one line, without anything that a terminal obeys.

    Control characters, escape sequences, line breaks, marks that turn the direction of writing and all else that has no
    shape of its own become "?"; spaces of any width become one plain space each.

    Args:
        text: of any length.
        limit: the most characters of the result, 5 or more; the middle of a longer text becomes "...". None for all.

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
    """Return the first of the names that is there twice, None if each is there once.

    Example:
        >>> doubled(["cup", "lamp", "cup"])
        'cup'
    """
    return next((name for name, number in Counter(names).items() if number > 1), None)
