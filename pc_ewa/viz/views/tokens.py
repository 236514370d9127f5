"""View `tokens`: the tokens that Point-BERT predicts for masked patches, beside those of its tokenizer."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError
from pc_ewa.eval import EvalSettings
from pc_ewa.models.point_bert import PointBERT
from pc_ewa.viz.colours import BLUE, GREEN, LIGHT, VERMILION
from pc_ewa.viz.pick import looking_at, patches_of, presented, titles
from pc_ewa.viz.scene import Floats, Panel, Scene, upright
from pc_ewa.viz.view import View


def tokens(clouds: Clouds, model: nn.Module, settings: EvalSettings, *, shapes: tuple[int, ...] = (0, 1, 2)) -> Scene:
    """Show a row of three pictures for each shape: its patches, and those decoded from true and from predicted tokens.

    The first marks masked patches. In the third a masked patch is green if its predicted token is the tokenizer's, and
    red otherwise. Visible patches have the tokenizer's tokens. The mask is that of the validation loss.

    Args:
        clouds: the dataset.
        model: `PointBERT`.
        settings: the presentation of the clouds.
        shapes: positions in the dataset.

    Raises:
        ConfigError: another model, or a position out of range.
    """
    if not isinstance(model, PointBERT):
        raise ConfigError(f"{type(model).__name__} does not predict tokens; choose a point_bert")
    with looking_at(model):
        points, _ = presented(clouds, shapes, settings, model)
        groups, centers = patches_of(model, points)
        true = model.dvae.tokenize(groups, centers)
        outputs = model(points).outputs
        mask, guessed = outputs["mask"], true.clone()
        guessed[mask] = outputs["logits"].argmax(dim=1)
        placed = [groups + centers[:, :, None], _decoded(model, true, centers), _decoded(model, guessed, centers)]
    right = int((guessed == true)[mask].sum())
    panels = []
    for row, title in enumerate(titles(clouds, shapes)):
        hidden, found = mask[row].cpu().numpy(), (guessed == true)[row].cpu().numpy()
        marked = np.where(hidden[:, None], LIGHT, BLUE)
        judged = np.where((hidden & found)[:, None], GREEN, np.where(hidden[:, None], VERMILION, BLUE))
        score = f"{int(found[hidden].sum())} of {int(hidden.sum())} right"
        names = (f"{title}: patches", "from the tokenizer's words", f"from the predicted words, {score}")
        for patches, colours, name in zip(placed, (marked, marked, judged), names, strict=True):
            panels.append(_panel(patches[row], colours, name, clouds))
    legend = {"visible": BLUE, "hidden": LIGHT, "predicted word right": GREEN, "predicted word wrong": VERMILION}
    share = f"{right} of {int(mask.sum())} hidden patches" if len(shapes) > 1 else "hidden patches"
    return Scene(
        f"Point-BERT: the right one of {model.dvae.num_tokens} words predicted for {share}", panels, legend, columns=3
    )


def _decoded(model: PointBERT, words: Tensor, centers: Tensor) -> Tensor:
    """Decode tokens (B, G) to points (B, G, K, 3)."""
    # The decoder takes a distribution over tokens, as in training. A certain token is a one-hot row.
    weights = F.one_hot(words, model.dvae.num_tokens).to(centers.dtype)
    return model.dvae.decode(weights, centers)[1] + centers[:, :, None]


def _panel(patches: Tensor, colours: Floats, title: str, clouds: Clouds) -> Panel:
    """Return a panel of patches (G, K, 3), each in one colour (G, 3)."""
    each = np.repeat(colours, patches.shape[1], axis=0).astype(np.float32)
    return Panel(upright(patches.flatten(0, 1), clouds.up_axis), each, title)


VIEW = View("predicted tokens of hidden patches (point_bert)", tokens)
