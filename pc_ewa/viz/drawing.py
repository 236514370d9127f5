"""Which renderer draws: open3d where it can, matplotlib everywhere; said once, with the reason and what to install."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pc_ewa.errors import ConfigError
from pc_ewa.package import missing_package
from pc_ewa.viz.renderers import by_matplotlib, by_open3d, by_plotly
from pc_ewa.viz.renderers.sheet import check_picture
from pc_ewa.viz.scene import Chart, Picture, Scene

Renderer = Literal["auto", "open3d", "matplotlib", "plotly"]

log = logging.getLogger(__name__)
_said: set[str] = set()


def draw(pictures: Sequence[tuple[Picture, Path]], renderer: Renderer = "auto", side: int | None = None) -> None:
    """Write each picture to its file, whole or not at all.

    Args:
        pictures: scenes or charts, each with its file. The ending of its name decides: .png by open3d or matplotlib,
            .svg and .pdf by matplotlib, .html by plotly. Charts are always by matplotlib.
        renderer: "auto" takes open3d for PNG, and matplotlib where open3d cannot draw.
        side: pixels of a panel; None chooses by their number.

    Raises:
        ConfigError: a file that cannot be written, an ending that the renderer does not write, a renderer that cannot
            draw here and is not "auto".
        MissingPackageError: the renderer is not installed; the message has what to install.
    """
    for picture, path in pictures:
        check_picture(path)
        _check_kind(picture, path, renderer)
    scenes = [(picture, path) for picture, path in pictures if isinstance(picture, Scene)]
    html = [(scene, path) for scene, path in scenes if path.suffix.lower() == ".html"]
    vector = [(scene, path) for scene, path in scenes if path.suffix.lower() in (".svg", ".pdf")]
    png = [(scene, path) for scene, path in scenes if path.suffix.lower() == ".png"]
    try:
        for picture, path in pictures:
            if isinstance(picture, Chart):
                by_matplotlib.draw_chart(picture, path)
        if html:
            _say("plotly", "HTML to turn clouds in")
            by_plotly.draw_scenes(html)
        if vector:
            by_matplotlib.draw_scenes(vector, side)
        if png:
            _draw_png(png, renderer, side)
    except ModuleNotFoundError as error:
        raise missing_package(error, "drawing", "viz") or error from None


def show_now(scene: Scene, renderer: Renderer = "auto") -> Any:
    """Show a scene on the spot: in a notebook as a plotly figure, else in a window of open3d until it is closed.

    Raises:
        ConfigError: neither a notebook nor a display; the message says how to get a file.
    """
    try:
        if renderer == "plotly" or (renderer == "auto" and _in_notebook()):
            _say("plotly", "this is a notebook" if renderer == "auto" else "asked for")
            return by_plotly.figure_of(scene)
        if not has_display():
            raise ConfigError("there is no display to open a window on; write a file: -o picture.png, or path=...")
        if importlib.util.find_spec("open3d") is None:
            import open3d  # noqa: F401  # the error that names what is missing
        by_open3d.show_window(scene)
    except ModuleNotFoundError as error:
        raise missing_package(error, "a window", "viz") or error from None
    except by_open3d.Open3DFailedError as error:
        raise ConfigError(f"{error}; write a file: -o picture.png, or path=...") from None
    return None


def has_display() -> bool:
    """Return True where a window can be opened, as far as one can tell beforehand."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _draw_png(scenes: Sequence[tuple[Scene, Path]], renderer: Renderer, side: int | None) -> None:
    if renderer == "matplotlib":
        by_matplotlib.draw_scenes(scenes, side)
        return
    reason = "open3d is not installed: pip install 'pc-ewa[viz]'"
    if importlib.util.find_spec("open3d") is not None:
        try:
            by_open3d.draw_scenes(scenes, side)
            _say("open3d", "it is installed and can draw here")
            return
        except by_open3d.Open3DFailedError as error:
            install = "apt-get install libegl1 libgl1 libgomp1 libusb-1.0-0 brings what it needs on Debian and Ubuntu"
            reason = f"{error}; {install}"
    if renderer == "open3d":
        raise ConfigError(f"{reason}; or choose the renderer auto or matplotlib")
    _say("matplotlib", reason)
    by_matplotlib.draw_scenes(scenes, side)


def _check_kind(picture: Picture, path: Path, renderer: str) -> None:
    kind = path.suffix.lower()
    if renderer not in get_args(Renderer):
        raise ConfigError(f"renderer {renderer!r}; choose from {', '.join(get_args(Renderer))}")
    writes = {"open3d": (".png",), "matplotlib": (".png", ".svg", ".pdf"), "plotly": (".html",)}.get(renderer)
    if isinstance(picture, Chart):
        writes = (".png", ".svg", ".pdf")
    if writes and kind not in writes:
        who = "a chart is" if isinstance(picture, Chart) else f"the renderer {renderer} is"
        raise ConfigError(f"{path}: {who} for {', '.join(writes)}; choose another name")


def _say(name: str, reason: str) -> None:
    """Log the choice once."""
    if name not in _said:
        _said.add(name)
        log.info("drawn by %s: %s", name, reason)


def _in_notebook() -> bool:
    """Return True within a Jupyter kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
