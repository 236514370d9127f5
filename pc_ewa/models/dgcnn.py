"""Graph networks over patches and points (DGCNN, arXiv 1801.07829): edge convolutions, and the tokenizer's DGCNN."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.models.patches import PointConv

NEIGHBOURS = 4
NORM_GROUPS = 4


def edge_layer(in_channels: int, out_channels: int) -> nn.Sequential:
    """Make a layer on edges, named as the official ones are: convolution, norm, activation."""
    conv = nn.Conv2d(2 * in_channels, out_channels, 1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, out_channels), nn.LeakyReLU(0.2))


def edge_convolution(layer: nn.Sequential, own: Tensor, features: Tensor, index: Tensor) -> Tensor:
    """Apply a layer to the edges from every query to its neighbours, and keep the maximum over these.

    The official layer sees concat(x_j - x_i, x_i) of query i and neighbour j; its norm has statistics over all edges of
    a cloud.

    Args:
        layer: from `edge_layer`.
        own: features of the queries, (B, M, C).
        features: of those that may be neighbours, (B, S, C).
        index: which of them are, (B, M, k).

    Returns:
        (B, M, D).
    """
    conv, norm, activation = layer
    difference, centre = cast(nn.Conv2d, conv).weight.flatten(1).chunk(2, dim=1)
    # V (x_j - x_i) + W x_i = V x_j + (W - V) x_i: two products for each point instead of one, wider, for each edge.
    mapped = ops.gather_points(F.linear(features, difference), index)
    edges = mapped + F.linear(own, centre - difference)[:, :, None]
    # The activation is increasing: the maximum may be taken before it, and it is a quarter of the work then.
    return activation(norm(edges.permute(0, 3, 1, 2)).max(dim=3).values).transpose(1, 2)


def neighbour_graph(centers: Tensor) -> Tensor:
    """Join every patch to the 4 with the nearest centers (B, G, 3), itself among them: indices (B, G, 4)."""
    return ops.knn(centers.detach(), centers.detach(), NEIGHBOURS)[1]


class DGCNN(nn.Module):
    """Let patches learn from their neighbours: four edge convolutions, and a layer that sees the output of each.

    The graph is given, and the same for all layers (Point-BERT); that of the original DGCNN changes with the features.

    Args:
        in_channels: width of the input.
        out_channels: width of the output, a multiple of 4.
        width: width of the first layer, even; the edge layers have 2, 4, 4 and 8 times as many channels. 128 is
            official.
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
        """Map the features (B, G, C) of patches joined by `index` (B, G, k) to new ones (B, G, D)."""
        x = self.input_trans(features)
        outputs = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = edge_convolution(layer, x, x, index)
            outputs.append(x)
        return self.layer5(torch.cat(outputs, dim=2).transpose(1, 2)).transpose(1, 2)
