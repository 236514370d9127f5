"""The output of a training forward: the loss, and what it came from."""

from typing import NamedTuple

import torch
from torch import Tensor


class LossOutput(NamedTuple):
    """A loss and what it came from.

    Attributes:
        loss: scalar to minimise.
        terms: detached scalars to log, by name.
        outputs: predictions, targets and whatever else is worth a look, by name.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    outputs: dict[str, Tensor]


def at_least_single(x: Tensor) -> Tensor:
    """Bring half precision, which autocast leaves behind, to float32; losses need it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
