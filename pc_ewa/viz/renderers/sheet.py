"""The sheet that a scene is drawn on: title, legend and an empty square for each panel, which a renderer fills."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pc_ewa.errors import ConfigError
from pc_ewa.files import write_whole
from pc_ewa.text import printable
from pc_ewa.viz.scene import Scene

DPI = 100
_TITLE, _CAPTION = 13, 10  # sizes of letters in typographic points
_TITLE_LINE, _LINE, _LEGEND_LINE, _GAP = 24, 18, 24, 8  # pixels
_MARK = 44  # pixels that the dot of an entry of the legend and the space behind the entry take
_LONGEST, _SHORTEST = 200, 8  # letters: of a line of a title, and of what is left of a word
_SMALLEST = 240  # pixels across: a title fits in few lines


class Sheet:
    """A white figure with an empty square of pixels for each panel.

    Args:
        scene: the scene to draw.
        side: pixels of a panel. None is 640 for one panel, 420 for two to four, and 300 for more.

    Attributes:
        figure: the matplotlib figure.
        axes: one per panel, from -1 to 1 both ways, without ticks.
        side: pixels of a panel.
    """

    def __init__(self, scene: Scene, side: int | None = None) -> None:
        from matplotlib.figure import Figure  # half a second, for those who draw

        rows, columns = scene.grid
        many = len(scene.panels)
        self.side = side or (640 if many == 1 else 420 if many <= 4 else 300)
        # All lengths are in pixels and known before drawing, so that a panel has exactly `side` pixels in the file.
        captions = [_lines(panel.title, self.side - 2 * _GAP, _CAPTION) for panel in scene.panels]
        band = _LINE * max(map(len, captions)) + 4 if any(captions) else 0
        self.width = max(columns * self.side, _SMALLEST)
        title = _lines(scene.title, self.width - 2 * _GAP, _TITLE)
        header = _TITLE_LINE * len(title) + 2 * _GAP
        legend = [(_fitted(printable(n), self.width - _MARK, _CAPTION), c) for n, c in scene.legend.items()]
        widest = max((_width(name, _CAPTION) for name, _ in legend), default=0.0)
        per_line = max(1, int(self.width / (widest + _MARK)))
        foot = _LEGEND_LINE * -(-len(legend) // per_line) + _GAP if legend else 0
        self.height = header + rows * (self.side + band) + foot
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        middle = 1 - header / 2 / self.height
        self.figure.text(0.5, middle, "\n".join(title), ha="center", va="center", size=_TITLE, linespacing=1.3)
        left = (self.width - columns * self.side) / 2
        self.axes = []
        for index, lines in enumerate(captions):
            row, column = divmod(index, columns)
            top = header + row * (self.side + band)
            x, y = left + column * self.side, self.height - top - band - self.side
            self.figure.text(
                (x + self.side / 2) / self.width,
                (y + self.side + 6) / self.height,
                "\n".join(lines),
                ha="center",
                va="baseline",
                size=_CAPTION,
                linespacing=1.2,
            )
            self.axes.append(self._square(x, y))
        if legend:
            self._add_legend(legend, per_line)

    def save(self, path: Path) -> None:
        """Write the figure to a file, see `save_figure`."""
        save_figure(self.figure, path)

    def _square(self, x: float, y: float) -> Any:
        place = (x / self.width, y / self.height, self.side / self.width, self.side / self.height)
        axes = self.figure.add_axes(place)
        axes.set(xlim=(-1, 1), ylim=(-1, 1))
        axes.set_axis_off()
        return axes

    def _add_legend(self, legend: list[tuple[str, Any]], per_line: int) -> None:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], marker="o", linestyle="", markersize=8, color=colour) for _, colour in legend]
        names = [literal(name) for name, _ in legend]
        options: dict[str, Any] = {"frameon": False, "fontsize": _CAPTION, "handletextpad": 0.2, "columnspacing": 1.4}
        self.figure.legend(handles, names, loc="lower center", ncols=per_line, borderpad=0.1, **options)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, SVG or PDF by the extension of the name, completely or not at all."""
    from matplotlib import rc_context

    kind = path.suffix[1:].lower()
    # Without a date and with fixed ids, the same scene gives the same bytes.
    data = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "pc-ewa"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in letters that the font lacks
        write_whole(path, lambda file: figure.savefig(file, format=kind, dpi=DPI, metadata=data))


def check_picture(path: Path) -> None:
    """Check, before anything is computed, that a renderer can write a file of this name in this place.

    Raises:
        ConfigError: an extension that no renderer writes, or a place that cannot be written.
    """
    kinds = (".png", ".svg", ".pdf", ".html")
    if path.suffix.lower() not in kinds:
        raise ConfigError(f"{path} ends in none of {' '.join(kinds)}; choose such a name, as in picture.png")
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else "is in a folder that is not there"
        raise ConfigError(f"{path} {what}; choose another place")


def point_pixels(count: int, side: int) -> float:
    """Return the diameter in pixels at which `count` points fill a panel without hiding each other."""
    return float(min(9.0, max(2.0, 0.5 * side / count**0.5)))


def literal(text: str, limit: int | None = 60) -> str:
    """Escape a line for matplotlib, which would read text between two $ as a formula."""
    return printable(text, limit).replace("$", r"\$")


def _lines(title: str, width: float, size: float) -> list[str]:
    """Wrap the lines of a title between words to at most `width` pixels. A longer word is shortened."""
    lines: list[str] = []
    for given in title.split("\n"):
        line = ""
        for word in printable(given, _LONGEST).split():
            if line and _width(f"{line} {word}", size) > width:
                lines.append(line)
                line = ""
            line = _fitted(f"{line} {word}".strip(), width, size)
        lines += [line] if line else []
    return [literal(line, None) for line in lines]


def _fitted(text: str, width: float, size: float) -> str:
    """Shorten a text in its middle until it is at most `width` pixels wide."""
    kept, short = len(text), text
    while kept > _SHORTEST and _width(short, size) > width:
        kept -= 1
        short = printable(text, kept)
    return short


def _width(text: str, size: float) -> float:
    """Return the width of a line of text in pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        typographic, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(typographic) * DPI / 72
