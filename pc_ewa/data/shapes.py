"""A user's file as points: read, brought near the origin, then sampled from a mesh or drawn from a cloud."""

from pathlib import Path

import numpy as np

from pc_ewa.data.formats.meshes import sample_surface
from pc_ewa.data.formats.readers import Shape, read_shape
from pc_ewa.data.source import Sample, resize
from pc_ewa.errors import DataError

# Fewest distinct points of a cloud in a file. Any small table of numbers parses as one: a pose has 4 rows, a bounding
# box 8 corners, or 9 with its middle. Repeated up to thousands of points, it would pass for a scan.
FEWEST_POINTS = 10
# Points among which distinct ones are looked for first, because to sort all points of a scan takes seconds.
_FIRST_LOOK = 1000
# Largest coordinate, whose square float32 can still represent.
_LARGEST = 1e15
# Distance from the origin, in sizes of the shape, above which a shape is centred before the cast to float32. In map
# coordinates float32 would round its points to a visible grid.
_FAR = 1000


def read_scan(path: Path) -> Shape:
    """Read a file, which may be a mesh of any size, but not a cloud of a few points.

    Raises:
        DataError, MissingPackageError: as `read_shape`; a cloud with fewer than FEWEST_POINTS distinct points.
    """
    shape = read_shape(path)
    if shape.faces is not None:
        return shape
    for some in (shape.vertices[:_FIRST_LOOK], shape.vertices):
        distinct = len(np.unique(some, axis=0))
        if distinct >= FEWEST_POINTS:
            return shape
    points = "1 distinct point" if distinct == 1 else f"{distinct} distinct points"
    raise DataError(
        f"{path} has {points}, and a cloud {FEWEST_POINTS} or more; remove it, or store a solid as a mesh with faces"
    )


def near_origin(shape: Shape, where: str | Path) -> Shape:
    """Move a shape that is far from the origin to it, in float64. `where` begins the message of an error.

    Raises:
        DataError: coordinates too large for any sensible unit.
    """
    points = shape.vertices
    if np.abs(points).max() > _LARGEST:
        raise DataError(f"{where}: coordinates up to {np.abs(points).max():.1g}; store it in a sensible unit")
    low, high = points.min(0), points.max(0)
    if 0 < (high - low).max() < np.abs((low + high) / 2).max() / _FAR:
        return shape._replace(vertices=points - (low + high) / 2)
    return shape


def sample_shape(shape: Shape, count: int, seed: str, where: str | Path) -> Sample:
    """Sample `count` points of a shape: from the surface of a mesh, or from the points of a cloud.

    Args:
        shape: a shape near the origin, as returned by `near_origin`.
        count: number of points.
        seed: text that seeds the draw, which is the same on every machine.
        where: beginning of the message of an error.

    Raises:
        DataError: a mesh without a surface.
    """
    points, faces = shape
    if faces is None:
        return resize(Sample(points.astype(np.float32)), count, seed=seed)
    # RandomState, not default_rng: NEP 19 freezes its stream for all versions of numpy.
    random = np.random.RandomState([*seed.encode("utf-8")])
    try:
        sampled = sample_surface(points, faces, count, random)
    except ValueError as error:
        raise DataError(f"{where}: {error}; repair the mesh, or store it without faces as a point cloud") from error
    return Sample(sampled.astype(np.float32))
