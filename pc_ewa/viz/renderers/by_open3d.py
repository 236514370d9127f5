"""Renderer by open3d, in a child process: without working graphics open3d crashes its process, not only a call."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pc_ewa.viz.camera import FRONT, MARGIN, UP
from pc_ewa.viz.renderers import open3d_child
from pc_ewa.viz.renderers.sheet import Sheet, point_pixels
from pc_ewa.viz.scene import Panel, Scene

SECONDS = 120  # a child that takes longer counts as hung
# open3d shows `zoom` times the width of the bounding box to each side. The child makes that box 2 * FRAME wide.
_ZOOM = MARGIN / (2 * open3d_child.FRAME)


class Open3DFailedError(RuntimeError):
    """The child drew nothing. The message is the reason in a few words."""


def draw_scenes(scenes: Sequence[tuple[Scene, Path]], side: int | None = None) -> None:
    """Write each scene to its file. One child draws the panels of all scenes, as its start is most of the cost.

    Raises:
        Open3DFailedError: open3d cannot draw here. Nothing is written.
    """
    sheets = [Sheet(scene, side) for scene, _ in scenes]
    images = iter(_images([(scene, sheet.side) for (scene, _), sheet in zip(scenes, sheets, strict=True)]))
    for sheet, (_, path) in zip(sheets, scenes, strict=True):
        for axes in sheet.axes:
            axes.imshow(next(images), extent=(-1, 1, -1, 1), interpolation="none")
        sheet.save(path)


def show_window(scene: Scene) -> None:
    """Show a scene in a window, its panels side by side, until the window is closed.

    Raises:
        Open3DFailedError: a window cannot be opened.
    """
    rows, columns = scene.grid
    pitch = 2 * MARGIN * scene.radius
    # A window holds one 3-D world. Shift the panels apart in the x-y plane, and draw them as one.
    moved = []
    for index, panel in enumerate(scene.panels):
        row, column = divmod(index, columns)
        place = [pitch * (column - (columns - 1) / 2), pitch * ((rows - 1) / 2 - row), 0]
        moved.append(Panel(panel.points + np.array(place), panel.colours, sizes=panel.sizes))
    with tempfile.TemporaryDirectory() as folder:
        _run(_save(Path(folder), [(Scene(scene.title, moved), 900)]), timeout=None)


def _images(scenes: Sequence[tuple[Scene, int]]) -> list[Any]:
    """Return the panels of all scenes as images (side, side, 3), uint8, drawn by a child."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "images.npz")
        _run([*_save(Path(folder), scenes), str(result)], timeout=SECONDS)
        try:
            with np.load(result) as file:
                return [file[str(index)] for index in range(sum(len(scene.panels) for scene, _ in scenes))]
        except (OSError, KeyError, ValueError):
            raise Open3DFailedError("open3d wrote no picture") from None


def _save(folder: Path, scenes: Sequence[tuple[Scene, int]]) -> list[str]:
    """Write the job file of a child from scenes and the pixels of their panels. Returns the child's arguments."""
    job: dict[str, Any] = {"front": FRONT, "up": UP, "zoom": _ZOOM}
    panels = [(scene, side, panel) for scene, side in scenes for panel in scene.panels]
    for index, (scene, side, panel) in enumerate(panels):
        pixels = point_pixels(max(len(other.points) for other in scene.panels), side)
        fields = {
            "side": side,
            "point_pixels": pixels,
            # The panel is 2 * MARGIN wide in units of the scene's radius, so `pixels` across is this radius.
            "point_radius": MARGIN * pixels / side,
            "points": (panel.points - scene.center) / scene.radius,
            "colours": panel.colours,
            "sizes": np.ones(len(panel.points)) if panel.sizes is None else panel.sizes,
        }
        job |= {f"{index}:{name}": value for name, value in fields.items()}
    np.savez(folder / "job.npz", panels=len(panels), **job)
    return [str(folder / "job.npz")]


def _run(arguments: list[str], timeout: int | None) -> None:
    command = [sys.executable, open3d_child.__file__, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise Open3DFailedError(f"open3d drew nothing within {SECONDS} s") from None
    if done.returncode == open3d_child.NO_WINDOW:
        raise Open3DFailedError("open3d finds neither a display nor EGL")
    # A negative code is the signal that ended the process, such as a segmentation fault in a graphics driver.
    if done.returncode < 0:
        raise Open3DFailedError(f"open3d ended its process by signal {-done.returncode}")
    if done.returncode:
        # Mesa writes warnings to stderr in successful runs too. Only the last line of a Python error is informative.
        lines = [line for line in done.stderr.splitlines() if "Error: " in line]
        raise Open3DFailedError(f"open3d failed: {lines[-1][:200] if lines else f'exit code {done.returncode}'}")
