"""View `cloud`: point clouds or meshes from files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pc_ewa.data import UpAxis
from pc_ewa.data.formats.meshes import sample_surface
from pc_ewa.data.formats.readers import EXTENSIONS, read_shape
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.viz.colours import by_height
from pc_ewa.viz.scene import Floats, Panel, Scene, upright
from pc_ewa.viz.view import View


def cloud(files: Sequence[Path], *, points: int = 4096, up: UpAxis = "z", seed: int = 0) -> Scene:
    """Show the shapes in files, each centred, scaled into the unit sphere and coloured by height.

    Args:
        files: point clouds, or meshes, whose surface is sampled uniformly.
        points: the most points of a shape. A larger cloud is subsampled at random.
        up: the axis that points up in the files; the default is that of `pc-ewa prepare files`.
        seed: of the sampling.

    Raises:
        ConfigError: a file whose extension is not supported.
        DataError: a file that is missing or damaged.
    """
    panels = []
    for path in files:
        shape = _unit(upright(_read(path, points, seed), up))
        panels.append(Panel(shape, by_height(shape), path.name))
    return Scene(files[0].name if len(files) == 1 else f"{len(files)} files", panels)


def _read(path: Path, count: int, seed: int) -> Floats:
    if path.suffix.lower() not in EXTENSIONS:
        raise ConfigError(f"{path} has an unknown extension; choose a file that ends in {' '.join(EXTENSIONS)}")
    points, faces = read_shape(path)
    # Centre and scale in float64 before the conversion: float32 would round a cloud far from the origin, such as one in
    # map coordinates, to a few distinct values.
    middle = (points.min(0) + points.max(0)) / 2
    points = (points - middle) / (np.abs(points - middle).max() or 1.0)
    random = np.random.RandomState(seed)
    if faces is not None:
        try:
            points = sample_surface(points, faces, count, random)
        except ValueError as error:
            raise DataError(f"{path}: {error}; repair the mesh, or store it without faces") from error
    if len(points) > count:
        points = points[np.sort(random.permutation(len(points))[:count])]
    return points.astype(np.float32)


def _unit(points: Floats) -> Floats:
    points = points - (points.min(0) + points.max(0)) / 2
    return points / (np.linalg.norm(points, axis=1).max() or 1.0)


VIEW = View("point clouds or meshes from files", cloud)
