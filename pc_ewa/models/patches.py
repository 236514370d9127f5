"""Tokens from patches: the mini-PointNet that encodes each patch, and the position embedding of its center."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pc_ewa.bare import has_hooks, is_bare
from pc_ewa.ops.patch_layers import PART, largest, norm_relu, norm_relu_linear_largest


def position_embedding(dim: int) -> nn.Sequential:
    """Return an MLP that embeds centers (..., 3) as positions (..., C)."""
    return nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))


def with_class_token(token: Tensor, token_position: Tensor, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Prepend the class token (1, 1, C) and its position to the tokens and positions (B, G, C) of the patches."""
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
    """The mini-PointNet of Point-BERT. It makes one token per patch, which does not depend on the order of the points.

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
        patches = groups.flatten(0, 1)
        if self._in_parts(patches):
            tokens = torch.cat([self._encode(part) for part in torch.split(patches, PART)])
        else:
            tokens = self._encode(patches)
        return tokens.view(*groups.shape[:2], tokens.shape[1])

    def _in_parts(self, patches: Tensor) -> bool:
        """Return True if encoding a few patches at a time is faster and gives the same result."""
        # Batch norm in training, or without running statistics, has statistics over all patches, so they must pass
        # through it together. On a GPU small batches are slower. torch.compile would unroll the loop for one number of
        # patches.
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]
        takes_statistics = any(norm.training or norm.running_mean is None for norm in norms)
        # A hook inside expects the features of all patches.
        hooked = any(has_hooks(module) for module in self.modules() if module is not self)
        on_cpu = patches.device.type == "cpu"
        return on_cpu and not takes_statistics and not hooked and not torch.compiler.is_compiling()

    def _encode(self, patches: Tensor) -> Tensor:
        """Encode patches (P, K, 3) as tokens (P, C)."""
        local = self._first(patches)
        whole = largest(local)
        if not _is_built_by_us(self.second_conv):
            return largest(_on_rows(self.second_conv, _concatenated(whole, local)))
        mix, norm, relu, project = self.second_conv
        mixed, shift = _mix(mix, whole, local) if is_bare(mix, PointConv) else (mix(_concatenated(whole, local)), None)
        if is_bare(project, PointConv) and is_bare(relu, nn.ReLU):
            weight, bias = cast(PointConv, project).weight.squeeze(-1), cast(PointConv, project).bias
            return norm_relu_linear_largest(mixed, shift, cast(nn.BatchNorm1d, norm), weight, bias)
        return largest(project(_activated(mixed, shift, norm, relu)))

    def _first(self, patches: Tensor) -> Tensor:
        """Map patches (P, K, 3) to features (P, K, C) of their points."""
        if not _is_built_by_us(self.first_conv):
            return _on_rows(self.first_conv, patches)
        lift, norm, relu, widen = self.first_conv
        features: Tensor = widen(_activated(lift(patches), None, norm, relu))
        return features


def _is_built_by_us(layers: nn.Module) -> bool:
    """Return True for a half of the encoder that nobody has hooked or lengthened."""
    return is_bare(layers, nn.Sequential) and len(cast(nn.Sequential, layers)) == 4


def _on_rows(layers: nn.Module, x: Tensor) -> Tensor:
    """Call layers that were changed on features (P, K, C): a batch norm needs rows (P · K, C)."""
    y: Tensor = layers(x.flatten(0, 1))
    return y.view(*x.shape[:2], y.shape[1])


def _activated(x: Tensor, shift: Tensor | None, norm: nn.Module, relu: nn.Module) -> Tensor:
    """Return relu(norm(x + shift)) for x (P, K, C) and shift (P, C), by whatever stands in the places of the two."""
    if is_bare(relu, nn.ReLU):
        return norm_relu(x, shift, cast(nn.BatchNorm1d, norm))
    moved = x if shift is None else x + shift[:, None]
    return relu(norm(moved.flatten(0, 1))).view(x.shape)


def _mix(mix: nn.Module, whole: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """Map features of patches (P, C) and points (P, K, C); the output is the sum of (P, K, D) and a shift (P, D)."""
    # The official layer maps concat(whole, local). A linear layer on a concatenation is the sum of two linear layers:
    # the one on `whole` then runs once per patch, not once per point. That saves a quarter of all products.
    whole_weight, local_weight = cast(PointConv, mix).weight.squeeze(-1).chunk(2, dim=1)
    return F.linear(local, local_weight), F.linear(whole, whole_weight, cast(PointConv, mix).bias)


def _concatenated(whole: Tensor, local: Tensor) -> Tensor:
    return torch.cat([whole[:, None].expand_as(local), local], dim=2)
