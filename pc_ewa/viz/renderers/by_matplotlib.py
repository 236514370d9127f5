"""Renderer for scenes and charts by matplotlib, which needs neither a display nor a GPU. Near points cover far ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pc_ewa.viz.camera import project
from pc_ewa.viz.colours import KINDS
from pc_ewa.viz.renderers.sheet import DPI, Sheet, literal, point_pixels
from pc_ewa.viz.scene import Chart, Scene


def draw_scenes(scenes: Sequence[tuple[Scene, Path]], side: int | None = None) -> None:
    """Write each scene to its file."""
    for scene, path in scenes:
        fill(scene, side).save(path)


def fill(scene: Scene, side: int | None = None) -> Sheet:
    """Draw the points of all panels on a new sheet, and return it."""
    sheet = Sheet(scene, side)
    count = max(len(panel.points) for panel in scene.panels)
    diameter = 72 / DPI * point_pixels(count, sheet.side)  # typographic points
    for axes, panel in zip(sheet.axes, scene.panels, strict=True):
        places, nearness = project(panel.points, scene)
        order = nearness.argsort(kind="stable")  # painter's algorithm: far points first
        # Draw near points a little larger. The view has no perspective, and shading would change the colours.
        sizes = diameter * (1 + 0.2 * nearness) * (1 if panel.sizes is None else panel.sizes)
        axes.scatter(*places[order].T, s=sizes[order] ** 2, c=panel.colours[order], linewidths=0, clip_on=False)
    return sheet


def draw_chart(chart: Chart, path: Path) -> None:
    """Write a chart to a file."""
    from matplotlib.figure import Figure

    from pc_ewa.viz.renderers.sheet import save_figure

    figure = Figure(figsize=(7.2, 4.2), dpi=DPI, facecolor="white")
    fill_chart(chart, figure.add_subplot())
    figure.tight_layout()
    save_figure(figure, path)


def fill_chart(chart: Chart, axes: object) -> None:
    """Draw the lines of a chart on matplotlib axes, each with a different colour or dash."""
    for index, (name, (x, y)) in enumerate(chart.lines.items()):
        # After eight lines the colours repeat, and the next dash distinguishes them.
        dash = ("-", "--", ":", "-.")[index // len(KINDS) % 4]
        # A line through one point is invisible without a marker.
        marker = "o" if len(x) == 1 else None
        axes.plot(x, y, label=literal(name), color=KINDS[index % len(KINDS)], linestyle=dash, marker=marker)  # type: ignore[attr-defined]
    axes.set(title=literal(chart.title), xlabel=literal(chart.x_title), ylabel=literal(chart.y_title))  # type: ignore[attr-defined]
    axes.grid(alpha=0.3)  # type: ignore[attr-defined]
    if len(chart.lines) > 1:
        axes.legend(frameon=False, fontsize=9)  # type: ignore[attr-defined]
