"""View `reconstruction`: inputs and reconstructions of Point-MAE and the dVAE."""

import numpy as np
import torch
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError
from pc_ewa.eval import EvalSettings
from pc_ewa.models.dvae import DiscreteVAE
from pc_ewa.models.point_mae import PointMAE
from pc_ewa.viz.colours import BLUE, LIGHT, ORANGE, VERMILION, Colour, all_of
from pc_ewa.viz.pick import looking_at, patches_of, presented, titles
from pc_ewa.viz.scene import Panel, Scene, upright
from pc_ewa.viz.view import View

Part = tuple[Tensor, Colour]


def reconstruction(
    clouds: Clouds, model: nn.Module, settings: EvalSettings, *, shapes: tuple[int, ...] = (0, 1, 2)
) -> Scene:
    """Show a row of three pictures for each shape.

    For Point-MAE: the whole cloud with masked patches marked; the visible patches, which are the encoder's input; the
    visible patches with the decoder's predictions of the masked ones. The mask is that of the validation loss.

    For the dVAE: the whole cloud; the coarse points decoded from one token per patch; the fine points.

    Args:
        clouds: the dataset.
        model: `PointMAE` or `DiscreteVAE`.
        settings: the presentation of the clouds.
        shapes: positions in the dataset.

    Raises:
        ConfigError: another model, or a position out of range.
    """
    if not isinstance(model, PointMAE | DiscreteVAE):
        raise ConfigError(f"{type(model).__name__} reconstructs nothing; choose a point_mae or a dvae")
    with looking_at(model):
        points, _ = presented(clouds, shapes, settings, model)
        rows = _masked(model, points) if isinstance(model, PointMAE) else _rebuilt(model, points)
    panels = []
    for row, title in zip(rows, titles(clouds, shapes), strict=True):
        for index, (name, parts) in enumerate(row.items()):
            whole = upright(torch.cat([part for part, _ in parts]), clouds.up_axis)
            colours = np.concatenate([all_of(colour, len(part)) for part, colour in parts])
            panels.append(Panel(whole, colours, f"{title}: {name}" if index == 0 else name))
    if isinstance(model, PointMAE):
        share = f"{int(model.mask_ratio * model.num_groups)} of {model.num_groups} patches are hidden"
        legend = {"visible": BLUE, "hidden": LIGHT, "predicted": ORANGE}
        return Scene(f"Point-MAE: {share}", panels, legend, columns=3)
    legend = {"the cloud": BLUE, "coarse": VERMILION, "fine": ORANGE}
    return Scene(
        f"dVAE: each of {model.num_groups} patches rebuilt from one of {model.num_tokens} words",
        panels,
        legend,
        columns=3,
    )


def _masked(model: PointMAE, points: Tensor) -> list[dict[str, list[Part]]]:
    groups, _ = patches_of(model, points)
    outputs = model(points).outputs
    rows = []
    # Predictions and patches are relative to their centers: add these to place them in the cloud.
    for patches, centers, mask, predicted in zip(
        groups, outputs["centers"], outputs["mask"], outputs["predicted"], strict=True
    ):
        placed = patches + centers[:, None]
        visible, hidden = placed[~mask].flatten(0, 1), placed[mask].flatten(0, 1)
        guessed = (predicted + centers[mask][:, None]).flatten(0, 1)
        rows.append(
            {
                "whole": [(hidden, LIGHT), (visible, BLUE)],
                "visible": [(visible, BLUE)],
                f"reconstructed, {_distance(guessed, hidden)}": [(visible, BLUE), (guessed, ORANGE)],
            }
        )
    return rows


def _rebuilt(model: DiscreteVAE, points: Tensor) -> list[dict[str, list[Part]]]:
    outputs = model(points).outputs
    centers = outputs["centers"][:, :, None]
    coarse, fine = ((outputs[name] + centers).flatten(1, 2) for name in ("coarse", "fine"))
    return [
        {
            "whole": [(cloud, BLUE)],
            f"coarse, {_distance(few, cloud)}": [(few, VERMILION)],
            f"fine, {_distance(many, cloud)}": [(many, ORANGE)],
        }
        for cloud, few, many in zip(points, coarse, fine, strict=True)
    ]


def _distance(found: Tensor, true: Tensor) -> str:
    return f"Chamfer {float(ops.chamfer_distance(found[None], true[None], 'l1')):.3f}"


VIEW = View("masked, visible and reconstructed patches (point_mae, dvae)", reconstruction)
