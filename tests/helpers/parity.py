"""The weights that the official figures were computed with: a rule that gives each key its numbers."""

import zlib
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def by_rule(key: str, value: Tensor) -> Tensor:
    """Numbers for a key of a state_dict, in the shape and type of `value`; counters are 0."""
    n = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(value.shape))
    if not value.is_floating_point():
        return torch.zeros_like(value)
    if key.endswith("running_mean"):
        n = 0.1 * n
    elif key.endswith("running_var"):
        n = 1 + 0.2 * np.abs(n)
    elif key.endswith(".bias"):
        n = 0.05 * n
    elif key.endswith(".weight"):
        n = 1 + 0.1 * n if value.dim() == 1 else n / np.sqrt(np.prod(value.shape[1:]))
    else:
        n = 0.5 * n
    return torch.from_numpy(np.asarray(n)).to(value.dtype)


def filled_by_rule(model: M) -> M:
    """Give every parameter and buffer of the model its numbers, in place."""
    model.load_state_dict({key: by_rule(key, value) for key, value in model.state_dict().items()}, strict=True)
    return model
