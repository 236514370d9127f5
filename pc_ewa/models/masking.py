"""Which patches a pre-training model has to guess: masks (B, G), True = hidden, drawn anew for every sample."""

import torch
from torch import Tensor, nn


def random_mask(centers: Tensor, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide int(ratio G) patches of each sample, any of them ("rand" of Point-MAE).

    Args:
        centers: (B, G, 3).
        ratio: share to hide, 0 to 1.
        generator: on the device of the centers; None is torch's own.
    """
    keys = torch.rand(centers.shape[:2], device=centers.device, generator=generator)
    return _hide(keys, torch.full_like(keys[:, 0], int(ratio * centers.shape[1]), dtype=torch.long))


def block_mask(centers: Tensor, ratio: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Hide a patch of each sample and those nearest to it by their centers, int(ratio G) in all (Point-BERT).

    Args:
        centers: (B, G, 3).
        ratio: share to hide, 0 to 1; one for all, or one for each sample, (B,).
        generator: on the device of the centers; None is torch's own.
    """
    batch, count, _ = centers.shape
    seeds = torch.randint(count, (batch, 1, 1), device=centers.device, generator=generator)
    distances = (centers - centers.gather(1, seeds.expand(-1, -1, 3))).norm(dim=-1)
    if not isinstance(ratio, Tensor):
        return _hide(distances, torch.full_like(seeds[:, 0, 0], int(ratio * count)))
    return _hide(distances, (ratio * count).long())


def check_mask(mask: Tensor, centers: Tensor) -> Tensor:
    """Bring a mask that the caller gave to the device of the centers (B, G, 3); ValueError unless it is (B, G) bool."""
    if mask.shape != centers.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"mask is {tuple(mask.shape)} {mask.dtype}; expected {tuple(centers.shape[:2])} bool")
    return mask.to(centers.device)


def fixed_in_evaluation(model: nn.Module, device: torch.device) -> torch.Generator | None:
    """Return what a model draws from: torch's own generator in training, the same numbers each time in evaluation."""
    return None if model.training else torch.Generator(device).manual_seed(0)


def _hide(keys: Tensor, counts: Tensor) -> Tensor:
    """Mark the positions of the `counts` (B,) lowest keys of each row; ties go to the lowest index."""
    ranks = keys.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < counts[:, None]
