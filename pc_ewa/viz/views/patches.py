"""View `patches`: the patches of a model, and their centers."""

import numpy as np
from torch import nn

from pc_ewa.data import Clouds
from pc_ewa.eval import EvalSettings
from pc_ewa.viz.colours import DARK, all_of, kind_colours, neighbour_colours
from pc_ewa.viz.pick import looking_at, patch_of_point, patches_of, presented, titles
from pc_ewa.viz.scene import Panel, Scene, upright
from pc_ewa.viz.view import View

_CENTER_SIZE = 1.8


def patches(clouds: Clouds, model: nn.Module, settings: EvalSettings, *, shapes: tuple[int, ...] = (0, 1, 2)) -> Scene:
    """Show each point in the colour of the patch with the nearest center, and the centers as large dark points.

    Args:
        clouds: the dataset.
        model: a model with `num_groups` and `group_size`.
        settings: the presentation of the clouds.
        shapes: positions in the dataset.

    Raises:
        ConfigError: a model without patches, or a position out of range.
    """
    panels = []
    with looking_at(model):
        points, _ = presented(clouds, shapes, settings, model)
        groups, centers = patches_of(model, points)
        owner = patch_of_point(points, centers).cpu().numpy()
    for cloud, middle, patch, title in zip(points, centers, owner, titles(clouds, shapes), strict=True):
        dots = upright(middle, clouds.up_axis)
        colours = kind_colours(neighbour_colours(dots)[patch])
        all_points = np.concatenate([upright(cloud, clouds.up_axis), dots])
        sizes = np.array([1.0] * len(cloud) + [_CENTER_SIZE] * len(dots))
        panels.append(Panel(all_points, np.concatenate([colours, all_of(DARK, len(dots))]), title, sizes))
    count, size = groups.shape[1:3]
    legend = {"center of a patch": DARK}
    return Scene(f"{count} patches of {size} points", panels, legend)


VIEW = View("patches and their centers", patches)
