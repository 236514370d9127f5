"""What a model that brings its own loss returns, and the precision of what losses are made of."""

from typing import NamedTuple

import torch
from torch import Tensor


class LossOutput(NamedTuple):
    """The loss to minimise, and what it came from: its terms (scalars), predictions and targets, by name."""

    loss: Tensor
    parts: dict[str, Tensor]


def at_least_single(x: Tensor) -> Tensor:
    """Bring half precision, which autocast leaves behind, to float32; losses need it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
