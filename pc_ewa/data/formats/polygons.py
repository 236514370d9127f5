"""Polygons cut into triangles that cover them and nothing else.

Source: G. H. Meisters, Polygons Have Ears (American Mathematical Monthly 82, 1975); M. E. Newell's normal, from I. E.
Sutherland et al., A Characterization of Ten Hidden-Surface Algorithms (ACM Computing Surveys 6, 1974).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-12  # of areas, for a polygon of size 1
_TOUCH = 1e-7  # how far the edges of a polygon of size 1 may overstep each other: float32 rounds so
_MOST_CORNERS = 2000  # of a polygon that is cut ear by ear: the time grows with the square, at the worst the cube


class Lists(NamedTuple):
    """Lists of numbers: how long each is, and all of them one after the other."""

    lengths: NDArray[np.int64]
    values: NDArray[Any]


def triangulate(vertices: NDArray[np.float64], polygons: Lists) -> NDArray[np.int64]:
    """Cut polygons into triangles (F, 3), in their order; what has fewer than three corners is left out.

    A polygon that a fan from its first corner covers is cut so, and any other ear by ear, both as seen along its
    normal. A polygon without area gives triangles without area.

    Args:
        vertices: (V, 3), finite.
        polygons: positions in `vertices`, in bounds.

    Raises:
        ValueError: a polygon that crosses itself; what lies inside it is not known.
    """
    lengths, corners = polygons.lengths, polygons.values.astype(np.int64)
    counts = np.maximum(lengths - 2, 0)
    starts, places = np.cumsum(lengths) - lengths, np.cumsum(counts) - counts
    faces = np.empty((int(counts.sum()), 3), np.int64)
    for length in np.unique(lengths[lengths > 2]):
        chosen = np.flatnonzero(lengths == length)
        cut = _cut(vertices, corners[starts[chosen, None] + np.arange(length)], chosen)
        faces[places[chosen, None] + np.arange(length - 2)] = cut
    return faces


def _cut(vertices: NDArray[np.float64], corners: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cut polygons of the same number of corners, (P, C), into triangles (P, C - 2, 3); `numbers` are their places."""
    faces = _fan(corners)
    if corners.shape[1] == 3:
        return faces
    left = np.flatnonzero(~_fan_covers(vertices[corners]))
    if corners.shape[1] == 4:  # by the other diagonal
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
    """Tell for each polygon (P, C, 3) if the fan from its first corner covers it, and nothing twice or outside."""
    arms = points[:, 1:] - points[:, :1]
    arms = arms / np.maximum(np.abs(arms).max(axis=(1, 2), keepdims=True), np.finfo(float).tiny)
    before, after = arms[:, :-1], arms[:, 1:]
    twice = np.cross(before, after)  # the areas of the triangles, as vectors
    total = twice.sum(1, keepdims=True)
    size = np.linalg.norm(total, axis=2)
    along = (twice * (total / np.maximum(size[..., None], np.finfo(float).tiny))).sum(2)
    empty = np.linalg.norm(twice, axis=2).sum(1) <= _ROUNDING
    # No triangle is turned, and they go around the corner once at most.
    around = np.abs(np.arctan2(along, (before * after).sum(2))).sum(1)
    return empty | ((size[:, 0] > _ROUNDING) & (along >= -_ROUNDING).all(1) & (around <= 2 * np.pi + 1e-6))


def _flat(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Look at a polygon (C, 3) along its normal: (C, 2), counterclockwise, of size 1."""
    points = points - points[0]
    points = points / np.abs(points).max()
    normal = np.cross(points[1:-1], points[2:]).sum(0)
    if not np.linalg.norm(normal) > _ROUNDING:
        raise ValueError("crosses itself")
    normal /= np.linalg.norm(normal)
    first = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    first /= np.linalg.norm(first)
    return points @ np.stack([first, np.cross(normal, first)], axis=1)


def ears(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Cut one polygon in the plane into triangles, ear by ear.

    An edge may touch another, as those do that join a hole to the outline.

    Args:
        points: (C, 2), counterclockwise, of size 1 or so.

    Returns:
        (C - 2, 3) positions in `points`; triangles without area where three corners are in line.

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
            i, since = i + 1, 0  # not the neighbour at once: that would make slivers
        else:
            i, since = i + 1, since + 1
            if since > len(left):
                raise ValueError("crosses itself")
    if _turn(*points[left]) < -_ROUNDING:
        raise ValueError("crosses itself")
    return np.array([*faces, left], np.int64)


def _is_ear(points: NDArray[np.float64], corner: list[int], left: list[int]) -> bool:
    """Tell if a corner can be cut off: it has no area, or all others lie outside of its triangle."""
    a, b, c = points[corner]
    area = _turn(a, b, c)
    if abs(area) <= _ROUNDING:
        return True
    if area < 0:
        return False
    others = points[left]
    inside = (_turn(a, b, others) >= -_ROUNDING) & (_turn(b, c, others) >= -_ROUNDING)
    inside &= _turn(c, a, others) >= -_ROUNDING
    # Corners at the same place as one of the three, as where a hole is joined, do not lie in it; an edge that leads on
    # from there into it has an end in it, or crosses the cut.
    for point in (a, b, c):
        inside &= (others != point).any(1)
    return not inside.any() and not _crosses(a, c, others, np.roll(others, -1, axis=0), _ROUNDING).any()


def _crosses_itself(points: NDArray[np.float64]) -> bool:
    ends = np.roll(points, -1, axis=0)
    return any(_crosses(points[i], ends[i], points[i + 1 :], ends[i + 1 :], _TOUCH).any() for i in range(len(points)))


def _crosses(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], d: NDArray[np.float64], least: float
) -> NDArray[np.bool_]:
    """Tell which edges c to d lie on both sides of the edge a to b, and it on both sides of them, by `least`."""
    length, lengths = np.linalg.norm(b - a), np.linalg.norm(d - c, axis=1)
    one, other = _turn(a, b, c), _turn(a, b, d)
    mine, yours = _turn(c, d, a), _turn(c, d, b)
    apart = np.minimum(np.abs(one), np.abs(other)) > least * length
    apart &= np.minimum(np.abs(mine), np.abs(yours)) > least * lengths
    return apart & (one * other < 0) & (mine * yours < 0)


def _turn(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice the area of the triangles a, b, c: positive where they turn to the left."""
    e, f = b - a, c - a
    turned: NDArray[np.float64] = e[..., 0] * f[..., 1] - e[..., 1] * f[..., 0]
    return turned
