"""Renderer by plotly: clouds that the reader can rotate, in a notebook or in an HTML file that works offline."""

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

_SIDE, _EDGE = 360, 20  # pixels: of a panel, around all panels
_HEADER, _LINE, _LEGEND = 50, 20, 60  # pixels: the title, a line above a panel, the legend
_SCALE = 1.75  # of the cube around the points: without perspective, this decides how large it looks


def draw_scenes(scenes: Sequence[tuple[Scene, Path]]) -> None:
    """Write each scene to an HTML file of about 5 MB, most of which is plotly's JavaScript."""
    for scene, path in scenes:
        write_text(path, figure_of(scene).to_html(include_plotlyjs=True, config={"displaylogo": False}))


def figure_of(scene: Scene) -> Any:
    """Return a scene as a plotly figure, which a notebook displays."""
    import plotly.graph_objects as go

    figure = go.Figure()
    size = 0.4 * point_pixels(max(len(panel.points) for panel in scene.panels), _SIDE)
    for index, panel in enumerate(scene.panels):
        colours = [as_hex(colour) for colour in panel.colours]
        # plotly halves the sizes if they are given as an array, hence the factor 2.
        sizes = size if panel.sizes is None else 2 * size * panel.sizes
        marker = {"size": sizes, "color": colours, "opacity": 1, "line": {"width": 0}}
        x, y, z = panel.points.T
        figure.add_scatter3d(
            x=x, y=y, z=z, mode="markers", marker=marker, showlegend=False, hoverinfo="skip", scene=_name(index)
        )
    for name, colour in scene.legend.items():
        # A legend entry needs a trace. One without a visible point adds nothing to the panels.
        sample = {"size": 8, "color": as_hex(colour)}
        figure.add_scatter3d(x=[None], y=[None], z=[None], mode="markers", marker=sample, name=_text(name))
    _place(figure, scene)
    return figure


def _place(figure: Any, scene: Scene) -> None:
    """Lay out a figure: a square for each panel with its title above, and the legend below all panels."""
    rows, columns = scene.grid
    titles = [_text(panel.title) for panel in scene.panels]
    band = 8 + _LINE * max(title.count("<br>") + bool(title) for title in titles)
    width = max(columns * _SIDE, 480) + 2 * _EDGE
    height = _HEADER + rows * (band + _SIDE) + (_LEGEND if scene.legend else _EDGE)
    # Equal ranges on all axes keep the proportions of the clouds, and one scale for all panels.
    limits = [[middle - scene.radius, middle + scene.radius] for middle in scene.center.tolist()]
    look: dict[str, Any] = {
        f"{a}axis": {"visible": False, "range": limit} for a, limit in zip("xyz", limits, strict=True)
    }
    eye = dict(zip("xyz", FRONT.tolist(), strict=True))
    look["camera"] = {"up": {"x": 0, "y": 1, "z": 0}, "eye": eye, "projection": {"type": "orthographic"}}
    look |= {"aspectmode": "manual", "aspectratio": dict.fromkeys("xyz", _SCALE)}
    for index, title in enumerate(titles):
        row, column = divmod(index, columns)
        left, top = _EDGE + column * _SIDE, _HEADER + row * (band + _SIDE) + band
        across = [left / width, (left + _SIDE) / width]
        up = [1 - (top + _SIDE) / height, 1 - top / height]
        figure.update_layout({_name(index): look | {"domain": {"x": across, "y": up}}})
        place = {"x": sum(across) / 2, "y": up[1], "xref": "paper", "yref": "paper"}
        figure.add_annotation(text=title, showarrow=False, xanchor="center", yanchor="bottom", **place)
    figure.update_layout(
        width=width,
        height=height,
        margin=dict.fromkeys("lrtb", 0),
        title={"text": _text(scene.title), "x": 0.5, "y": 1 - _HEADER / 2 / height, "yanchor": "middle"},
        legend={
            "itemsizing": "constant",
            "orientation": "h",
            "x": 0.5,
            "xanchor": "center",
            "y": 0,
            "yanchor": "bottom",
        },
    )


def _name(index: int) -> str:
    """Return plotly's name for the place of a panel: scene, scene2, scene3, ..."""
    return f"scene{index + 1}" if index else "scene"


def _text(text: str) -> str:
    """Escape a text: plotly interprets titles as HTML."""
    lines = (printable(line, None) for line in text.split("\n"))
    return "<br>".join(line.replace("&", "&amp;").replace("<", "&lt;") for line in lines)
