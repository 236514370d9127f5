"""View `augment`: clouds before and after the random changes of training."""

from collections.abc import Callable

import torch
from torch import Tensor

from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError
from pc_ewa.viz.colours import by_height
from pc_ewa.viz.pick import titles, unit_points
from pc_ewa.viz.scene import Panel, Scene, upright
from pc_ewa.viz.view import View


def augment(
    clouds: Clouds,
    augmentation: Callable[[Tensor, torch.Generator], Tensor],
    *,
    shapes: tuple[int, ...] = (0,),
    draws: int = 3,
    seed: int = 0,
) -> Scene:
    """Show a row for each shape: the cloud, and several random augmentations of it, all at one scale.

    A point keeps the colour of its original height, so that the reader can follow it.

    Args:
        clouds: the dataset.
        augmentation: a function of clouds (B, P, 3) and a generator that augments as in training.
        shapes: positions in the dataset.
        draws: number of augmented clouds per shape.
        seed: of the random numbers.

    Raises:
        ConfigError: `draws` below 1, or a position out of range.
    """
    if draws < 1:
        raise ConfigError(f"draws={draws}; it must be at least 1")
    points = unit_points(clouds, shapes)
    generator = torch.Generator(points.device).manual_seed(seed)
    changed = [augmentation(points, generator) for _ in range(draws)]
    panels = []
    for row, title in enumerate(titles(clouds, shapes)):
        before = upright(points[row], clouds.up_axis)
        colours = by_height(before)
        panels.append(Panel(before, colours, title))
        for number, after in enumerate(changed, 1):
            panels.append(Panel(upright(after[row], clouds.up_axis), colours, f"draw {number}"))
    return Scene(f"{clouds.name} before and after augmentation", panels, columns=draws + 1)


VIEW = View("clouds before and after the augmentation of training", augment)
