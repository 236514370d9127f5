"""Activation checkpointing: drop activations inside the large modules and recompute them in the backward pass."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pc_ewa.models.patches import PatchEncoder
from pc_ewa.models.transformer import Block

PARTS = (PatchEncoder, Block)


def checkpoint_activations(model: nn.Module) -> None:
    """Make each patch encoder and transformer block store only its input until the backward pass.

    The backward pass runs their forward pass a second time, with the same random numbers. Gradients are the same to
    rounding. A step takes about a third longer, and peak memory is about half (docs/model-speed.md).

    Example:
        >>> model = pc_ewa.create_model("point_mae_classifier", num_classes=4, depth=2)
        >>> checkpoint_activations(model)
    """
    for module in model.modules():
        if isinstance(module, PARTS):
            # Set on the instance: a wrapping module would add a prefix to the keys of the state_dict.
            module.forward = partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False, context_fn=partial(_contexts, module)
            )


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], "_StatisticsStay"]:
    """Return the contexts of the first forward pass and of the recomputation."""
    return nullcontext(), _StatisticsStay(module)


class _StatisticsStay:
    """Normalise by the statistics of the batch without updating the running statistics a second time.

    It is entered once for each backward pass through the same forward pass (`retain_graph=True`).
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.norms: list[_BatchNorm] = []

    def __enter__(self) -> None:
        # In training mode `track_running_stats` decides only about the update: without it the batch is normalised the
        # same.
        norms = [norm for norm in self.module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
        self.norms = norms
        for norm in norms:
            norm.track_running_stats = False

    def __exit__(self, *error: object) -> None:
        for norm in self.norms:
            norm.track_running_stats = True
