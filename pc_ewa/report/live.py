"""Scenes as interactive clouds: points in base64, drawn by viewer.js on one canvas per panel."""

from __future__ import annotations

import base64

import numpy as np

from pc_ewa.report.html import Html, element
from pc_ewa.viz import Panel, Scene
from pc_ewa.viz.colours import as_hex

_LONGEST_ROW = 3
_MOST_POINTS = 1024  # of a cloud on the page: 12 kB


def live(scene: Scene) -> Html:
    """Return a scene as HTML: its title, its panels in reading order, its legend. Rows of two or three never wrap."""
    clouds = [_cloud(panel, scene) for panel in scene.panels]
    row = scene.columns or 1
    if 1 < row <= _LONGEST_ROW:
        style = f"grid-template-columns:repeat({row},1fr)"
        starts = range(0, len(clouds), row)
        clouds = [element("div", *clouds[i : i + row], class_="row", style=style) for i in starts]
    names = (
        element("span", element("i", "", style=f"background:{as_hex(colour)}"), name)
        for name, colour in scene.legend.items()
    )
    parts = [
        element("p", scene.title),
        element("div", *clouds, class_="clouds" if row == 1 or row > _LONGEST_ROW else "clouds wide"),
    ]
    return element("div", *parts, *([element("p", *names, class_="legend")] if scene.legend else []))


def _cloud(panel: Panel, scene: Scene) -> Html:
    chosen = np.arange(len(panel.points))
    if len(chosen) > _MOST_POINTS:
        chosen = np.sort(np.random.RandomState(0).permutation(len(chosen))[:_MOST_POINTS])
    places = (panel.points[chosen] - scene.center) / scene.radius
    sizes = np.ones(len(chosen)) if panel.sizes is None else panel.sizes[chosen]
    # Positions lie in the unit sphere: 16 bits resolve 1/32767 of it, in half the bytes of float32. "<" fixes the byte
    # order: Int16Array in viewer.js uses that of the reader's machine, which is little-endian on today's browsers.
    bytes_by_name = {
        "xyz": (32767 * places).round().astype("<i2"),
        "rgb": (255 * panel.colours[chosen]).round().astype(np.uint8),
        "size": (16 * sizes).round().clip(1, 255).astype(np.uint8),
    }
    data = {f"data_{name}": base64.b64encode(array.tobytes()).decode() for name, array in bytes_by_name.items()}
    label = f"{' '.join(panel.title.split())}; turn by dragging or by the arrow keys, + and - zoom"
    canvas = element("canvas", "", tabindex="0", role="img", aria_label=label, **data)
    return element("figure", canvas, element("figcaption", panel.title))
