"""Readers of files with the point cloud or the mesh of one shape.

Only coordinates and faces are read. Materials, textures and other files that a file names are ignored, and nothing is
executed. Memory is bounded by the size of the file, whatever its header claims. A truncated or contradictory file is
refused, never read in part; only XYZ and OBJ do not declare their length.

Most of these readers are ours, because common packages silently accept truncated files. trimesh 5.2.0 accepts OFF (49
of 180 faces) and STL (an empty mesh). open3d 0.20 accepts all formats, and reads ModelNet's `OFF100 180 0` as no
points. meshio 5.3.5 drops bad faces of OBJ, and exits the program on ModelNet's OFF. pypcd4 1.5.1 accepts PCD (139 of
200 points).
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pc_ewa.data.formats.las import parse_las
from pc_ewa.data.formats.npy import npy_points
from pc_ewa.data.formats.pcd import parse_pcd
from pc_ewa.data.formats.ply import parse_ply
from pc_ewa.data.formats.polygons import Lists, triangulate
from pc_ewa.data.formats.tables import parse_table
from pc_ewa.data.formats.text_meshes import parse_obj, parse_off, parse_stl
from pc_ewa.errors import DataError

_Cloud = NDArray[np.float64]
_PARSERS: dict[str, Callable[[bytes], _Cloud | tuple[_Cloud, Lists | None]]] = {
    ".ply": parse_ply,
    ".pcd": parse_pcd,
    ".xyz": parse_table,
    ".txt": parse_table,
    ".csv": parse_table,
    ".npy": npy_points,
    ".off": parse_off,
    ".obj": parse_obj,
    ".stl": parse_stl,
    ".las": parse_las,
    ".laz": parse_las,
}
EXTENSIONS = tuple(_PARSERS)
PREPARED = (".h5", ".hdf5")  # of a file with a whole dataset, which `pc-ewa prepare` writes


class Shape(NamedTuple):
    """Finite vertices (V, 3), and triangles (F, 3) of valid vertex indices. Faces are None for a point cloud."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64] | None = None


def read_shape(path: Path) -> Shape:
    """Read a file. Its extension, one of EXTENSIONS, selects the format.

    Raises:
        DataError: missing, damaged, without points, or NaN or infinity among the coordinates.
        MissingPackageError: a format that needs an extra, see `formats.kinds`.
    """
    kind = path.suffix.lower()
    try:
        with np.errstate(all="ignore"):
            parsed = _PARSERS[kind](path.read_bytes())
            return _shape(*parsed) if isinstance(parsed, tuple) else _shape(parsed)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give access to it, or remove it") from error
    except MemoryError as error:
        raise DataError(f"cannot read {path}: it is too large for the memory; thin it out") from error
    except (ValueError, OverflowError) as error:
        # The message may quote a word of the file, which may have any length.
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"cannot read {path} as {kind[1:]}: {reason}; repair, replace or remove it") from error


def _shape(vertices: NDArray[np.float64], polygons: Lists | None = None) -> Shape:
    """Validate vertices and polygons, and triangulate. A mesh without faces becomes a point cloud."""
    if not len(vertices):
        raise ValueError("it has no points")
    if not np.isfinite(vertices).all():
        raise ValueError(f"{vertices[~np.isfinite(vertices)][0]} among the coordinates")
    if polygons is None or not len(polygons.values):
        return Shape(vertices)
    corners = polygons.values
    if corners.min() < 0 or corners.max() >= len(vertices):
        bad = corners.min() if corners.min() < 0 else corners.max()
        raise ValueError(f"a face has vertex {bad:.0f}, counted from 0, but there are {len(vertices)}")
    faces = triangulate(vertices, polygons)
    return Shape(vertices, faces if len(faces) else None)
