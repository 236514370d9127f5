"""Text of files: marks of its encoding in front, and its words as numbers."""

import codecs
import re

import numpy as np
from numpy.typing import NDArray

_WIDE = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BEGINNING = 1000  # bytes, enough to tell text from what is not
# As programs of Microsoft C, of AIX and of C99 write what is not a number: 1.#QNAN, -1.#IND00, 1.#J, NaNQ, -nan(ind).
_NAN = re.compile(rb"[+-]?(\d\.#(ind|[qs]nan|j|r)\d*|nan[qs]|[qs]?nan(\(\w*\))?)", re.IGNORECASE)
_INFINITE = re.compile(rb"([+-]?)\d\.#inf\w*", re.IGNORECASE)
_COMMENT = re.compile(rb"(?<!\d\.)#.*|#(?!ind|[qs]nan|inf|j|r).*", re.IGNORECASE | re.DOTALL)


def is_marked(data: bytes) -> bool:
    """Tell if a byte order mark is in front: then all that follows is text."""
    return data.startswith((codecs.BOM_UTF8, *(mark for mark, _ in _WIDE)))


def as_text(data: bytes) -> bytes:
    """Return a text as UTF-8, or whatever holds ASCII, without byte order marks.

    UTF-16 and UTF-32 are read where a mark in front tells them; joined files may have marks of UTF-8 anywhere.

    Raises:
        ValueError: not in the encoding that its mark tells, or bytes of zero, which no text has.
    """
    for mark, encoding in _WIDE:
        if data.startswith(mark):
            try:
                data = data.decode(encoding).encode()
            except UnicodeError as error:
                raise ValueError(f"its byte order mark tells {encoding.upper()}, but it is not: {error}") from error
            break
    if b"\0" in data[:_BEGINNING]:
        raise ValueError("it has bytes of zero: it is binary, or UTF-16 without a byte order mark; store it as UTF-8")
    return data.replace(codecs.BOM_UTF8, b"")


def without_comment(line: bytes) -> bytes:
    """Cut off what follows a #, unless it is in 1.#QNAN or its like."""
    return _COMMENT.sub(b"", line) if b"#" in line else line


def number(word: bytes) -> float:
    """Convert a word as `float` does, and the spellings of Windows for NaN and infinity as well.

    Raises:
        ValueError: not a number.
    """
    try:
        return float(word)
    except ValueError:
        if _NAN.fullmatch(word):
            return float("nan")
        if match := _INFINITE.fullmatch(word):
            return float(match[1] + b"inf")
        raise


def numbers(words: list[bytes]) -> NDArray[np.float64]:
    """Convert words as `number` does, quickly."""
    try:
        return np.fromiter(map(float, words), np.float64, len(words))
    except ValueError:
        return np.fromiter(map(number, words), np.float64, len(words))
