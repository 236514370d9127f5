"""View `parts`: part segmentation, true beside predicted."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.data.parts import parts_of_classes
from pc_ewa.errors import ConfigError
from pc_ewa.eval import EvalSettings
from pc_ewa.eval.segmentation import predict_parts, shape_ious
from pc_ewa.viz.colours import KINDS, LIGHT, VERMILION
from pc_ewa.viz.pick import check_shapes, looking_at, titles
from pc_ewa.viz.scene import Floats, Panel, Scene, upright
from pc_ewa.viz.view import View

# VERMILION marks wrong points, so that it is not the colour of a part.
_PARTS = tuple(colour for colour in KINDS if colour != VERMILION)


def parts(
    clouds: Clouds,
    training: Clouds,
    model: nn.Module,
    settings: EvalSettings,
    *,
    shapes: tuple[int, ...] = (0, 1, 2),
) -> Scene:
    """Show a row for each shape: the true parts, the predicted parts, and the wrong points.

    Parts are numbered within their category, from 1, so that few colours are enough.

    Args:
        clouds: a dataset with parts.
        training: its training shapes. The parts of a category are published, or collected from both splits.
        model: a segmenter.
        settings: the presentation of the clouds.
        shapes: positions in the dataset.

    Raises:
        ConfigError: a model that is not a segmenter, or a position out of range.
        DataError: clouds without parts.
    """
    if getattr(model, "task", "") != "segment":
        raise ConfigError(f"{type(model).__name__} does not predict parts; choose a segmenter")
    shapes = tuple(check_shapes(clouds, shapes))
    parts_of = parts_of_classes([clouds, training])
    device = next(model.parameters()).device
    with looking_at(model):
        stored, labels = (tensor.to(device) for tensor in clouds.batch(shapes))
        points, index = settings.present(stored)
        # `present` samples points, so that the labels of the stored points are gathered by the same indices.
        true = clouds.part_labels(shapes).to(device).gather(1, index)
        predicted = predict_parts(model(points, labels), labels, parts_of)
    ious = shape_ious(predicted, true, labels, parts_of)
    panels, most = [], 1
    for row, title in enumerate(titles(clouds, shapes)):
        own = parts_of[int(labels[row])]
        most = max(most, len(own))
        place = upright(points[row], clouds.up_axis)
        wrong = (predicted[row] != true[row]).cpu().numpy()
        marked = np.where(wrong[:, None], VERMILION, LIGHT)
        panels += [
            Panel(place, _coloured(true[row], own), f"{title}: true"),
            Panel(place, _coloured(predicted[row], own), f"predicted, mIoU {float(ious[row]):.1%}"),
            Panel(place, marked, f"{int(wrong.sum())} of {len(wrong)} points wrong"),
        ]
    legend = {f"part {i + 1}": _PARTS[i % len(_PARTS)] for i in range(most)} | {"wrong": VERMILION, "right": LIGHT}
    return Scene(f"parts of {clouds.name}, true and predicted", panels, legend, columns=3)


def _coloured(labels: Tensor, own: Sequence[int]) -> Floats:
    """Return the colours (N, 3) of part labels of one category. The first part of each category has the same colour."""
    # Position of a label among the sorted labels of its category: searchsorted is exact, as each label is one of them.
    number = np.searchsorted(np.sort(np.asarray(own)), labels.cpu().numpy())
    return np.asarray(_PARTS, dtype=np.float32)[number % len(_PARTS)]


VIEW = View("part segmentation, true beside predicted", parts)
