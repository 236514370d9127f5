"""Selection of shapes for a view: their points as the model gets them, their patches and their titles."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.data import Clouds
from pc_ewa.data.transforms import normalize_unit_sphere
from pc_ewa.errors import ConfigError
from pc_ewa.eval import EvalSettings


def check_shapes(clouds: Clouds, shapes: Sequence[int]) -> list[int]:
    """Return the requested positions of shapes, checked.

    Raises:
        ConfigError: no position, or one that is not in the dataset.
    """
    wrong = [index for index in shapes if not 0 <= index < len(clouds)]
    if wrong or not shapes:
        asked = f"shape {wrong[0]}" if wrong else "no shape"
        raise ConfigError(f"{asked} of {clouds.name}; choose from 0 to {len(clouds) - 1}")
    return list(shapes)


def unit_points(clouds: Clouds, shapes: Sequence[int]) -> Tensor:
    """Return shapes (B, P, 3) scaled into the unit sphere."""
    return normalize_unit_sphere(clouds.batch(check_shapes(clouds, shapes))[0])


def presented(clouds: Clouds, shapes: Sequence[int], settings: EvalSettings, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return shapes (B, N, 3) and labels (B,) as a model gets them in evaluation, on its device."""
    device = next(model.parameters()).device
    points, labels = clouds.batch(check_shapes(clouds, shapes))
    return settings.present(points.to(device))[0], labels.to(device)


def patch_of_point(points: Tensor, centers: Tensor) -> Tensor:
    """Return the patch (B, N), int64, of each point (B, N, 3): the one with the nearest of the centers (B, G, 3).

    Patches overlap, but in a picture each point needs one colour.
    """
    return ops.knn(points, centers, 1)[1][..., 0]


def patches_of(model: nn.Module, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return patches (B, G, K, 3) relative to their centers, and centers (B, G, 3), grouped as by the model.

    Raises:
        ConfigError: a model without patches.
    """
    count, size = getattr(model, "num_groups", None), getattr(model, "group_size", None)
    if not isinstance(count, int) or not isinstance(size, int):
        raise ConfigError(f"{type(model).__name__} has no num_groups and group_size; choose a model with patches")
    return ops.group(points, count, size)


def shape_name(clouds: Clouds, index: int) -> str:
    """Return the name of a shape, or its class and position if the dataset has no names."""
    if clouds.shape_names is not None:
        return clouds.shape_names[index]
    return f"{clouds.class_names[int(clouds.labels[index])]} {index}"


def titles(clouds: Clouds, shapes: Sequence[int]) -> list[str]:
    """Return titles with the class and position of shapes."""
    return [f"{clouds.class_names[int(clouds.labels[index])]}, shape {index}" for index in shapes]


@contextmanager
def looking_at(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode without gradients, and restore the mode of every submodule afterwards."""
    # One flag for the whole model would not do: a user may have frozen some submodules in evaluation mode.
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
