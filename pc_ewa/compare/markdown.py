"""Tables of Markdown."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    r"""Return the lines of a Markdown table, aligned for reading as text. The first row is the header.

    Example:
        >>> table([["name", "x"], ["a|b", "1"]])
        ['| name | x   |', '|------|-----|', '| a\\|b | 1   |']
    """
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def filled(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Drop the columns that are empty in every row but the header."""
    kept = [index for index, column in enumerate(zip(*rows, strict=True)) if any(column[1:])]
    return [[row[index] for index in kept] for row in rows]
