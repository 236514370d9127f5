"""Sampling of points from the surface of a triangle mesh."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def sample_surface(
    vertices: NDArray[np.floating[Any]], faces: NDArray[np.integer[Any]], count: int, random: np.random.RandomState
) -> NDArray[np.float64]:
    """Draw points uniformly from the surface of a triangle mesh.

    Args:
        vertices: coordinates (V, 3).
        faces: indices (F, 3) of vertices.
        count: number of points.
        random: random generator; the same state gives the same points.

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
    # Inverse transform sampling of the triangle. `side="right"` skips triangles without area. The product may round up
    # to the total area, whose index would be behind the last triangle.
    chosen = np.searchsorted(areas, random.uniform(size=count) * areas[-1], side="right").clip(max=len(areas) - 1)
    # Turk, Generating Random Points in Triangles (Graphics Gems, 1990): sample the parallelogram of the two edges, and
    # reflect its far half onto the triangle, which keeps the density uniform.
    weights = random.uniform(size=(count, 2, 1))
    far = weights.sum(1, keepdims=True) > 1
    return first[chosen] + (np.where(far, 1 - weights, weights) * edges[chosen]).sum(1)
