"""HTML in which text stays text: what files and names hold is escaped where it goes in, once, here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from pc_ewa.text import printable


class Html(str):
    """A piece of a page that is HTML already; plain strings are text."""

    __slots__ = ()


def element(name: str, *content: str, **attributes: str | int) -> Html:
    """Make an element. Strings in `content` and all attributes are escaped; `class_` is "class", `data_x` is "data-x".

    Example:
        >>> element("td", "a < b", class_="wide")
        '<td class="wide">a &lt; b</td>'
    """
    names = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    written = "".join(f' {key}="{html.escape(clean(str(value)))}"' for key, value in names)
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def join(content: Iterable[str]) -> Html:
    """Join pieces; those that are not HTML are escaped."""
    return Html("".join(piece if isinstance(piece, Html) else html.escape(clean(piece)) for piece in content))


def clean(text: str) -> str:
    """Remove what turns the direction of writing and other marks without a shape; lines stay."""
    return "\n".join(printable(line, None) for line in text.split("\n"))


def table(rows: Sequence[Sequence[str]], class_: str = "") -> Html:
    """Make a table whose first row and column are headings; it scrolls by itself where it is too wide."""
    head, *body = rows
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    lines = (
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in body
    )
    whole = element("table", element("thead", top), element("tbody", *lines), class_=class_ or "plain")
    return element("div", whole, class_="scroll")


def section(title: str, *content: str) -> Html:
    """Make a section with a heading."""
    return element("section", element("h2", title), *content)


def markdown(text: str) -> Html:
    """Show the tables, lists and lines that our comparisons write in Markdown."""
    pieces: list[str] = []
    rows: list[list[str]] = []
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
