"""Triangulation of polygons: the triangles cover the polygon and nothing else.

Source: G. H. Meisters, Polygons Have Ears (American Mathematical Monthly 82, 1975); M. E. Newell's normal, from I. E.
Sutherland et al., A Characterization of Ten Hidden-Surface Algorithms (ACM Computing Surveys 6, 1974).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Tolerance of areas, for a polygon of size 1 in float64.
_ROUNDING = 1e-12
# Overlap of two edges of a polygon of size 1 that still counts as touching: vertices are mostly rounded to float32.
_TOUCH = 1e-7
# Corners of a polygon that is cut ear by ear. The time grows with their square, and in the worst case with their cube.
_MOST_CORNERS = 2000


class Lists(NamedTuple):
    """Lists of numbers: the length of each list, and their concatenated values."""

    lengths: NDArray[np.int64]
    values: NDArray[Any]


def triangulate(vertices: NDArray[np.float64], polygons: Lists) -> NDArray[np.int64]:
    """Cut polygons into triangles (F, 3), in their order. Polygons with fewer than three corners are dropped.

    A polygon is cut by a fan from its first corner if the fan covers it, and ear by ear otherwise, both projected
    along its normal. A polygon without area gives triangles without area.

    Args:
        vertices: finite coordinates (V, 3).
        polygons: valid indices of vertices.

    Raises:
        ValueError: a polygon that crosses itself, whose interior is not defined.
    """
    lengths, corners = polygons.lengths, polygons.values.astype(np.int64)
    counts = np.maximum(lengths - 2, 0)
    starts, places = np.cumsum(lengths) - lengths, np.cumsum(counts) - counts
    faces = np.empty((int(counts.sum()), 3), np.int64)
    # All polygons of one length form an array, so the loop runs once per length instead of once per polygon.
    for length in np.unique(lengths[lengths > 2]):
        chosen = np.flatnonzero(lengths == length)
        cut = _cut(vertices, corners[starts[chosen, None] + np.arange(length)], chosen)
        faces[places[chosen, None] + np.arange(length - 2)] = cut
    return faces


def _cut(vertices: NDArray[np.float64], corners: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cut polygons (P, C) into triangles (P, C - 2, 3). `numbers` are the numbers of the polygons, for messages."""
    faces = _fan(corners)
    if corners.shape[1] == 3:
        return faces
    left = np.flatnonzero(~_fan_covers(vertices[corners]))
    # A quadrilateral has two diagonals. If the fan along one fails, try the other before the slow ear clipping.
    if corners.shape[1] == 4:
        turned = np.roll(corners[left], -1, axis=1)
        covered = _fan_covers(vertices[turned])
        faces[left[covered]] = _fan(turned[covered])
        left = left[~covered]
    for i in left:
        try:
            faces[i] = corners[i][ears(_flat(vertices[corners[i]]))]
        except ValueError as error:
            raise ValueError(f"face {numbers[i] + 1}, of {corners.shape[1]} corners, {error}") from error
    return faces


def _fan(corners: NDArray[np.int64]) -> NDArray[np.int64]:
    first = np.broadcast_to(corners[:, :1], corners[:, 2:].shape)
    return np.stack([first, corners[:, 1:-1], corners[:, 2:]], axis=-1)


