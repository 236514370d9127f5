"""Choice of the renderer: open3d where it works, matplotlib everywhere. The choice is logged once, with its reason."""

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
    """Write each picture to its file. A file is written completely or not at all.

    Args:
        pictures: scenes or charts, each with its file. The file name's extension selects the renderer: .png is drawn by
            open3d or matplotlib, .svg and .pdf by matplotlib, .html by plotly. matplotlib draws every chart.
        renderer: "auto" takes open3d for PNG, or matplotlib where open3d cannot draw.
        side: pixels of a panel. None chooses by the number of panels.

    Raises:
        ConfigError: a file that cannot be written, an extension that the renderer does not write, or a renderer named
            explicitly that cannot draw here.
        MissingPackageError: the renderer is not installed. The message names what to install.

    Example:
        >>> from pathlib import Path
        >>> chart = pc_ewa.viz.Chart("loss", "steps", "loss", {"training": ([0, 1], [2.3, 1.9])})
        >>> pc_ewa.viz.draw([(chart, Path("loss.svg"))])
    """
    for picture, path in pictures:
        check_picture(path)
        _check_kind(picture, path, renderer)
    # Sort by renderer first: open3d starts one child process for all PNGs, and its start is most of the cost.
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
    """Show a scene at once: in a notebook as a plotly figure, elsewhere in an open3d window.

    The window blocks until it is closed.

    Returns:
        The plotly figure in a notebook or with `renderer="plotly"`, else None.

    Raises:
        ConfigError: neither a notebook nor a display. The message explains how to write a file.
    """
    try:
        if renderer == "plotly" or (renderer == "auto" and _in_notebook()):
            _say("plotly", "this is a notebook" if renderer == "auto" else "asked for")
            return by_plotly.figure_of(scene)
        if not has_display():
            raise ConfigError("there is no display to open a window on; write a file: -o picture.png, or path=...")
        if importlib.util.find_spec("open3d") is None:
            # open3d is imported in a child process only. Here the import fails, and raises the error that is explained.
            import open3d  # noqa: F401
        by_open3d.show_window(scene)
    except ModuleNotFoundError as error:
        raise missing_package(error, "a window", "viz") or error from None
    except by_open3d.Open3DFailedError as error:
        raise ConfigError(f"{error}; write a file: -o picture.png, or path=...") from None
    return None


def has_display() -> bool:
    """Return True if a window can probably be opened. Only opening one is proof."""
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
            install = "on Debian and Ubuntu: apt-get install libegl1 libgl1 libgomp1 libusb-1.0-0"
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
        raise ConfigError(f"{path}: {who} for {', '.join(writes)}; choose another file name")


def _say(name: str, reason: str) -> None:
    """Log the choice of a renderer, once per process."""
    if name not in _said:
        _said.add(name)
        log.info("drawn by %s: %s", name, reason)


def _in_notebook() -> bool:
    """Return True in a Jupyter kernel."""
    # Look IPython up without importing it: outside of a notebook it need not be installed. A terminal IPython has
    # another shell class, and cannot show a figure.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
