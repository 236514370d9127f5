"""From the patches of a cloud back to its points: features handed on to nearby points, by distance or by a graph."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.models.dgcnn import NEIGHBOURS, edge_convolution, edge_layer
from pc_ewa.models.patches import PointConv

_HIDDEN = 512  # channels between the two layers of GraphPropagation


class FeaturePropagation(nn.Module):
    """Mix the features of the 3 nearest sources, then map every point by an MLP (PointNet++, arXiv 1706.02413).

    The official layer sees concat(what describes the whole cloud, coordinates, mixed features).

    Args:
        channels: of the features of the sources.
        widths: outputs of the layers of the MLP, each a convolution, batch norm and ReLU.
        cloud_channels: of what describes the whole cloud.
    """

    def __init__(self, channels: int, widths: Sequence[int], cloud_channels: int = 0) -> None:
        super().__init__()
        self.split = [cloud_channels, 3, channels]
        inputs = [sum(self.split), *widths[:-1]]
        self.mlp_convs = nn.ModuleList(PointConv(i, o) for i, o in zip(inputs, widths, strict=True))
        self.mlp_bns = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)

    def forward(self, queries: Tensor, sources: Tensor, features: Tensor, cloud: Tensor | None = None) -> Tensor:
        """Give features (B, M, W) to queries.

        Args:
            queries: coordinates (B, M, 3).
            sources: coordinates (B, S, 3); with fewer than 3, all of them are mixed.
            features: of the sources, (B, S, C).
            cloud: what describes the whole cloud, (B, D).
        """
        first = cast(PointConv, self.mlp_convs[0])
        cloud_weight, own_weight, weight = torch.split(first.weight.squeeze(-1), self.split, dim=1)
        # A mean of features mapped is the mean of the mapped: so the few sources are mapped, not the many queries, and
        # what is the same for all points of a cloud is mapped once.
        x = interpolate(queries, sources, F.linear(features, weight)) + F.linear(queries, own_weight, first.bias)
        if cloud is not None:
            x = x + F.linear(cloud, cloud_weight)[:, None]
        x = relu_norm(self.mlp_bns[0], x)
        for conv, norm in zip(self.mlp_convs[1:], self.mlp_bns[1:], strict=True):
            x = relu_norm(norm, conv(x))
        return x


class GraphPropagation(nn.Module):
    """Two layers of a graph network (DGCNN) from sources to queries, then among the queries, as in Point-BERT.

    The official layers map concat(x_j - x_i, x_i) of every query i and each of its 4 nearest neighbours j, and keep the
    maximum over these. The norm has 4 groups of channels, each with statistics over all pairs of a cloud.

    Args:
        dim: width of the features, of sources, queries and output; a multiple of 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer1 = edge_layer(dim, _HIDDEN)
        self.layer2 = edge_layer(_HIDDEN, dim)

    def forward(self, queries: Tensor, own: Tensor, sources: Tensor, features: Tensor) -> Tensor:
        """Give features (B, M, C) to queries.

        Args:
            queries: coordinates (B, M, 3), M >= 4.
            own: features of the queries, (B, M, C).
            sources: coordinates (B, S, 3), S >= 4.
            features: of the sources, (B, S, C).
        """
        queries, sources = queries.detach(), sources.detach()  # only indices are needed of them
        own = edge_convolution(self.layer1, own, features, ops.knn(queries, sources, NEIGHBOURS)[1])
        return edge_convolution(self.layer2, own, own, ops.knn(queries, queries, NEIGHBOURS)[1])


def interpolate(queries: Tensor, sources: Tensor, features: Tensor) -> Tensor:
    """Mix the features (B, S, C) of the 3 nearest sources of every query, weighted by 1 / (d² + 1e-8): (B, M, C)."""
    distances, index = ops.knn(queries, sources, min(3, sources.shape[1]))
    weights = 1 / (distances + 1e-8)
    return ops.three_interpolate(features, index, weights / weights.sum(dim=-1, keepdim=True))


def relu_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Batch norm and ReLU on features (B, N, C), over all points of all clouds."""
    return F.relu(norm(x.flatten(0, 1)), inplace=True).view_as(x)
