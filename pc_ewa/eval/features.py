"""Frozen features of every cloud."""

import torch
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.errors import ConfigError
from pc_ewa.eval.common import in_evaluation, prepare_eval
from pc_ewa.progress import progress


@torch.no_grad()
def extract_features(
    model: nn.Module,
    clouds: Clouds,
    num_points: int,
    *,
    normalize: bool = True,
    batch_size: int = 64,
    device: torch.device | None = None,
    precision: str = "fp32",
    title: str = "features",
) -> Tensor:
    """Call `model.features` on every cloud, cut by farthest point sampling, without augmentation.

    Processes do not share the work: any one of them may call this alone. The mode of the model is restored.

    Args:
        model: has `features(points (B, N, 3)) -> (B, F)`.
        clouds: N shapes.
        num_points: points of each cloud that the model sees.
        normalize: scale each cloud into the unit sphere first.
        batch_size: clouds in a batch.
        device: None is that of the model.
        precision: "fp32" or "bf16".
        title: of the progress bar.

    Returns:
        (N, F) float32 on the CPU, in the order of the clouds.

    Raises:
        ConfigError: a model without features.
        ValueError: fewer points than `num_points`.
    """
    features = getattr(model, "features", None)
    if not callable(features):
        raise ConfigError(f"{type(model).__name__} has no features(points); choose a model that has them")
    device = device or next(model.parameters()).device
    starts = range(0, len(clouds), batch_size)
    found = []
    with in_evaluation(model):
        for start in progress(starts, title):
            points = clouds.batch(range(start, min(start + batch_size, len(clouds))))[0].to(device)
            points = prepare_eval(points, num_points, normalize)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                batch = features(points)
            found.append(batch.float().cpu())
    return torch.cat(found)
