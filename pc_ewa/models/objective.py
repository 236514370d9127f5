"""What a model that brings its own loss returns."""

from typing import NamedTuple

from torch import Tensor


class Objective(NamedTuple):
    """The loss to minimise, and what it came from: its terms (scalars), predictions and targets, by name."""

    loss: Tensor
    parts: dict[str, Tensor]
