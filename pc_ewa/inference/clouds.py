"""Inputs of prediction, an array, a file or a folder, brought to the points that a model was trained on."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pc_ewa import ops
from pc_ewa.data import UpAxis
from pc_ewa.data.folders import walk
from pc_ewa.data.formats.readers import EXTENSIONS, Shape
from pc_ewa.data.shapes import near_origin, read_scan, sample_shape
from pc_ewa.errors import ConfigError, DataError
from pc_ewa.eval import EvalSettings
from pc_ewa.models.base import Preprocessing

# Seed of the random samples. It does not depend on the name of a file: the same points give the same prediction.
_DRAW = "predict"


class Input(NamedTuple):
    """A cloud or mesh that is not read yet. `read` returns it, or raises DataError with its name and the defect."""

    name: str
    read: Callable[[], Shape]


class Presented(NamedTuple):
    """A cloud as the input of a model.

    Attributes:
        name: the name of the cloud.
        points: the points in the input, (N, 3).
        places: the same points before scaling, (N, 3).
        all_points: all points of the cloud, (V, 3). None for a classifier, because a scan may be large.
    """

    name: str
    points: Tensor
    places: Tensor
    all_points: Tensor | None


def as_inputs(inputs: Any) -> tuple[list[Input], bool]:
    """Return the clouds in the input of a user, without reading files.

    Args:
        inputs: points (P, 3) or (B, P, 3), a file, a folder with files at any depth, or a list of such.

    Returns:
        The clouds, and a flag. The flag is True for a single cloud, and False for a list or batch of one.

    Raises:
        DataError: the input has another type, a path does not exist, or a folder has no files of a known format.

    Example:
        >>> clouds, single = pc_ewa.inference.as_inputs(torch.rand(2, 1000, 3))
        >>> len(clouds), single, clouds[1].name
        (2, False, 'cloud 1')
    """
    if isinstance(inputs, str | os.PathLike):
        path = Path(os.path.expanduser(inputs))
        return (_of_folder(path), False) if os.path.isdir(path) else ([_of_file(path)], True)
    if isinstance(inputs, Tensor | np.ndarray):
        array = _numbers(inputs) if isinstance(inputs, Tensor) else inputs
        if array.ndim == 3:
            return [_of_array(points, f"cloud {i}") for i, points in enumerate(array)], False
        return [_of_array(array, "cloud")], True
    if isinstance(inputs, Iterable):
        found: list[Input] = []
        for item in inputs:
            if not isinstance(item, str | os.PathLike | Tensor | np.ndarray):
                raise DataError(f"a list with a {type(item).__name__}; give arrays (points, 3), files or folders")
            some, single = as_inputs(item)
            named = not isinstance(item, Tensor | np.ndarray)
            found += some if named or not single else [some[0]._replace(name=f"cloud {len(found)}")]
        return found, False
    raise DataError(f"a {type(inputs).__name__} is not a cloud; give an array (points, 3), a file, a folder or a list")


def present(cloud: Input, preprocessing: Preprocessing, up: UpAxis | None, keep_all: bool = False) -> Presented:
    """Read a cloud and apply the preprocessing of the model, as in evaluation.

    Args:
        cloud: the cloud to read.
        preprocessing: the preprocessing of the model.
        up: the axis that points up in the cloud, if it differs from that of the training data. None means the same.
        keep_all: return all points too.

    Raises:
        DataError: the cloud cannot be read or used.
    """
    shape = near_origin(cloud.read(), cloud.name)
    if up is not None and preprocessing.up_axis is not None:
        shape = shape._replace(vertices=turn(shape.vertices, up, preprocessing.up_axis))
    count = preprocessing.stored_points
    if count is None:  # unknown: use all points, and repeat some if there are too few
        count = preprocessing.num_points if shape.faces is not None else len(shape.vertices)
        count = max(count, preprocessing.num_points)
    stored = torch.from_numpy(sample_shape(shape, count, _DRAW, cloud.name).points)[None]
    settings = EvalSettings(preprocessing.num_points, preprocessing.normalize, preprocessing.sampling)
    points, index = settings.present(stored)
    everywhere = torch.from_numpy(shape.vertices.astype(np.float32)) if keep_all else None
    return Presented(cloud.name, points[0], ops.gather_points(stored, index)[0], everywhere)


def check_up(up: str | None, preprocessing: Preprocessing) -> None:
    """Check that an up axis exists, and that the model has one to rotate it to.

    Raises:
        ConfigError: it does not, or the model has none.
    """
    if up not in (None, *get_args(UpAxis)):
        raise ConfigError(f"up={up!r}; choose from {', '.join(get_args(UpAxis))}")
    if up is not None and preprocessing.up_axis is None:
        raise ConfigError(
            f"up={up!r}, but the checkpoint has no up axis of its training data; rotate the cloud yourself, or set "
            "model.preprocessing"
        )


def turn(points: NDArray[np.float64], up: UpAxis, to: UpAxis) -> NDArray[np.float64]:
    """Rotate points (P, 3) by 90 degrees so that the axis `up` becomes the axis `to`. The third axis stays."""
    if up == to:
        return points
    # The minus sign makes it a rotation. A plain exchange of two axes is a reflection: left shoes would become right.
    source, target = "xyz".index(up), "xyz".index(to)
    turned = points.copy()
    turned[:, target], turned[:, source] = points[:, source], -points[:, target]
    return turned


def _of_folder(folder: Path) -> list[Input]:
    found = sorted(walk(folder, str(folder), EXTENSIONS))
    if not found:
        raise DataError(f"{folder} has no clouds or meshes; known are {' '.join(EXTENSIONS)}")
    return [Input(name, partial(read_scan, path)) for name, path in found]


def _of_file(path: Path) -> Input:
    if not os.path.isfile(path):  # Path.is_file raises if a name is too long
        raise DataError(f"{path} is not a file or a folder; check the path")
    if path.suffix.lower() not in EXTENSIONS:
        raise DataError(f"{path} has an unknown format; known are {' '.join(EXTENSIONS)}")
    # Bytes in a path that are not UTF-8 become surrogates, which can be neither printed nor written.
    return Input(str(path).encode("utf-8", "replace").decode(), partial(read_scan, path))


def _numbers(points: Tensor) -> NDArray[Any]:
    """Return a tensor as an array."""
    try:
        # numpy has no bfloat16 or float8, so every floating-point tensor is converted.
        points = points.detach().cpu()
        return (points.double() if points.is_floating_point() else points).numpy()
    except (TypeError, NotImplementedError, RuntimeError):
        kind = f"{points.dtype} {points.layout} tensor on {points.device}".replace("torch.", "")
        raise DataError(f"a {kind} has no coordinates to read; give a dense one of numbers") from None


def _of_array(array: NDArray[Any], name: str) -> Input:
    return Input(name, partial(_shape_of_array, array, name))


def _shape_of_array(array: NDArray[Any], name: str) -> Shape:
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "fiu":
        raise DataError(f"{name} is {array.shape} {array.dtype}; give x, y and z of each point: (points, 3) numbers")
    if np.ma.is_masked(array):
        raise DataError(f"{name} has masked coordinates; give the points that are left: np.ma.compress_rows(points)")
    if len(array) == 0:
        raise DataError(f"{name} has no points")
    points = array.astype(np.float64)
    if not np.isfinite(points).all():
        raise DataError(f"{name} has {points[~np.isfinite(points)][0]} among its coordinates; remove or repair it")
    return Shape(points)
