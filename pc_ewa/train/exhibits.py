"""Pictures of a trained model for the trackers: mistakes, parts, reconstructions."""

from torch import nn

from pc_ewa.eval import EvalSettings
from pc_ewa.models.dvae import DiscreteVAE
from pc_ewa.models.point_bert import PointBERT
from pc_ewa.models.point_mae import PointMAE
from pc_ewa.trackers import Cloud
from pc_ewa.train.splits import Splits
from pc_ewa.train.tracking import Tracker
from pc_ewa.viz import VIEWS, Scene, upright
from pc_ewa.viz.colours import by_height
from pc_ewa.viz.judged import judge
from pc_ewa.viz.pick import shape_name, unit_points

_WORST = 20
# The view of each pre-trained model, by class; subclasses share it. No entry, no picture.
_VIEWS: dict[type[nn.Module], str] = {PointMAE: "reconstruction", DiscreteVAE: "reconstruction", PointBERT: "tokens"}


def show_judgement(tracker: Tracker, step: int, model: nn.Module, splits: Splits, settings: EvalSettings) -> None:
    """Show the confusion matrix, the accuracy of each class and the worst mistakes of a classifier on test."""
    clouds, names = splits.test, splits.test.class_names
    judgement = judge(model, clouds, settings)
    accuracy = judgement.accuracy
    tracker.tell(lambda backend: backend.confusion(step, names, accuracy.confusion.tolist()))
    classes = [(name, correct / samples, correct, samples) for name, samples, correct in accuracy.per_class if samples]
    tracker.tell(lambda backend: backend.table(step, "per_class", ("class", "accuracy", "correct", "samples"), classes))
    worst = [
        (
            shape_name(clouds, mistake.shape),
            names[mistake.true],
            names[mistake.predicted],
            mistake.probability,
            Cloud(points := upright(unit_points(clouds, [mistake.shape])[0], clouds.up_axis), by_height(points)),
        )
        for mistake in judgement.mistakes()[:_WORST]
    ]
    columns = ("name", "true", "predicted", "probability", "cloud")
    tracker.tell(lambda backend: backend.table(step, "worst_mistakes", columns, worst))


def show_parts(tracker: Tracker, step: int, model: nn.Module, splits: Splits, settings: EvalSettings) -> None:
    """Show the true and the predicted parts of three test samples."""
    _show_scene(tracker, step, "parts", clouds=splits.test, training=splits.train, model=model, settings=settings)


def show_pretraining(tracker: Tracker, step: int, model: nn.Module, splits: Splits, settings: EvalSettings) -> None:
    """Show the outputs of a pre-trained model on three test samples. A model without a view is skipped."""
    for kind, view in _VIEWS.items():
        if isinstance(model, kind):
            _show_scene(tracker, step, view, clouds=splits.test, model=model, settings=settings)


def _show_scene(tracker: Tracker, step: int, view: str, **subjects: object) -> None:
    clouds = subjects["clouds"]
    count = len(clouds)  # type: ignore[arg-type]
    # Datasets are often sorted by class: three positions far apart show three classes. A set, for datasets of one or
    # two.
    scene = VIEWS[view].make(**subjects, shapes=tuple(sorted({0, count // 3, 2 * count // 3})))
    assert isinstance(scene, Scene)
    shown = [Cloud(panel.points, panel.colours, " ".join(panel.title.split())) for panel in scene.panels]
    tracker.tell(lambda backend: backend.clouds(step, view, shown))
