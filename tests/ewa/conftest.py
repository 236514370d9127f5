"""A small transformer, and mixtures whose outputs tell which expert had which token."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pc_ewa.ewa import ExpertFFN, Gate, GatedFFN
from pc_ewa.models.transformer import Block, Mlp


class Transformer(nn.Module):
    """Tokens (B, T, 3) to (B, T, 8) through blocks of this project, in double precision."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.Sequential(*(Block(8, 2, 2.0, 0.0) for _ in range(depth)))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(x)))


@pytest.fixture
def transformer() -> Callable[..., nn.Module]:
    """Build one: `transformer(depth=4, seed=0)`; its FFNs are blocks.0.mlp, blocks.1.mlp, ..."""

    def build(depth: int = 4, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return Transformer(depth).double()

    return build


@pytest.fixture(scope="session")
def mixture() -> Callable[..., ExpertFFN]:
    """Build a mixture of experts that all differ: `mixture(num_experts, partition="batch", dim=5, seed=0)`."""

    def build(num_experts: int, partition: str = "batch", dim: int = 5, seed: int = 0) -> ExpertFFN:
        torch.manual_seed(seed)
        layer = ExpertFFN(Mlp(dim, 2 * dim).double(), num_experts, partition=partition)  # type: ignore[arg-type]
        with torch.no_grad():
            for stack in layer.parameters():
                stack += torch.randn_like(stack)
        return layer

    return build


@pytest.fixture(scope="session")
def gated_mixture() -> Callable[..., GatedFFN]:
    """Build one of experts that all differ and a gate that is sure of itself: `gated_mixture(num_experts=3, ...)`."""

    def build(
        num_experts: int = 3, capacity_factor: float = 1.25, balance_weight: float = 0.5, seed: int = 0
    ) -> GatedFFN:
        torch.manual_seed(seed)
        layer = GatedFFN(Mlp(5, 10).double(), Gate(capacity_factor, balance_weight), num_experts)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += torch.randn_like(parameter)
        return layer

    return build


@pytest.fixture(scope="session")
def deal() -> Callable[..., Tensor]:
    """Send tokens of shape (..., T) through a layer: `deal(num_experts, *shape)` is the expert of each token.

    The layer is the one of the call before, unless `anew`.
    """

    @functools.cache
    def telling(num_experts: int, partition: str) -> ExpertFFN:
        layer = ExpertFFN(nn.Linear(1, 1), num_experts, partition=partition)  # type: ignore[arg-type]
        with torch.no_grad():
            layer.experts.weight.zero_()  # type: ignore[union-attr, operator]
            layer.experts.bias.copy_(torch.arange(num_experts)[:, None])  # type: ignore[union-attr, operator]
        return layer

    @torch.no_grad()
    def who(num_experts: int, *shape: int, partition: str = "batch", anew: bool = False) -> Tensor:
        if anew:
            telling.cache_clear()
        return telling(num_experts, partition)(torch.zeros(*shape, 1))[..., 0].long()

    return who
