"""The scenes of a report, chosen by the kind of model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from pc_ewa.config import Experiment
from pc_ewa.eval import Segmentation
from pc_ewa.ewa import expert_layers
from pc_ewa.report.subjects import Subjects
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.viz import VIEWS, Panel, Scene, upright
from pc_ewa.viz.colours import BLUE, all_of
from pc_ewa.viz.judged import Judgement, judge
from pc_ewa.viz.pick import unit_points

_WORST, _BEST = 8, 4
# The config names the device of the training, and this machine may have another.
_HERE = ["device=auto"]


class Pictures:
    """The scenes of a run, on its test shapes. Model and data are loaded at their first use.

    Args:
        run: a run that has begun.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.missing: list[str] = []  # reasons why the page lacks pictures
        # Two: reading the config alone must work for a run that has no checkpoint yet.
        self._config = Subjects([str(run.path)], _HERE, "test", with_model=False)
        self._subjects = Subjects([str(run.path)], _HERE, "test")

    @property
    def experiment(self) -> Experiment:
        """The resolved experiment."""
        return self._config.experiment

    @property
    def has_model(self) -> bool:
        """True if there is a checkpoint."""
        return self.run.merged("last").is_file() or self.run.checkpoints.last.is_file()

    def judgement(self) -> Judgement | None:
        """Classify the test shapes by the merged model of the last step.

        Returns None if there is no checkpoint, or if the model is not a classifier.
        """
        return self._judgement if self.has_model and self._task == "classify" else None

    def parts_score(self) -> Segmentation | None:
        """Measure the mIoU of the same model on the test shapes.

        Returns None if there is no checkpoint, or if the model is not a segmenter.
        """
        score = self._subjects.score() if self.has_model and self._task == "segment" else None
        return score if isinstance(score, Segmentation) else None

    def scenes(self) -> Iterator[tuple[str, Scene]]:
        """Yield title and scene of each picture that suits the model. Without a checkpoint there is none."""
        if not self.has_model:
            return
        subjects = self._subjects
        shown = {"clouds": subjects.clouds, "model": subjects.model, "settings": subjects.settings}
        count = len(subjects.clouds)
        shapes = tuple(sorted({0, count // 3, 2 * count // 3}))
        if self._task == "classify":
            yield from self._mistakes_and_hits()
        elif self._task == "segment":
            yield "Parts", _scene("parts", **shown, training=subjects.training, shapes=shapes)
        else:
            kind = "tokens" if hasattr(subjects.model, "transformer_q") else "reconstruction"
            yield kind.capitalize(), _scene(kind, **shown, shapes=shapes)
        encoder = getattr(subjects.model, "transformer_q", subjects.model)
        if hasattr(encoder, "cls_token"):
            yield "Attention", _scene("attention", **shown, shapes=shapes)
        if self.run.checkpoints.last.is_file():
            before = Subjects([str(self.run.path)], _HERE, "test", experts=True)
            if expert_layers(before.model):
                yield "Experts", _scene("experts", **shown | {"model": before.model}, shapes=shapes[:1])

    def _mistakes_and_hits(self) -> Iterator[tuple[str, Scene]]:
        subjects, judgement = self._subjects, self._judgement
        clouds = subjects.clouds
        if judgement.mistakes():
            given = {"clouds": clouds, "training": subjects.training, "settings": subjects.settings}
            scene = _scene("mistakes", model=subjects.model, **given, count=_WORST)
            # The scene has a row of mistakes above a row of their neighbours. A page wraps rows, so interleave them.
            half = len(scene.panels) // 2
            pairs = zip(scene.panels[:half], scene.panels[half:], strict=True)
            yield "Worst mistakes", replace(scene, panels=[panel for pair in pairs for panel in pair], columns=2)
        hits = judgement.hits()[:_BEST]
        if hits:
            panels = []
            for hit in hits:
                points = upright(unit_points(clouds, [hit.shape])[0], clouds.up_axis)
                panels.append(
                    Panel(points, all_of(BLUE, len(points)), f"{clouds.class_names[hit.true]}, {hit.probability:.0%}")
                )
            yield "Best hits", Scene("the most certain of the shapes that were classified correctly", panels)

    @property
    def _task(self) -> str:
        return str(self._subjects.model.task)

    @cached_property
    def _judgement(self) -> Judgement:
        return judge(self._subjects.model, self._subjects.clouds, self._subjects.settings)


def _scene(view: str, **given: object) -> Scene:
    scene = VIEWS[view].make(**given)
    assert isinstance(scene, Scene)
    return scene
