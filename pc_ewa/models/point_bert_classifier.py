"""Point-BERT's classifier (arXiv 2111.14819): patch encoder with a projection, ViT with a class token, MLP head."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.models.base import PointModel
from pc_ewa.models.patches import PatchEncoder, position_embedding, with_class_token
from pc_ewa.models.transformer import TransformerEncoder, check_positive, check_rates, check_sizes


class PointBERTClassifier(PointModel):
    """Classifier of clouds. The state_dict keys are those of the official checkpoints.

    The defaults are the official ModelNet40 model, with 22.1 M parameters for 40 classes. As in the official runs from
    scratch, all layers keep the default initialisation of PyTorch, the class token starts at 0 and its position is
    normal. For the other arguments see `pc_ewa.models`.

    Args:
        num_classes: number of outputs.

    Raises:
        ConfigError: an impossible size.

    Example:
        >>> model = pc_ewa.create_model("point_bert_classifier", num_classes=15, depth=2).eval()
        >>> model.features(torch.rand(4, 1024, 3)).shape
        torch.Size([4, 768])
    """

    task: ClassVar[str] = "classify"
    expert_ffns: ClassVar[str] = "blocks.blocks.*.mlp"
    feature_name: ClassVar[str] = "class token and maximum over the other tokens"
    head_keys: ClassVar[tuple[str, ...]] = ("cls_head_finetune", "cls_token", "cls_pos")

    def __init__(
        self,
        num_classes: int = 40,
        *,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_groups: int = 64,
        group_size: int = 32,
        encoder_dim: int = 256,
        encoder_width: int = 128,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        head_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, depth=depth, num_classes=num_classes)
        check_positive(num_groups=num_groups, group_size=group_size)
        check_positive(encoder_dim=encoder_dim, encoder_width=encoder_width)
        check_rates(drop_path=drop_path, head_dropout=head_dropout)
        self.num_groups, self.group_size = num_groups, group_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_pos = nn.Parameter(torch.randn(1, 1, dim))
        self.encoder = PatchEncoder(encoder_dim, encoder_width)
        self.reduce_dim = nn.Linear(encoder_dim, dim)
        self.pos_embed = position_embedding(dim)
        self.blocks = TransformerEncoder(dim, depth, num_heads, mlp_ratio, drop_path)
        self.norm = nn.LayerNorm(dim)
        self.cls_head_finetune = nn.Sequential(
            nn.Linear(2 * dim, 256), nn.ReLU(inplace=True), nn.Dropout(head_dropout), nn.Linear(256, num_classes)
        )

    def forward(self, points: Tensor) -> Tensor:
        """Map clouds (B, N, 3) to logits (B, num_classes)."""
        return self.cls_head_finetune(self.features(points))

    def features(self, points: Tensor) -> Tensor:
        """Return the input of the head, the class token and the maximum over the other tokens, (B, 2 C)."""
        groups, centers = ops.group(points, self.num_groups, self.group_size)
        tokens = self.reduce_dim(self.encoder(groups))
        x = self.blocks(*with_class_token(self.cls_token, self.cls_pos, tokens, self.pos_embed(centers)))
        x = self.norm(x)
        return torch.cat([x[:, 0], x[:, 1:].max(dim=1).values], dim=-1)
