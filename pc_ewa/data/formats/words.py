"""Decoding of text files with byte order marks, and conversion of words to numbers."""

import codecs
import re

import numpy as np
from numpy.typing import NDArray

# UTF-32 comes first, because the little-endian mark of UTF-16 is a prefix of that of UTF-32.
_WIDE = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BEGINNING = 1000  # bytes that are searched for zeros, to distinguish text from binary data
# Spellings of NaN by Microsoft C, AIX and C99: 1.#QNAN, -1.#IND00, 1.#J, NaNQ, -nan(ind).
_NAN = re.compile(rb"[+-]?(\d\.#(ind|[qs]nan|j|r)\d*|nan[qs]|[qs]?nan(\(\w*\))?)", re.IGNORECASE)
_INFINITE = re.compile(rb"([+-]?)\d\.#inf\w*", re.IGNORECASE)
_COMMENT = re.compile(rb"(?<!\d\.)#.*|#(?!ind|[qs]nan|inf|j|r).*", re.IGNORECASE | re.DOTALL)


def is_marked(data: bytes) -> bool:
    """Return True if the data begins with a byte order mark, so that all of it is text."""
    return data.startswith((codecs.BOM_UTF8, *(mark for mark, _ in _WIDE)))


def as_text(data: bytes) -> bytes:
    """Return a text without byte order marks, in UTF-8 or in its original encoding that extends ASCII.

    UTF-16 and UTF-32 are recognised by the mark at the beginning. Marks of UTF-8 are removed everywhere, because
    concatenated files have them in the middle.

    Raises:
        ValueError: not in the encoding of its mark, or zero bytes, which text does not have.
    """
    for mark, encoding in _WIDE:
        if data.startswith(mark):
            try:
                data = data.decode(encoding).encode()
            except UnicodeError as error:
                raise ValueError(
                    f"its byte order mark is that of {encoding.upper()}, which it is not: {error}"
                ) from error
            break
    if b"\0" in data[:_BEGINNING]:
        raise ValueError("it has bytes of zero: it is binary, or UTF-16 without a byte order mark; store it as UTF-8")
    return data.replace(codecs.BOM_UTF8, b"")


def without_comment(line: bytes) -> bytes:
    """Remove a comment that begins with #, except the # in 1.#QNAN and similar words."""
    return _COMMENT.sub(b"", line) if b"#" in line else line


def number(word: bytes) -> float:
    """Convert a word as `float` does, including the spellings of Microsoft C for NaN and infinity.

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
    """Convert words as `number` does."""
    # `map(float)` runs in C. The slow path is needed only for the rare files with unusual words.
    try:
        return np.fromiter(map(float, words), np.float64, len(words))
    except ValueError:
        return np.fromiter(map(number, words), np.float64, len(words))
