"""Features of a frozen model."""

import torch
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError
from pc_ewa.eval.batches import Finite, evaluation
from pc_ewa.eval.settings import EvalSettings


def extract_features(
    model: nn.Module,
    clouds: Clouds,
    settings: EvalSettings,
    *,
    device: torch.device | None = None,
    title: str = "features",
) -> Tensor:
    """Compute `model.features` of every cloud, without augmentation.

    Processes do not share the work, so that one of them may call this alone. The mode of the model is restored.

    Args:
        model: has `features(points (B, N, 3)) -> (B, F)`.
        clouds: N clouds.
        settings: the presentation of the clouds.
        device: the device of the batches. None: that of the model.
        title: title of the progress bar.

    Returns:
        (N, F) float32 on the CPU, in the order of the clouds.

    Raises:
        ConfigError: a model without features.
        OutputError: features that hold NaN or inf.
        ValueError: fewer points than `num_points`.
    """
    features = getattr(model, "features", None)
    if not callable(features):
        raise ConfigError(f"{type(model).__name__} has no features(points); choose a model that has them")
    finite = Finite(device or next(model.parameters()).device)
    with evaluation(model, clouds, settings, device=device, title=title, shared=False) as batches:
        found = torch.cat([finite.seen(features(batch.points)).float().cpu() for batch in batches])
    finite.check(model, clouds, shared=False)
    return found
