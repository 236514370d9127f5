"""DGCNN over the patches of a cloud, as the tokenizer of Point-BERT has it: the graph joins neighbouring centers."""

from typing import cast

import torch
from torch import Tensor, nn

from pc_ewa import ops

NEIGHBOURS = 4
NORM_GROUPS = 4


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
        self.input_trans = nn.Conv1d(in_channels, width, 1)
        self.layer1 = _edge_layer(width, 2 * width)
        self.layer2 = _edge_layer(2 * width, 4 * width)
        self.layer3 = _edge_layer(4 * width, 4 * width)
        self.layer4 = _edge_layer(4 * width, 8 * width)
        self.layer5 = nn.Sequential(
            nn.Conv1d(18 * width, out_channels, 1, bias=False),
            nn.GroupNorm(NORM_GROUPS, out_channels),
            nn.LeakyReLU(0.2),
        )

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """Map the features (B, G, C) of patches joined by `index` (B, G, k) to new ones (B, G, D)."""
        x = self.input_trans(features.transpose(1, 2))
        outputs = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = _edge_convolution(layer, x, index)
            outputs.append(x)
        return self.layer5(torch.cat(outputs, dim=1)).transpose(1, 2)


def _edge_layer(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2 * in_channels, out_channels, 1, bias=False),
        nn.GroupNorm(NORM_GROUPS, out_channels),
        nn.LeakyReLU(0.2),
    )


def _edge_convolution(layer: nn.Sequential, x: Tensor, index: Tensor) -> Tensor:
    """Map (B, C, G) to (B, D, G): the maximum over the edges i -> j of layer(concat(x_j - x_i, x_i))."""
    weight = cast(nn.Conv2d, layer[0]).weight.flatten(1)
    difference, own = weight.chunk(2, dim=1)
    # W (x_j - x_i) + V x_i = W x_j + (V - W) x_i: both are computed once a patch, not once an edge.
    from_neighbour, from_self = torch.matmul(torch.cat([difference, own - difference]), x).chunk(2, dim=1)
    edges = from_neighbour.gather(2, index.flatten(1)[:, None].expand(-1, from_neighbour.shape[1], -1))
    edges = edges.view(*from_self.shape, -1) + from_self[..., None]
    return layer[2](layer[1](edges)).max(dim=3).values
