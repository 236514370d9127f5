"""The sheet that a scene is drawn on: title, legend and places of the panels, which a renderer fills."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pc_ewa.errors import ConfigError
from pc_ewa.files import write_whole
from pc_ewa.text import printable
from pc_ewa.viz.scene import Scene

DPI = 100
_HEADER, _LINE, _LEGEND_LINE, _LETTER = 40, 18, 24, 7  # pixels
_SMALLEST = 360  # pixels across: a title fits


class Sheet:
    """A white figure with an empty square of pixels for each panel.

    Args:
        scene: what is to be drawn.
        side: pixels of a panel; None for 640 where there is one, 420 for two to four, 300 for more.

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
        titles = [_lines(panel.title, self.side) for panel in scene.panels]
        band = _LINE * max(map(len, titles)) + 4 if any(titles) else 0
        self.width = max(columns * self.side, _SMALLEST)
        legend = list(scene.legend.items())
        per_line = max(1, int(self.width / (_LETTER * max((len(name) for name, _ in legend), default=1) + 44)))
        foot = _LEGEND_LINE * -(-len(legend) // per_line) + 8 if legend else 0
        self.height = _HEADER + rows * (self.side + band) + foot
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        title = _lines(scene.title, self.width)
        self.figure.text(0.5, 1 - 22 / self.height, title[0] if title else "", ha="center", va="center", size=13)
        left = (self.width - columns * self.side) / 2
        self.axes = []
        for index, lines in enumerate(titles):
            row, column = divmod(index, columns)
            top = _HEADER + row * (self.side + band)
            x, y = left + column * self.side, self.height - top - band - self.side
            self.figure.text(
                (x + self.side / 2) / self.width,
                (y + self.side + 6) / self.height,
                "\n".join(lines),
                ha="center",
                va="baseline",
                size=10,
                linespacing=1.2,
            )
            self.axes.append(self._square(x, y))
        if legend:
            self._add_legend(legend, per_line)

    def save(self, path: Path) -> None:
        """Write the figure, see `save_figure`."""
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
        labels = [literal(name) for name, _ in legend]
        options: dict[str, Any] = {"frameon": False, "fontsize": 10, "handletextpad": 0.2, "columnspacing": 1.4}
        self.figure.legend(handles, labels, loc="lower center", ncols=per_line, borderpad=0.1, **options)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all, as the ending of the name says: png, svg or pdf."""
    from matplotlib import rc_context

    kind = path.suffix[1:].lower()
    # Without a date and with fixed ids, the same scene makes the same file.
    data = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "pc-ewa"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in letters that the font lacks
        write_whole(path, lambda file: figure.savefig(file, format=kind, dpi=DPI, metadata=data))


def check_picture(path: Path) -> None:
    """Refuse a name that no renderer writes, or a place that cannot be written, before anything is computed.

    Raises:
        ConfigError: such a name or place.
    """
    kinds = (".png", ".svg", ".pdf", ".html")
    if path.suffix.lower() not in kinds:
        raise ConfigError(f"{path} ends in none of {' '.join(kinds)}; choose such a name, as in picture.png")
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else "is in a folder that is not there"
        raise ConfigError(f"{path} {what}; choose another place")


def point_pixels(count: int, side: int) -> float:
    """Choose the diameter in pixels at which `count` points fill a panel but do not hide each other."""
    return float(min(9.0, max(2.0, 0.5 * side / count**0.5)))


def literal(text: str, limit: int = 60) -> str:
    """Let a line be read as it is: between two $ matplotlib would read a formula."""
    return printable(text, limit).replace("$", r"\$")


def _lines(title: str, width: float) -> list[str]:
    """Make each line of a title fit."""
    return [literal(line, max(12, int(width / _LETTER))) for line in title.split("\n") if line]
