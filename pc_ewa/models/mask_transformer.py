"""The transformer of Point-BERT's pre-training: reads patches, some of them hidden, and describes cloud and patches."""

import torch
from torch import Tensor, nn

from pc_ewa.models.patches import PatchEncoder, position_embedding, with_class_token
from pc_ewa.models.point_mae import trunc_normal_init
from pc_ewa.models.transformer import TransformerEncoder


class MaskTransformer(nn.Module):
    """A ViT on patches; a hidden one keeps its place and loses its content, for a learned token.

    Args:
        encoder: the patch encoder, to tokens of width `encoder_dim`.
        encoder_dim: a linear layer makes them `dim` wide.
        blocks: the trunk.
        dim: width of the trunk.
        num_tokens: words to choose from for a hidden patch.
        contrast_dim: width of what the class token is turned into.
    """

    def __init__(
        self,
        encoder: PatchEncoder,
        encoder_dim: int,
        blocks: TransformerEncoder,
        dim: int,
        num_tokens: int,
        contrast_dim: int,
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder = encoder
        self.reduce_dim = nn.Linear(encoder_dim, dim)
        self.pos_embed = position_embedding(dim)
        self.blocks = blocks
        self.norm = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, num_tokens)
        self.cls_head = nn.Sequential(nn.Linear(dim, contrast_dim), nn.GELU(), nn.Linear(contrast_dim, contrast_dim))
        for token in (self.cls_token, self.mask_token, self.cls_pos):
            nn.init.trunc_normal_(token, std=0.02)
        self.apply(trunc_normal_init)

    def forward(self, groups: Tensor, centers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Read patches (B, G, K, 3) around centers (B, G, 3), but those that the mask (B, G) hides.

        Returns:
            What describes the clouds, (B, D), and the scores of all words for the M hidden patches, (M, T).
        """
        x = self._states(groups, centers, mask)
        return self.cls_head(x[:, 0]), self.lm_head(x[:, 1:][mask])

    def describe(self, groups: Tensor, centers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Describe the clouds only, (B, D); without a mask nothing is hidden."""
        return self.cls_head(self._states(groups, centers, mask)[:, 0])

    def _states(self, groups: Tensor, centers: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.reduce_dim(self.encoder(groups))
        if mask is not None:
            tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        x = self.blocks(*with_class_token(self.cls_token, self.cls_pos, tokens, self.pos_embed(centers)))
        return self.norm(x)
