"""What the golden tests share."""

from collections.abc import Iterator

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pc_ewa.ewa import expert_layers

laws = settings(deadline=None, max_examples=40)
sizes = st.tuples(st.integers(1, 3), st.integers(1, 9))
experts_2_to_6 = st.integers(2, 6)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def stacks(model: nn.Module) -> Iterator[nn.Parameter]:
    for layer in expert_layers(model).values():
        yield from layer.parameters()


def spread_out(model: nn.Module) -> nn.Module:
    """Move all experts apart."""
    with torch.no_grad():
        for stack in stacks(model):
            stack += torch.randn_like(stack)
    return model
