"""Activation checkpointing: forget what lies within the large parts of a model, and compute it again when needed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pc_ewa.models.patches import PatchEncoder
from pc_ewa.models.transformer import Block

PARTS = (PatchEncoder, Block)


def checkpoint_activations(model: nn.Module) -> None:
    """Have each patch encoder and each transformer block keep its input alone until the backward pass.

    The backward pass then runs their forward pass a second time, with the same random numbers: gradients are the same
    to rounding, a step takes about a third longer and the peak of memory is about half (docs/performance.md).

    Example:
        >>> model = pc_ewa.create_model("point_mae_classifier", num_classes=4, depth=2)
        >>> checkpoint_activations(model)
    """
    for module in model.modules():
        if isinstance(module, PARTS):
            # On the instance: the keys of the state_dict stay as they are.
            module.forward = partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False, context_fn=partial(_contexts, module)
            )


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and of the second forward pass."""
    return nullcontext(), _statistics_stay(module)


@contextmanager
def _statistics_stay(module: nn.Module) -> Iterator[None]:
    """Normalise by the statistics of the batch, but do not count it a second time into the running ones."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
