"""Point-BERT's part segmentation (arXiv 2111.14819): features from three depths, propagated over two levels."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.errors import ConfigError
from pc_ewa.models.base import PointModel
from pc_ewa.models.dgcnn import NEIGHBOURS
from pc_ewa.models.patches import PatchEncoder, PointConv, position_embedding, with_class_token
from pc_ewa.models.point_mae_segmenter import log_probabilities, one_hot, three_depths
from pc_ewa.models.propagation import FeaturePropagation, GraphPropagation, relu_norm
from pc_ewa.models.transformer import TransformerEncoder, check_positive, check_rates, check_sizes


class PointBERTSegmenter(PointModel):
    """Part segmenter: it classifies each point of a cloud. The state_dict keys are those of the official checkpoints.

    The defaults are the official ShapeNetPart model for clouds of 2048 points, with 27.1 M parameters. As in the
    official code, all layers keep the default initialisation of PyTorch, except the class token and its position. For
    the other arguments see `pc_ewa.models`.

    Args:
        num_parts: number of outputs, the parts of all categories together.
        num_categories: number of categories of shapes.
        dim: width of the tokens, a multiple of 4 for the group norms of the head.
        depth: number of blocks, at least 3: features are taken after one, two and three thirds of them.
        num_groups: patches per cloud, at least 4.
        levels: number of farthest points in the finer and in the coarser level between points and patches. Each is at
            least 4 and at most the number of points.

    Raises:
        ConfigError: an impossible size.

    Example:
        >>> model = pc_ewa.create_model("point_bert_segmenter", depth=3).eval()
        >>> model(torch.rand(2, 2048, 3), categories=torch.tensor([0, 15])).argmax(dim=2).shape
        torch.Size([2, 2048])
    """

    task: ClassVar[str] = "segment"
    expert_ffns: ClassVar[str] = "blocks.blocks.*.mlp"
    head_keys: ClassVar[tuple[str, ...]] = (
        *("cls_token", "cls_pos", "propagation_", "dgcnn_pro_"),
        *("conv1", "bn1", "conv2"),
    )

    def __init__(
        self,
        *,
        num_parts: int = 50,
        num_categories: int = 16,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_groups: int = 128,
        group_size: int = 32,
        encoder_dim: int = 256,
        encoder_width: int = 128,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        head_dropout: float = 0.5,
        levels: tuple[int, int] = (512, 256),
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio)
        check_positive(num_parts=num_parts, num_categories=num_categories, num_groups=num_groups)
        check_positive(group_size=group_size, encoder_dim=encoder_dim, encoder_width=encoder_width)
        check_rates(drop_path=drop_path, head_dropout=head_dropout)
        _check_graph(dim, num_groups, levels)
        self.stages = three_depths(depth)
        self.num_groups, self.group_size, self.levels = num_groups, group_size, levels
        self.num_categories, self.head_dropout = num_categories, head_dropout
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_pos = nn.Parameter(torch.randn(1, 1, dim))
        self.encoder = PatchEncoder(encoder_dim, encoder_width)
        self.reduce_dim = nn.Linear(encoder_dim, dim)
        self.pos_embed = position_embedding(dim)
        self.blocks = TransformerEncoder(dim, depth, num_heads, mlp_ratio, drop_path)
        self.norm = nn.LayerNorm(dim)
        self.propagation_2 = FeaturePropagation(dim, [4 * dim, dim])
        self.propagation_1 = FeaturePropagation(dim, [4 * dim, dim])
        self.propagation_0 = FeaturePropagation(dim, [4 * dim, dim], cloud_channels=num_categories)
        self.dgcnn_pro_1 = GraphPropagation(dim)
        self.dgcnn_pro_2 = GraphPropagation(dim)
        self.conv1 = PointConv(dim, 128)
        self.bn1 = nn.BatchNorm1d(128)
        self.conv2 = PointConv(128, num_parts)

    def forward(self, points: Tensor, categories: Tensor) -> Tensor:
        """Map clouds (B, N, 3) and their categories (B,), int64, to log-probabilities (B, N, num_parts).

        Raises:
            ValueError: the categories have a wrong shape, type or value, or a cloud has fewer points than a level,
                than patches, or than a patch has.
        """
        kinds = one_hot(categories, self.num_categories, points)
        if points.shape[1] < max(self.levels):
            raise ValueError(
                f"clouds of {points.shape[1]} points, levels={self.levels}; give at least {max(self.levels)} points, "
                "or build the model with smaller levels"
            )
        groups, centers = ops.group(points, self.num_groups, self.group_size)
        early, middle, late = self._features(groups, centers)
        # Farthest point sampling is greedy, so the points of the smaller level are the first of the larger level, and
        # one call makes both.
        farthest = ops.gather_points(points, ops.farthest_point_sample(points, max(self.levels)))
        fine, coarse = (farthest[:, :count] for count in self.levels)
        coarse_x = self.propagation_2(coarse, centers, middle)
        fine_x = self.propagation_1(fine, centers, early)
        coarse_x = self.dgcnn_pro_2(coarse, coarse_x, centers, late)
        fine_x = self.dgcnn_pro_1(fine, fine_x, coarse, coarse_x)
        x = relu_norm(self.bn1, self.conv1(self.propagation_0(points, fine, fine_x, kinds)))
        return log_probabilities(self.conv2(F.dropout(x, self.head_dropout, self.training)))

    def _features(self, groups: Tensor, centers: Tensor) -> list[Tensor]:
        """Return the features (B, G, C) of the patches at the three depths."""
        tokens = self.reduce_dim(self.encoder(groups))
        x, position = with_class_token(self.cls_token, self.cls_pos, tokens, self.pos_embed(centers))
        states = self.blocks.states(x, position)
        return [self.norm(states[stage])[:, 1:] for stage in self.stages]


def _check_graph(dim: int, num_groups: int, levels: tuple[int, int]) -> None:
    """Check that the graph layers have channels for 4 groups, and points for 4 neighbours."""
    if dim % 4:
        raise ConfigError(f"dim={dim}; the norms of the head have 4 groups of channels: make it a multiple of 4")
    for name, count in (("num_groups", num_groups), ("levels", min(levels))):
        if count < NEIGHBOURS:
            shown = levels if name == "levels" else count
            raise ConfigError(f"{name}={shown}; every point of a level has {NEIGHBOURS} neighbours: at least that many")