def _fan_covers(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return True for each polygon (P, C, 3) that the fan from its first corner covers exactly once."""
    # Scaled to size 1, so that the tolerances hold for any unit. `tiny` avoids 0 / 0.
    arms = points[:, 1:] - points[:, :1]
    arms = arms / np.maximum(np.abs(arms).max(axis=(1, 2), keepdims=True), np.finfo(float).tiny)
    before, after = arms[:, :-1], arms[:, 1:]
    # Area vectors of the triangles, times two. Their sum is Newell's normal of the polygon.
    twice = np.cross(before, after)
    total = twice.sum(1, keepdims=True)
    size = np.linalg.norm(total, axis=2)
    along = (twice * (total / np.maximum(size[..., None], np.finfo(float).tiny))).sum(2)
    empty = np.linalg.norm(twice, axis=2).sum(1) <= _ROUNDING
    # The fan is right if no triangle is reversed and the angles at the first corner add up to one turn at most. A
    # spiral passes the first test alone.
    around = np.abs(np.arctan2(along, (before * after).sum(2))).sum(1)
    return empty | ((size[:, 0] > _ROUNDING) & (along >= -_ROUNDING).all(1) & (around <= 2 * np.pi + 1e-6))


def _flat(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Project a polygon (C, 3) along its normal to the plane: (C, 2), counterclockwise, of size 1."""
    points = points - points[0]
    points = points / np.abs(points).max()
    normal = np.cross(points[1:-1], points[2:]).sum(0)
    if not np.linalg.norm(normal) > _ROUNDING:
        raise ValueError("crosses itself")
    normal /= np.linalg.norm(normal)
    # The axis that is least parallel to the normal gives the best conditioned cross product.
    first = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    first /= np.linalg.norm(first)
    return points @ np.stack([first, np.cross(normal, first)], axis=1)


def ears(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Cut one polygon in the plane into triangles, ear by ear.

    Edges may touch, as the two edges do that join a hole to the outline.

    Args:
        points: corners (C, 2), counterclockwise, of size about 1.

    Returns:
        Indices (C - 2, 3) of points. Triangles of three collinear corners have no area.

    Raises:
        ValueError: it crosses itself, or has too many corners.
    """
    if len(points) > _MOST_CORNERS:
        raise ValueError(f"is not convex, and at most {_MOST_CORNERS} corners are cut; cut it into triangles yourself")
    if _crosses_itself(points):
        raise ValueError("crosses itself")
    left, faces, i, since = list(range(len(points))), list[list[int]](), 0, 0
    while len(left) > 3:
        i %= len(left)
        corner = [left[i - 1], left[i], left[(i + 1) % len(left)]]
        if _is_ear(points, corner, left):
            faces.append(corner)
            del left[i]
            # Skip the neighbour: cutting consecutive corners would make a fan of slivers.
            i, since = i + 1, 0
        else:
            i, since = i + 1, since + 1
            # Every simple polygon has an ear (Meisters), so a full round without one proves a crossing.
            if since > len(left):
                raise ValueError("crosses itself")
    if _turn(*points[left]) < -_ROUNDING:
        raise ValueError("crosses itself")
    return np.array([*faces, left], np.int64)


def _is_ear(points: NDArray[np.float64], corner: list[int], left: list[int]) -> bool:
    """Return True if a corner can be cut off: its triangle has no area, or contains no other corner."""
    a, b, c = points[corner]
    area = _turn(a, b, c)
    if abs(area) <= _ROUNDING:
        return True
    if area < 0:
        return False
    others = points[left]
    inside = (_turn(a, b, others) >= -_ROUNDING) & (_turn(b, c, others) >= -_ROUNDING)
    inside &= _turn(c, a, others) >= -_ROUNDING
    # Corners that coincide with one of the three, as where a hole is joined, do not count as inside. An edge that leads
    # from there into the triangle ends inside, or crosses the cut, which the last line checks.
    for point in (a, b, c):
        inside &= (others != point).any(1)
    return not inside.any() and not _crosses(a, c, others, np.roll(others, -1, axis=0), _ROUNDING).any()


def _crosses_itself(points: NDArray[np.float64]) -> bool:
    ends = np.roll(points, -1, axis=0)
    return any(_crosses(points[i], ends[i], points[i + 1 :], ends[i + 1 :], _TOUCH).any() for i in range(len(points)))


def _crosses(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], d: NDArray[np.float64], least: float
) -> NDArray[np.bool_]:
    """Return True for each edge c-d that properly crosses the edge a-b, by more than the distance `least`."""
    # Twice the area of a triangle is base times height, so dividing by the length of the edge gives a distance.
    length, lengths = np.linalg.norm(b - a), np.linalg.norm(d - c, axis=1)
    one, other = _turn(a, b, c), _turn(a, b, d)
    mine, yours = _turn(c, d, a), _turn(c, d, b)
    apart = np.minimum(np.abs(one), np.abs(other)) > least * length
    apart &= np.minimum(np.abs(mine), np.abs(yours)) > least * lengths
    return apart & (one * other < 0) & (mine * yours < 0)


def _turn(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return twice the signed area of the triangles a, b, c, positive if counterclockwise."""
    e, f = b - a, c - a
    turned: NDArray[np.float64] = e[..., 0] * f[..., 1] - e[..., 1] * f[..., 0]
    return turned
