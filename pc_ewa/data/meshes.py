"""Triangle meshes in OFF files, and points drawn from their surfaces."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc_ewa.errors import DataError

# The counts of vertices, faces and edges; many files of ModelNet40 have them on the line of "OFF", without a space.
_HEADER = re.compile(r"\s*OFF\s*(\d{1,9})\s+(\d{1,9})(?:\s+\d{1,9})?[ \t\r]*(?:\n|$)")


def read_off(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Read a mesh: vertices (V, 3), and triangles (F, 3) of positions in them; larger polygons are cut into fans.

    Raises:
        DataError: a file that cannot be read, is no OFF file, ends early or has numbers that make no mesh.
    """
    try:
        text = path.read_text("utf-8")
        if "#" in text:
            text = re.sub(r"#.*", "", text)
        header = _HEADER.match(text)
        if header is None:
            raise ValueError("it does not begin with OFF and the numbers of vertices and faces")
        lines = [line for line in text[header.end() :].split("\n") if line and not line.isspace()]
        return _mesh(lines, *map(int, header.groups()))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}; get a fresh copy") from error


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


def _mesh(lines: list[str], num_vertices: int, num_faces: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    if min(num_vertices, num_faces) == 0:
        raise ValueError(f"{num_vertices} vertices and {num_faces} faces are no surface")
    if len(lines) < num_vertices + num_faces:
        raise ValueError(f"{num_vertices} vertices and {num_faces} faces are announced, but {len(lines)} lines follow")
    vertices = _numbers(lines[:num_vertices], (0, 1, 2))
    if not np.isfinite(vertices).all():
        raise ValueError(f"vertex {np.flatnonzero(~np.isfinite(vertices).all(1))[0]} has NaN or infinity")
    faces = _faces(lines[num_vertices : num_vertices + num_faces])
    if len(faces) == 0 or faces.min() < 0 or faces.max() >= num_vertices:
        raise ValueError(f"faces have corners that are none of the {num_vertices} vertices")
    return vertices, faces


def _faces(lines: list[str]) -> NDArray[np.int64]:
    """Read lines of "corners first second third ...", with a color behind them or not."""
    sizes = {line.split(None, 1)[0] for line in lines}
    if sizes == {"3"}:
        table = _numbers(lines, (1, 2, 3))
    else:
        fans = []
        for line in lines:
            size, *rest = line.split()
            corners = [float(corner) for corner in rest[: int(size)]]
            if len(corners) != int(size):
                raise ValueError(f"a face of {size[:20]} corners has {len(corners)}")
            fans += [(corners[0], *corners[i : i + 2]) for i in range(1, len(corners) - 1)]
        table = np.array(fans, np.float64).reshape(-1, 3)
    if not (np.abs(table) < 2**31).all() or (table != np.rint(table)).any():
        raise ValueError("faces have corners that are no whole numbers")
    return table.astype(np.int64)


def _numbers(lines: list[str], columns: tuple[int, ...]) -> NDArray[np.float64]:
    return np.loadtxt(lines, np.float64, comments=None, usecols=columns, ndmin=2)
