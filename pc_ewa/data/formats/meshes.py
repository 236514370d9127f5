"""Points drawn from the surfaces of triangle meshes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def sample_surface(
    vertices: NDArray[np.floating[Any]], faces: NDArray[np.integer[Any]], count: int, random: np.random.RandomState
) -> NDArray[np.float64]:
    """Draw points from the surface of a triangle mesh, each part of it as likely as it is large.

    Args:
        vertices: (V, 3).
        faces: (F, 3), positions in `vertices`.
        count: how many points.
        random: what they are drawn with; the same state gives the same points.

    Returns:
        (count, 3).

    Raises:
        ValueError: a surface without area, or too large to measure.
    """
    corners = np.asarray(vertices, np.float64)[faces]  # (F, 3 corners, 3)
    first, edges = corners[:, 0], corners[:, 1:] - corners[:, :1]
    with np.errstate(over="ignore", invalid="ignore"):
        areas = np.cumsum(np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1))
    if len(areas) == 0 or not (np.isfinite(areas[-1]) and areas[-1] > 0):
        raise ValueError("its surface has no area that can be measured")
    # Rounding may give the last area itself, which would be behind the last triangle.
    chosen = np.searchsorted(areas, random.uniform(size=count) * areas[-1], side="right").clip(max=len(areas) - 1)
    # Turpin, Generating Random Points in a Triangle (Graphics Gems, 1990): fold the far half of the parallelogram.
    weights = random.uniform(size=(count, 2, 1))
    far = weights.sum(1, keepdims=True) > 1
    return first[chosen] + (np.where(far, 1 - weights, weights) * edges[chosen]).sum(1)
