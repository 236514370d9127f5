"""View `experts`: the expert that each patch is routed to in a training step, layer by layer."""

import numpy as np
from torch import nn

from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError
from pc_ewa.eval import EvalSettings
from pc_ewa.ewa import expert_layers
from pc_ewa.viz.colours import KINDS, LIGHT, kind_colours, kind_legend
from pc_ewa.viz.pick import looking_at, patch_of_point, patches_of, presented, titles
from pc_ewa.viz.routes import routes
from pc_ewa.viz.scene import Panel, Scene, upright
from pc_ewa.viz.view import View


def experts(
    clouds: Clouds,
    model: nn.Module,
    settings: EvalSettings,
    *,
    shapes: tuple[int, ...] = (0,),
    layers: int = 4,
    seed: int = 0,
) -> Scene:
    """Show a row for each shape and a picture for each mixture, with patches in the colours of their experts.

    Routes are random, as in training with EWA. A gated mixture routes by its gate. Point-MAE routes visible patches
    only.

    Args:
        clouds: the dataset.
        model: a model with mixtures of experts: last.pt of a run, not the merged model.
        settings: the presentation of the clouds.
        shapes: positions in the dataset. They form one batch.
        layers: the most mixtures to show, spread evenly from the first to the last.
        seed: of the random routes.

    Raises:
        ConfigError: a model without mixtures, or a position out of range.
    """
    mixtures = expert_layers(model)
    if not mixtures:
        raise ConfigError(
            f"{type(model).__name__} has no mixtures of experts; choose a checkpoint from before merging: last.pt"
        )
    if layers < 1:
        raise ConfigError(f"layers={layers}; it must be at least 1")
    names = list(mixtures)
    names = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(layers, len(names))).round().astype(int))]
    with looking_at(model):
        points, labels = presented(clouds, shapes, settings, model)
        _, centers = patches_of(model, points)
        owner = patch_of_point(points, centers).cpu()
        dealt = routes(model, points, labels, centers, seed)
    panels = []
    for row, title in enumerate(titles(clouds, shapes)):
        for name in names:
            expert = dealt[name][row][owner[row]].numpy()
            colours = np.where((expert >= 0)[:, None], kind_colours(expert), LIGHT)
            place = upright(points[row], clouds.up_axis)
            panels.append(Panel(place, colours, f"{title}\n{name}" if name == names[0] else f"\n{name}"))
    count = max(mixture.num_experts for mixture in mixtures.values())
    legend = kind_legend([f"expert {i}" for i in range(min(count, len(KINDS)))])
    if any(bool((dealt[name] < 0).any()) for name in names):
        legend |= {"not dealt": LIGHT}
    return Scene(f"patches dealt to {count} experts", panels, legend, columns=len(names))


VIEW = View("which expert each patch is dealt to in a training step", experts, experts=True)
