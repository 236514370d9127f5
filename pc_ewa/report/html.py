"""HTML generation with escaping: every plain string is escaped exactly once, when it becomes part of an element."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from pc_ewa.text import printable


class Html(str):
    """A string that is HTML already. Plain strings are text, and are escaped."""

    __slots__ = ()


def element(name: str, *content: str, **attributes: str | int) -> Html:
    """Return an element. Plain strings in `content` and all attributes are escaped.

    The attribute `class_` becomes "class", and `data_x` becomes "data-x".

    Example:
        >>> element("td", "a < b", class_="wide")
        '<td class="wide">a &lt; b</td>'
    """
    names = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    written = "".join(f' {key}="{html.escape(clean(str(value)))}"' for key, value in names)
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def join(content: Iterable[str]) -> Html:
    """Join pieces of a page. Plain strings are escaped."""
    return Html("".join(piece if isinstance(piece, Html) else html.escape(clean(piece)) for piece in content))


def clean(text: str) -> str:
    """Remove control characters and marks that change the direction of writing, and keep line breaks."""
    # A name in a file may contain such marks, and would then display as another name.
    return "\n".join(printable(line, None) for line in text.split("\n"))


def table(rows: Sequence[Sequence[str]], class_: str = "") -> Html:
    """Return a table whose first row and column are headings. A table that is too wide scrolls separately."""
    head, *body = rows
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    lines = (
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in body
    )
    whole = element("table", element("thead", top), element("tbody", *lines), class_=class_ or "plain")
    return element("div", whole, class_="scroll")


def section(title: str, *content: str) -> Html:
    """Return a section with a heading."""
    return element("section", element("h2", title), *content)


def markdown(text: str) -> Html:
    """Convert the Markdown of our comparisons to HTML: tables, list items and lines. Nothing else is supported."""
    pieces: list[str] = []
    rows: list[list[str]] = []
    # The empty line at the end closes a table on the last line.
    for line in [*text.replace("**", "").splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not all(set(cell) <= set("-: ") for cell in cells):
                rows.append(cells)
            continue
        if rows:
            pieces.append(table(rows))
            rows = []
        if line.strip():
            pieces.append(element("p", line.removeprefix("- ")))
    return join(pieces)
