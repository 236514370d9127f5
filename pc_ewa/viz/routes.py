"""Routes of patches to experts, recorded in a forward pass."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pc_ewa.errors import ConfigError
from pc_ewa.ewa import expert_layers, routed_experts
from pc_ewa.ewa.experts import ExpertFFN
from pc_ewa.ewa.gated import GatedFFN
from pc_ewa.ewa.routing import uniform_partition


def routes(model: nn.Module, points: Tensor, labels: Tensor, centers: Tensor, seed: int) -> dict[str, Tensor]:
    """Return the expert of each patch in every mixture, routed as in one training step.

    Args:
        model: a model with mixtures, in evaluation mode. Only its experts behave as in training.
        points: clouds (B, N, 3), one batch.
        labels: their classes (B,), for segmenters.
        centers: (B, G, 3) of the patches that the model makes of the clouds.
        seed: of the random routes.

    Returns:
        (B, G), int64, on the CPU, by the name of the mixture. -1 marks patches that the mixture does not get.

    Raises:
        ConfigError: a mixture whose tokens cannot be matched with the patches.
    """
    dealt: dict[str, Tensor] = {}
    hooks = []
    for name, mixture in expert_layers(model).items():
        look = _look(name, dealt)
        hooks.append(mixture.register_forward_pre_hook(look))
    # Fork the generator: a picture must not change the random numbers that the caller draws next.
    with torch.random.fork_rng(devices=[points.device] if points.is_cuda else []):
        torch.manual_seed(seed)
        try:
            with routed_experts(model):
                output = (
                    model(points, labels)
                    if "categories" in inspect.signature(model.forward).parameters
                    else model(points)
                )
        finally:
            for hook in hooks:
                hook.remove()
    mask = getattr(output, "outputs", {}).get("mask")
    return {name: _of_patches(name, experts, centers, mask) for name, experts in dealt.items()}


def _look(name: str, dealt: dict[str, Tensor]) -> Callable[[nn.Module, Any], None]:
    """Return a hook that records the experts (B, T) of the tokens in the first call of a mixture."""

    def look(mixture: nn.Module, inputs: Any) -> None:
        # Point-BERT calls its encoder twice. The first call gets the unchanged cloud.
        if name in dealt:
            return
        (x,) = inputs
        if isinstance(mixture, GatedFFN):
            experts = mixture._probabilities(x.reshape(-1, x.shape[-1])).argmax(dim=1)
        elif isinstance(mixture, ExpertFFN):
            experts = _drawn(mixture, x)
        dealt[name] = experts.view(x.shape[:-1]).cpu()

    return look


def _drawn(mixture: ExpertFFN, x: Tensor) -> Tensor:
    """Return the experts of the partition that the forward pass is about to draw."""
    # A pre-hook runs before the mixture draws. Drawing here in a fork of the generator gives the same partition,
    # and leaves the generator as it was for the mixture.
    rows = 1 if mixture.partition == "batch" else x.shape[0]
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        partition = uniform_partition(rows, x.shape[:-1].numel() // rows, mixture.num_experts, x.device)
    # A slot is expert * capacity + place, so that the integer quotient is the expert.
    return partition.slots // partition.tokens.shape[2]


def _of_patches(name: str, experts: Tensor, centers: Tensor, mask: Tensor | None) -> Tensor:
    """Map experts of tokens (B, T) to patches: drop the class token, or place visible patches by the mask."""
    count = centers.shape[1]
    if experts.shape[1] == count + 1:
        return experts[:, 1:]
    if experts.shape[1] == count:
        return experts
    # An encoder of Point-MAE gets visible patches only, in the order of the patches: boolean indexing puts them back.
    placed = torch.full(centers.shape[:2], -1)
    if mask is not None and int((~mask).sum()) == experts.numel():
        placed[~mask.cpu()] = experts.flatten()
        return placed
    raise ConfigError(
        f"{name} gets {experts.shape[1]} tokens for {count} patches, which cannot be matched; show another view"
    )
