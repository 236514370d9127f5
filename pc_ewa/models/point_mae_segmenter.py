"""Point-MAE's part segmentation (arXiv 2203.06604): features from three depths, interpolated to all points."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.errors import ConfigError
from pc_ewa.models.base import PointModel
from pc_ewa.models.losses import at_least_single
from pc_ewa.models.patches import PatchEncoder, PointConv, position_embedding
from pc_ewa.models.propagation import FeaturePropagation, relu_norm
from pc_ewa.models.transformer import TransformerEncoder, check_positive, check_rates, check_sizes


class PointMAESegmenter(PointModel):
    """Part segmenter: it classifies each point of a cloud. The state_dict keys are those of the official checkpoints.

    The defaults are the official ShapeNetPart model for clouds of 2048 points, with 27.1 M parameters. There is no
    class token. As in the official code, all layers keep the default initialisation of PyTorch. For the other arguments
    see `pc_ewa.models`.

    Args:
        num_parts: number of outputs, the parts of all categories together.
        num_categories: number of categories of shapes.
        depth: number of blocks, at least 3: features are taken after one, two and three thirds of them.

    Raises:
        ConfigError: an impossible size.

    Example:
        >>> model = pc_ewa.create_model("point_mae_segmenter", depth=3).eval()
        >>> model(torch.rand(2, 2048, 3), categories=torch.tensor([0, 15])).argmax(dim=2).shape
        torch.Size([2, 2048])
    """

    task: ClassVar[str] = "segment"
    expert_ffns: ClassVar[str] = "blocks.blocks.*.mlp"
    head_keys: ClassVar[tuple[str, ...]] = ("label_conv", "propagation_", "convs", "bns")

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
        encoder_width: int = 128,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        head_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio)
        check_positive(num_parts=num_parts, num_categories=num_categories)
        check_positive(num_groups=num_groups, group_size=group_size, encoder_width=encoder_width)
        check_rates(drop_path=drop_path, head_dropout=head_dropout)
        self.stages = three_depths(depth)
        self.num_groups, self.group_size = num_groups, group_size
        self.num_categories, self.head_dropout = num_categories, head_dropout
        self.encoder = PatchEncoder(dim, encoder_width)
        self.pos_embed = position_embedding(dim)
        self.blocks = TransformerEncoder(dim, depth, num_heads, mlp_ratio, drop_path)
        self.norm = nn.LayerNorm(dim)
        self.label_conv = nn.Sequential(
            nn.Conv1d(num_categories, 64, 1, bias=False), nn.BatchNorm1d(64), nn.LeakyReLU(0.2)
        )
        self.propagation_0 = FeaturePropagation(3 * dim, [4 * dim, 1024])
        self.convs1 = PointConv(1024 + 6 * dim + 64, 512)
        self.convs2 = PointConv(512, 256)
        self.convs3 = PointConv(256, num_parts)
        self.bns1 = nn.BatchNorm1d(512)
        self.bns2 = nn.BatchNorm1d(256)

    def forward(self, points: Tensor, categories: Tensor) -> Tensor:
        """Map clouds (B, N, 3) and their categories (B,), int64, to log-probabilities (B, N, num_parts).

        Raises:
            ValueError: the categories have a wrong shape, type or value, or a cloud has fewer points than patches or
                than a patch has.
        """
        kinds = one_hot(categories, self.num_categories, points)
        groups, centers = ops.group(points, self.num_groups, self.group_size)
        states = self.blocks.states(self.encoder(groups), self.pos_embed(centers))
        features = torch.cat([self.norm(states[stage]) for stage in self.stages], dim=-1)
        label = self.label_conv(kinds[..., None]).squeeze(-1)
        cloud = torch.cat([features.max(dim=1).values, features.mean(dim=1), label], dim=-1)
        return self._head(self.propagation_0(points, centers, features), cloud)

    def _head(self, x: Tensor, cloud: Tensor) -> Tensor:
        """Map features of points (B, N, 1024) and of their clouds (B, D) to log-probabilities."""
        # The official layer maps concat(x, cloud). As the sum of two layers, the one on `cloud` runs once per cloud.
        weight, cloud_weight = torch.split(self.convs1.weight.squeeze(-1), [x.shape[-1], cloud.shape[-1]], dim=1)
        x = F.linear(x, weight) + F.linear(cloud, cloud_weight, self.convs1.bias)[:, None]
        x = F.dropout(relu_norm(self.bns1, x), self.head_dropout, self.training)
        return log_probabilities(self.convs3(relu_norm(self.bns2, self.convs2(x))))


def three_depths(depth: int) -> tuple[int, int, int]:
    """Return the indices of the blocks that end one, two and three thirds of the depth: 3, 7 and 11 of 12.

    Raises:
        ConfigError: fewer than 3 blocks.
    """
    if depth < 3:
        raise ConfigError(f"depth={depth}; a segmenter takes features after three blocks: it must be at least 3")
    # These integers give the official 3, 7 and 11 for 12 blocks, and three different blocks for any depth from 3 on.
    return depth // 3 - 1, 2 * depth // 3 - 1, depth - 1


def log_probabilities(scores: Tensor) -> Tensor:
    """Return log_softmax over the last axis, at least in float32."""
    return F.log_softmax(at_least_single(scores), dim=-1)


def one_hot(categories: Tensor, count: int, points: Tensor) -> Tensor:
    """Encode the categories (B,) of clouds (B, N, 3) as one-hot rows (B, count), in the dtype of the points.

    Raises:
        ValueError: categories that are not (B,) int64, or not in 0 to count - 1.
    """
    if categories.shape != points.shape[:1] or categories.dtype != torch.int64:
        raise ValueError(
            f"categories are {tuple(categories.shape)} {categories.dtype}; expected one for each of the "
            f"{points.shape[0]} clouds, int64"
        )
    outside = (categories < 0) | (categories >= count)
    exporting = getattr(torch.compiler, "is_exporting", bool)()  # torch 2.6 has no such function
    if not exporting and bool(outside.any()):  # an exported graph has no branches that depend on values
        raise ValueError(f"category {int(categories[outside][0])}; the model has {count}: choose 0 to {count - 1}")
    return F.one_hot(categories, count).to(points)
