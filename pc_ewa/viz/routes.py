"""Routes of patches to experts, read off a forward pass."""

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
    """Return the expert of each patch in every mixture, as one training step deals them.

    Args:
        model: with mixtures, in evaluation mode: only its experts behave as in training.
        points: clouds (B, N, 3), one batch.
        labels: their classes (B,), for segmenters.
        centers: of the patches that the model makes of them, (B, G, 3).
        seed: of the draw.

    Returns:
        (B, G) int64 on the CPU by the name of the mixture; -1 for patches that it does not see.

    Raises:
        ConfigError: tokens that are not those of the patches.
    """
    dealt: dict[str, Tensor] = {}
    hooks = []
    for name, mixture in expert_layers(model).items():
        look = _look(name, dealt)
        hooks.append(mixture.register_forward_pre_hook(look))
    # The draws below are repeated by the hooks; the caller's generator goes on as if nothing had been drawn.
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
    """Make a hook that notes the experts (B, T) of the tokens in the first call of a mixture."""

    def look(mixture: nn.Module, inputs: Any) -> None:
        if name in dealt:  # Point-BERT passes twice; the first is the cloud as it is
            return
        (x,) = inputs
        if isinstance(mixture, GatedFFN):
            experts = mixture._probabilities(x.reshape(-1, x.shape[-1])).argmax(dim=1)
        elif isinstance(mixture, ExpertFFN):
            experts = _drawn(mixture, x)
        dealt[name] = experts.view(x.shape[:-1]).cpu()

    return look


def _drawn(mixture: ExpertFFN, x: Tensor) -> Tensor:
    """Draw the partition that the forward about to run will draw, and leave the generator as it was."""
    rows = 1 if mixture.partition == "batch" else x.shape[0]
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        partition = uniform_partition(rows, x.shape[:-1].numel() // rows, mixture.num_experts, x.device)
    return partition.slots // partition.tokens.shape[2]


def _of_patches(name: str, experts: Tensor, centers: Tensor, mask: Tensor | None) -> Tensor:
    """Drop the class token of (B, T), and put those of visible patches where the mask says."""
    count = centers.shape[1]
    if experts.shape[1] == count + 1:
        return experts[:, 1:]
    if experts.shape[1] == count:
        return experts
    placed = torch.full(centers.shape[:2], -1)
    if mask is not None and int((~mask).sum()) == experts.numel():
        placed[~mask.cpu()] = experts.flatten()
        return placed
    raise ConfigError(f"{name} gets {experts.shape[1]} tokens for {count} patches; they cannot be told apart")
