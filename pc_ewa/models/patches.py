"""Patches to tokens: the mini-PointNet that encodes each patch, and the embedding of its position."""

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def position_embedding(dim: int) -> nn.Sequential:
    """Make the MLP that embeds centers (..., 3) as positions (..., C)."""
    return nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))


def with_class_token(token: Tensor, token_position: Tensor, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Put the class token (1, 1, C) and its position before the tokens and positions (B, G, C) of the patches."""
    batch = x.shape[0]
    tokens = torch.cat([token.expand(batch, -1, -1), x], dim=1)
    return tokens, torch.cat([token_position.expand(batch, -1, -1), position], dim=1)


class PointConv(nn.Conv1d):
    """A linear layer on rows (..., C) with the parameters of a convolution of kernel 1, as in official checkpoints."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map each row."""
        # The same numbers as Conv1d on (B, C, N), without transposing to channels first and back.
        return F.linear(x, self.weight.squeeze(-1), self.bias)


class PatchEncoder(nn.Module):
    """Mini-PointNet of Point-BERT: one token per patch, independent of the order of its points.

    Args:
        dim: width of the tokens.
        width: width of the first layer; the later layers have 2, 4 and 4 times as many channels. 128 is official.
    """

    def __init__(self, dim: int, width: int = 128) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            PointConv(3, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), PointConv(width, 2 * width)
        )
        wide = 4 * width
        self.second_conv = nn.Sequential(
            PointConv(wide, wide), nn.BatchNorm1d(wide), nn.ReLU(inplace=True), PointConv(wide, dim)
        )

    def forward(self, groups: Tensor) -> Tensor:
        """Encode groups (B, G, K, 3) as tokens (B, G, C)."""
        batch, num_groups, size, _ = groups.shape
        # One row per point, so that batch norm has statistics over all points of all patches.
        local = self.first_conv(rearrange(groups, "b g k c -> (b g k) c"))
        local = rearrange(local, "(n k) c -> n k c", k=size)
        whole = local.max(dim=1).values
        # The official layer maps concat(whole, local). A linear layer on a concatenation is the sum of two linear
        # layers: the one on `whole` then runs once per patch, not once per point. That saves a quarter of all products.
        mix = cast(PointConv, self.second_conv[0])
        whole_weight, local_weight = mix.weight.squeeze(-1).chunk(2, dim=1)
        mixed = F.linear(local, local_weight) + F.linear(whole, whole_weight, mix.bias)[:, None]
        points = self.second_conv[1:](rearrange(mixed, "n k c -> (n k) c"))
        return rearrange(points, "(b g k) c -> b g k c", b=batch, g=num_groups).max(dim=2).values
