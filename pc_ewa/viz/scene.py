"""`Scene`: panels of coloured points with titles and one legend. Views create scenes, renderers draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pc_ewa.data import UpAxis

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a scene.

    Attributes:
        points: (N, 3), y up, x to the right, z towards the reader. `upright` converts to these axes.
        colours: (N, 3), red, green and blue from 0 to 1.
        title: above the picture.
        sizes: (N,), factors of the point size. None draws all points in the same size.

    Raises:
        ValueError: fields whose shapes do not match, or points that are not finite.

    Example:
        >>> points = torch.rand(5, 3).numpy()
        >>> pc_ewa.viz.Panel(points, points, "five points").points.shape
        (5, 3)
    """

    points: Floats
    colours: Floats
    title: str = ""
    sizes: Floats | None = None

    def __post_init__(self) -> None:
        """Check shapes and points."""
        count = len(self.points)
        if self.points.shape != (count, 3) or self.colours.shape != (count, 3) or not count:
            raise ValueError(f"points are {self.points.shape}, colours {self.colours.shape}; expected (N, 3) twice")
        if self.sizes is not None and self.sizes.shape != (count,):
            raise ValueError(f"sizes are {self.sizes.shape}; expected ({count},)")
        if not np.isfinite(self.points).all():
            raise ValueError("points are not all finite; remove NaN and infinity")


@dataclass(frozen=True, eq=False)
class Scene:
    """Panels that share a view, a scale and a legend.

    Attributes:
        title: of the whole.
        panels: in reading order, at least one.
        legend: a mapping from label to colour (red, green, blue from 0 to 1).
        columns: panels in a row. None chooses by the number of panels.

    Raises:
        ValueError: no panel.

    Example:
        >>> points = torch.rand(5, 3).numpy()
        >>> pc_ewa.viz.Scene("four clouds", [pc_ewa.viz.Panel(points, points)] * 4).grid
        (2, 2)
    """

    title: str
    panels: Sequence[Panel]
    legend: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    columns: int | None = None

    def __post_init__(self) -> None:
        """Refuse a scene without panels."""
        if not self.panels:
            raise ValueError("a scene needs at least one panel")

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and columns."""
        count = len(self.panels)
        columns = min(self.columns or int(np.ceil(np.sqrt(1.6 * count))), count)
        rows = -(-count // columns)
        # Balance the rows: four panels are two rows of two, not a row of three and a row of one.
        return rows, columns if self.columns else -(-count // rows)

    @property
    def center(self) -> Floats:
        """The center (3,) of the bounding box of the points of all panels."""
        low, high = self._box
        return (low + high) / 2

    @property
    def radius(self) -> float:
        """Distance of the farthest point of any panel from `center`, or 1 if all points coincide."""
        farthest = max(float(np.linalg.norm(panel.points - self.center, axis=1).max()) for panel in self.panels)
        return farthest if farthest > 0 else 1.0

    @property
    def _box(self) -> tuple[Floats, Floats]:
        low = np.min([panel.points.min(0) for panel in self.panels], axis=0)
        return low, np.max([panel.points.max(0) for panel in self.panels], axis=0)


@dataclass(frozen=True)
class Chart:
    """A line chart, such as metrics over training steps.

    Attributes:
        title: of the chart.
        x_title: label of the horizontal axis.
        y_title: label of the vertical axis.
        lines: (x, y) values by the name of the line.

    Raises:
        ValueError: no line.

    Example:
        >>> chart = pc_ewa.viz.Chart("loss", "steps", "loss", {"training": ([0, 1], [2.3, 1.9])})
        >>> list(chart.lines)
        ['training']
    """

    title: str
    x_title: str
    y_title: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]

    def __post_init__(self) -> None:
        """Refuse a chart without lines."""
        if not self.lines:
            raise ValueError("a chart needs at least one line")


Picture = Scene | Chart


def upright(points: torch.Tensor | NDArray[Any], up_axis: UpAxis) -> Floats:
    """Rotate points (..., 3) so that `up_axis` becomes y. No axis is mirrored.

    Example:
        >>> points = torch.tensor([[0.0, 0.0, 2.0]])
        >>> pc_ewa.viz.upright(points, "z").tolist()
        [[0.0, 2.0, 0.0]]
    """
    array = np.asarray(points.detach().cpu() if isinstance(points, torch.Tensor) else points, dtype=np.float64)
    x, y, z = array[..., 0], array[..., 1], array[..., 2]
    # Each is a rotation, of determinant 1: swapping two axes alone would mirror the cloud, hence one minus sign.
    turned = {"y": (x, y, z), "z": (x, z, -y), "x": (-y, x, z)}[up_axis]
    # Adding 0.0 turns the -0.0 of the negation into 0.0, so that equal clouds have equal bytes.
    return (np.stack(turned, axis=-1) + 0.0).astype(np.float32)
