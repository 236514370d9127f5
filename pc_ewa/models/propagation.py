"""Feature propagation from the patches of a cloud to its points, by interpolation or by edge convolutions."""

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
    """Interpolate features from the 3 nearest sources, then apply an MLP to each point (PointNet++, arXiv 1706.02413).

    The official MLP maps concat(features of the cloud, coordinates, interpolated features).

    Args:
        channels: channels of the features of the sources.
        widths: output channels of the layers of the MLP. Each is a linear layer, batch norm and ReLU.
        cloud_channels: channels of the features of the whole cloud. 0 means that there are none.
    """

    def __init__(self, channels: int, widths: Sequence[int], cloud_channels: int = 0) -> None:
        super().__init__()
        self.split = [cloud_channels, 3, channels]
        inputs = [sum(self.split), *widths[:-1]]
        self.mlp_convs = nn.ModuleList(PointConv(i, o) for i, o in zip(inputs, widths, strict=True))
        self.mlp_bns = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)

    def forward(self, queries: Tensor, sources: Tensor, features: Tensor, cloud: Tensor | None = None) -> Tensor:
        """Return features (B, M, W) of the queries.

        Args:
            queries: coordinates (B, M, 3).
            sources: coordinates (B, S, 3). If there are fewer than 3, all are used.
            features: features of the sources, (B, S, C).
            cloud: features of the whole cloud, (B, D), with D = cloud_channels. None means that there are none.
        """
        first = cast(PointConv, self.mlp_convs[0])
        cloud_weight, own_weight, weight = torch.split(first.weight.squeeze(-1), self.split, dim=1)
        # A linear layer commutes with interpolation. Apply it to the few source features before interpolating, and once
        # per cloud to the features of the cloud.
        x = interpolate(queries, sources, F.linear(features, weight)) + F.linear(queries, own_weight, first.bias)
        if cloud is not None:
            x = x + F.linear(cloud, cloud_weight)[:, None]
        x = relu_norm(self.mlp_bns[0], x)
        for conv, norm in zip(self.mlp_convs[1:], self.mlp_bns[1:], strict=True):
            x = relu_norm(norm, conv(x))
        return x


class GraphPropagation(nn.Module):
    """Two edge convolutions (DGCNN): from sources to queries, then among the queries, as in Point-BERT.

    Each query has its 4 nearest neighbours. The group norm has 4 groups of channels.

    Args:
        dim: width of the features of sources, queries and output, a multiple of 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer1 = edge_layer(dim, _HIDDEN)
        self.layer2 = edge_layer(_HIDDEN, dim)

    def forward(self, queries: Tensor, own: Tensor, sources: Tensor, features: Tensor) -> Tensor:
        """Return features (B, M, C) of the queries.

        Args:
            queries: coordinates (B, M, 3), M >= 4.
            own: features of the queries, (B, M, C).
            sources: coordinates (B, S, 3), S >= 4.
            features: features of the sources, (B, S, C).
        """
        queries, sources = queries.detach(), sources.detach()  # they only select neighbours, which has no gradient
        own = edge_convolution(self.layer1, own, features, ops.knn(queries, sources, NEIGHBOURS)[1])
        return edge_convolution(self.layer2, own, own, ops.knn(queries, queries, NEIGHBOURS)[1])


def interpolate(queries: Tensor, sources: Tensor, features: Tensor) -> Tensor:
    """Interpolate features (B, S, C) to queries: the mean of the 3 nearest sources, weighted by 1 / (d² + 1e-8).

    Args:
        queries: coordinates (B, M, 3).
        sources: coordinates (B, S, 3). If there are fewer than 3, all are used.
        features: features of the sources, (B, S, C).

    Returns:
        Features of the queries, (B, M, C).
    """
    # `ops.knn` returns squared distances. 1e-8 is the official constant: a query on a source takes almost only its
    # features, without a division by 0.
    distances, index = ops.knn(queries, sources, min(3, sources.shape[1]))
    weights = 1 / (distances + 1e-8)
    return ops.three_interpolate(features, index, weights / weights.sum(dim=-1, keepdim=True))


def relu_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply batch norm, with statistics over all points of all clouds, and ReLU to features (B, N, C)."""
    # In place on the output of the norm, which its backward does not need: it saves a copy of the features.
    return F.relu(norm(x.flatten(0, 1)), inplace=True).view_as(x)
