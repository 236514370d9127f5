"""View `mistakes`: the worst mistakes of a classifier, each above its nearest training shape."""

from torch import nn

from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError
from pc_ewa.eval import EvalSettings
from pc_ewa.viz.colours import GREEN, VERMILION, all_of
from pc_ewa.viz.judged import judge, nearest_training
from pc_ewa.viz.pick import unit_points
from pc_ewa.viz.scene import Panel, Scene, upright
from pc_ewa.viz.view import View


def mistakes(clouds: Clouds, training: Clouds, model: nn.Module, settings: EvalSettings, *, count: int = 5) -> Scene:
    """Show the misclassified shapes with the highest predicted probability, and their nearest training shapes.

    The nearest training shape has the largest cosine similarity of features, taken before the classification head.

    Args:
        clouds: the shapes to classify.
        training: the training shapes.
        model: a classifier.
        settings: the presentation of the clouds.
        count: the most mistakes to show.

    Raises:
        ConfigError: a model that is not a classifier, a count below 1, or no mistake to show.
    """
    if count < 1:
        raise ConfigError(f"count={count}; it must be at least 1")
    judgement = judge(model, clouds, settings)
    worst = judgement.mistakes()[:count]
    if not worst:
        raise ConfigError(
            f"all {len(clouds)} shapes of {clouds.name} are classified correctly; there is no mistake to show"
        )
    near = nearest_training(model, clouds, training, settings, [mistake.shape for mistake in worst])
    names = clouds.class_names
    above, below = [], []
    for mistake, index in zip(worst, near, strict=True):
        points = upright(unit_points(clouds, [mistake.shape])[0], clouds.up_axis)
        title = f"{names[mistake.true]} taken for\n{names[mistake.predicted]}, {mistake.probability:.0%}"
        above.append(Panel(points, all_of(VERMILION, len(points)), title))
        like = upright(unit_points(training, [index])[0], training.up_axis)
        kind = training.class_names[int(training.labels[index])]
        below.append(Panel(like, all_of(GREEN, len(like)), f"nearest in training:\n{kind}"))
    wrong = len(judgement.mistakes())
    title = f"worst of {wrong} mistakes on {len(clouds)} shapes of {clouds.name}"
    legend = {"mistake": VERMILION, "nearest training shape": GREEN}
    return Scene(title, [*above, *below], legend, columns=len(worst))


VIEW = View("the worst mistakes of a classifier, with the nearest training shapes", mistakes)
