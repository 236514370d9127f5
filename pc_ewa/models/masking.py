"""Masks (B, G) of patches for pre-training, True = hidden. Each sample has a separate mask."""

import torch
from torch import Tensor, nn


def random_mask(centers: Tensor, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide int(ratio G) patches of each sample, chosen uniformly ("rand" in Point-MAE).

    Args:
        centers: (B, G, 3).
        ratio: fraction of the patches to hide, 0 to 1.
        generator: generator on the device of the centers. None uses torch's global one.
    """
    keys = torch.rand(centers.shape[:2], device=centers.device, generator=generator)
    return _hide(keys, torch.full_like(keys[:, 0], int(ratio * centers.shape[1]), dtype=torch.long))


def block_mask(centers: Tensor, ratio: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Hide int(ratio G) patches of each sample: a random one and the nearest to its center ("block" in Point-BERT).

    Args:
        centers: (B, G, 3).
        ratio: fraction of the patches to hide, 0 to 1, as one number for all samples or one for each, (B,).
        generator: generator on the device of the centers. None uses torch's global one.
    """
    batch, count, _ = centers.shape
    seeds = torch.randint(count, (batch, 1, 1), device=centers.device, generator=generator)
    distances = (centers - centers.gather(1, seeds.expand(-1, -1, 3))).norm(dim=-1)
    if not isinstance(ratio, Tensor):
        return _hide(distances, torch.full_like(seeds[:, 0, 0], int(ratio * count)))
    return _hide(distances, (ratio * count).long())


def check_mask(mask: Tensor, centers: Tensor) -> Tensor:
    """Check the mask of a caller, and move it to the device of the centers (B, G, 3).

    Raises:
        ValueError: the mask is not (B, G) bool.
    """
    if mask.shape != centers.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"mask is {tuple(mask.shape)} {mask.dtype}; expected {tuple(centers.shape[:2])} bool")
    return mask.to(centers.device)


def fixed_in_evaluation(model: nn.Module, device: torch.device) -> torch.Generator | None:
    """Return the generator for the random numbers of a model.

    In evaluation it is a new one with seed 0, so that the loss is reproducible. In training it is None, which stands
    for torch's global generator.
    """
    return None if model.training else torch.Generator(device).manual_seed(0)


def _hide(keys: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts` (B,) lowest keys of each row."""
    # Ranks, not a threshold: with equal keys, such as those of patches with the same center, a threshold would hide too
    # many. Sorting a permutation gives its inverse, which is the rank of each entry.
    ranks = keys.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < counts[:, None]
