"""A sheet of predictions: each cloud as in the input of the model, with its class, or with its parts in colours."""

from collections.abc import Sequence

import numpy as np

from pc_ewa.data import UpAxis
from pc_ewa.inference.clouds import Input, present
from pc_ewa.inference.predictions import PartPrediction, Prediction
from pc_ewa.models.base import Preprocessing
from pc_ewa.text import printable
from pc_ewa.viz import Panel, Scene, upright
from pc_ewa.viz.colours import by_height, kind_colours, kind_legend
from pc_ewa.viz.scene import Floats

MOST = 24  # clouds on a sheet


def predicted_scene(
    found: Sequence[Prediction | PartPrediction],
    clouds: Sequence[Input],
    preprocessing: Preprocessing,
    up: UpAxis | None,
) -> Scene:
    """Return a scene with the first predictions and their clouds, upright if the up axis of the model is known.

    Args:
        found: the predictions, at least one.
        clouds: the clouds of the predictions, and perhaps others. They are read again.
        preprocessing: the preprocessing of the model.
        up: as in `predict`.
    """
    by_name = {cloud.name: cloud for cloud in clouds}
    panels, most = [], 0
    for prediction in found[:MOST]:
        if isinstance(prediction, PartPrediction):
            most = max(most, int(prediction.parts.max()) + 1)
            place = upright(prediction.points, preprocessing.up_axis or "y")
            colours, answer = kind_colours(prediction.parts.numpy()), prediction.category
            panels.append(Panel(_unit(place), colours, f"{answer}\n{_name(prediction)}"))
        else:
            place = upright(present(by_name[prediction.name], preprocessing, up).points, preprocessing.up_axis or "y")
            answer = f"{prediction.label} {prediction.probability:.0%}"
            panels.append(Panel(place, by_height(place), f"{answer}\n{_name(prediction)}"))
    more = f" of {len(found)}" if len(found) > MOST else ""
    legend = kind_legend([f"part {part}" for part in range(most)])
    return Scene(f"predictions, {len(panels)}{more}", panels, legend)


def _name(prediction: Prediction | PartPrediction) -> str:
    """Return the last part of the name of a cloud, which is the path of its file if it has one."""
    return printable(prediction.name.replace("\\", "/").rsplit("/", 1)[-1], 40)


def _unit(points: Floats) -> Floats:
    """Centre and scale points to the unit sphere, so that all clouds of a sheet have the same size."""
    points = points - (points.min(0) + points.max(0)) / 2
    return points / (np.linalg.norm(points, axis=1).max() or 1.0)
