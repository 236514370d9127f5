"""Scenes by plotly: clouds to turn, in a notebook or in an HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pc_ewa.files import write_text
from pc_ewa.text import printable
from pc_ewa.viz.camera import FRONT
from pc_ewa.viz.colours import as_hex
from pc_ewa.viz.renderers.sheet import point_pixels
from pc_ewa.viz.scene import Scene

_SIDE = 360  # pixels of a panel
_SCALE = 2.3  # of the cube around the points: without perspective, this decides how large it looks


def draw_scenes(scenes: Sequence[tuple[Scene, Path]]) -> None:
    """Write each scene to an HTML file of its own, about 5 MB, as plotly's own code is in it."""
    for scene, path in scenes:
        write_text(path, figure_of(scene).to_html(include_plotlyjs=True, config={"displaylogo": False}))


def figure_of(scene: Scene) -> Any:
    """Make a plotly figure, which a notebook shows."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows, columns = scene.grid
    titles = [_text(panel.title) for panel in scene.panels]
    kinds = [[{"type": "scene"}] * columns for _ in range(rows)]
    figure = make_subplots(rows, columns, specs=kinds, subplot_titles=titles, horizontal_spacing=0, vertical_spacing=0)
    size = 0.4 * point_pixels(max(len(panel.points) for panel in scene.panels), _SIDE)
    for index, panel in enumerate(scene.panels):
        row, column = divmod(index, columns)
        colours = [as_hex(colour) for colour in panel.colours]
        sizes = size if panel.sizes is None else size * panel.sizes
        marker = {"size": sizes, "color": colours, "opacity": 1, "line": {"width": 0}}
        x, y, z = panel.points.T
        cloud = go.Scatter3d(x=x, y=y, z=z, mode="markers", marker=marker, showlegend=False, hoverinfo="skip")
        figure.add_trace(cloud, row + 1, column + 1)
    for name, colour in scene.legend.items():
        sample = {"size": 8, "color": as_hex(colour)}
        nothing = go.Scatter3d(x=[None], y=[None], z=[None], mode="markers", marker=sample, name=_text(name))
        figure.add_trace(nothing, 1, 1)
    limits = [[middle - scene.radius, middle + scene.radius] for middle in scene.center.tolist()]
    axes = {f"{a}axis": {"visible": False, "range": limit} for a, limit in zip("xyz", limits, strict=True)}
    eye = dict(zip("xyz", FRONT.tolist(), strict=True))
    camera = {"up": {"x": 0, "y": 1, "z": 0}, "eye": eye, "projection": {"type": "orthographic"}}
    figure.update_scenes(**axes, aspectmode="manual", aspectratio=dict.fromkeys("xyz", _SCALE), camera=camera)
    size_of_page = {"width": max(columns * _SIDE, 480), "height": rows * _SIDE + 80}
    return figure.update_layout(title=_text(scene.title), legend={"itemsizing": "constant"}, **size_of_page)


def _text(text: str) -> str:
    """Make text safe to show: plotly takes titles for HTML."""
    lines = (printable(line, None) for line in text.split("\n"))
    return "<br>".join(line.replace("&", "&amp;").replace("<", "&lt;") for line in lines)
