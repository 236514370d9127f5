"""Edge convolutions of DGCNN (arXiv 1801.07829) over patches or points, and the network of the tokenizer."""

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.models.patches import PointConv

NEIGHBOURS = 4
NORM_GROUPS = 4


def edge_layer(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a layer on edges with the official keys: convolution, group norm, activation."""
    conv = nn.Conv2d(2 * in_channels, out_channels, 1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, out_channels), nn.LeakyReLU(0.2))


def edge_convolution(layer: nn.Sequential, own: Tensor, features: Tensor, index: Tensor) -> Tensor:
    """Apply a layer to the edges from each query to its neighbours, and take the maximum over its edges.

    The official layer maps concat(x_j - x_i, x_i) of query i and neighbour j. Its norm has statistics over all edges of
    a cloud.

    Args:
        layer: a layer made by `edge_layer`, from C to D channels.
        own: features of the queries, (B, M, C).
        features: features of the sources, (B, S, C).
        index: indices of the sources that are the neighbours of each query, (B, M, k).

    Returns:
        Features of the queries, (B, M, D).
    """
    conv, norm, activation = layer
    difference, centre = cast(nn.Conv2d, conv).weight.flatten(1).chunk(2, dim=1)
    # V (x_j - x_i) + W x_i = V x_j + (W - V) x_i: two products per point replace a product, twice as wide, per edge.
    mapped = ops.gather_points(F.linear(features, difference), index)
    edges = mapped + F.linear(own, centre - difference)[:, :, None]
    normed = norm(rearrange(edges, "b m k d -> b d m k"))
    # The activation is increasing, so it commutes with the maximum. Applied after it, it runs once per query, not once
    # per edge. The norm must come first: its statistics are over all edges, and its weights may be negative.
    return activation(normed.max(dim=3).values).transpose(1, 2)


def neighbour_graph(centers: Tensor) -> Tensor:
    """Return the indices (B, G, 4) of the 4 patches with the nearest centers (B, G, 3), the patch itself included."""
    return ops.knn(centers.detach(), centers.detach(), NEIGHBOURS)[1]


class DGCNN(nn.Module):
    """Four edge convolutions, and a layer on their concatenated outputs.

    The graph is an input and the same for all layers, as in Point-BERT. The original DGCNN recomputes it from the
    features of each layer.

    Args:
        in_channels: width of the input.
        out_channels: width of the output, a multiple of 4.
        width: width of the first layer, an even number. The edge layers have 2, 4, 4 and 8 times as many channels. The
            official width is 128.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 128) -> None:
        super().__init__()
        self.input_trans = PointConv(in_channels, width)
        self.layer1 = edge_layer(width, 2 * width)
        self.layer2 = edge_layer(2 * width, 4 * width)
        self.layer3 = edge_layer(4 * width, 4 * width)
        self.layer4 = edge_layer(4 * width, 8 * width)
        self.layer5 = nn.Sequential(
            nn.Conv1d(18 * width, out_channels, 1, bias=False),
            nn.GroupNorm(NORM_GROUPS, out_channels),
            nn.LeakyReLU(0.2),
        )

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """Map features (B, G, C) of patches with neighbours `index` (B, G, k) to features (B, G, D)."""
        x = self.input_trans(features)
        outputs = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = edge_convolution(layer, x, x, index)
            outputs.append(x)
        return self.layer5(torch.cat(outputs, dim=2).transpose(1, 2)).transpose(1, 2)
