"""The output of a forward pass in training: the loss, its terms and the predictions."""

from typing import NamedTuple

import torch
from torch import Tensor


class LossOutput(NamedTuple):
    """A loss, with its terms and the outputs that it was computed from.

    Attributes:
        loss: scalar to minimise.
        terms: detached scalars to log, by name.
        outputs: predictions, targets and other tensors for inspection, by name.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    outputs: dict[str, Tensor]


def at_least_single(x: Tensor) -> Tensor:
    """Convert half precision, which autocast produces, to float32, which losses need. Leave wider types as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
