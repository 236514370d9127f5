"""`Scene`: panels of coloured points with titles and one legend. Views make it, renderers draw it."""

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
        points: (N, 3), y up, x to the right, z towards the reader; `upright` makes them so.
        colours: (N, 3), red, green and blue from 0 to 1.
        title: above the picture.
        sizes: (N,), how many times larger than others each point is drawn; None draws all alike.

    Raises:
        ValueError: fields that do not fit together, or that are not finite.
    """

    points: Floats
    colours: Floats
    title: str = ""
    sizes: Floats | None = None

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
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
        legend: colour (red, green, blue from 0 to 1) by its meaning.
        columns: panels in a row; None chooses.

    Raises:
        ValueError: no panel.
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
        return rows, columns if self.columns else -(-count // rows)  # four are two rows of two, not of three and one

    @property
    def center(self) -> Floats:
        """The middle (3,) of the box around the points of all panels."""
        low, high = self._box
        return (low + high) / 2

    @property
    def radius(self) -> float:
        """Distance of the farthest point of any panel from `center`; 1 if all points are one."""
        farthest = max(float(np.linalg.norm(panel.points - self.center, axis=1).max()) for panel in self.panels)
        return farthest if farthest > 0 else 1.0

    @property
    def _box(self) -> tuple[Floats, Floats]:
        low = np.min([panel.points.min(0) for panel in self.panels], axis=0)
        return low, np.max([panel.points.max(0) for panel in self.panels], axis=0)


@dataclass(frozen=True)
class Chart:
    """Lines over training, for what is not a cloud.

    Attributes:
        title: of the chart.
        x_title: what is along the horizontal axis.
        y_title: what is along the vertical axis.
        lines: (x, y) values by the name of the line.

    Raises:
        ValueError: no line.
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
    """Turn points (..., 3) so that `up_axis` becomes y; nothing is mirrored.

    Example:
        >>> upright(np.array([[0.0, 0.0, 2.0]]), "z").tolist()
        [[0.0, 2.0, 0.0]]
    """
    array = np.asarray(points.detach().cpu() if isinstance(points, torch.Tensor) else points, dtype=np.float64)
    x, y, z = array[..., 0], array[..., 1], array[..., 2]
    turned = {"y": (x, y, z), "z": (x, z, -y), "x": (-y, x, z)}[up_axis]
    return (np.stack(turned, axis=-1) + 0.0).astype(np.float32)  # + 0.0: no -0.0
