"""The transformer of Point-BERT's pre-training: from masked patches to a feature of the cloud and scores of words."""

import torch
from torch import Tensor, nn

from pc_ewa.models.patches import PatchEncoder, position_embedding, with_class_token
from pc_ewa.models.transformer import TransformerEncoder, trunc_normal_init


class MaskTransformer(nn.Module):
    """A ViT over patches. A masked patch keeps its position embedding; its token is replaced by a learned mask token.

    Args:
        encoder: the patch encoder.
        encoder_dim: width of its tokens; a linear layer projects them to `dim`.
        blocks: the trunk.
        dim: width of the trunk.
        num_tokens: number of words of the tokenizer, the classes of a masked patch.
        contrast_dim: width of the contrastive feature, computed from the class token.
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
        """Map patches (B, G, K, 3) around centers (B, G, 3), with the content of masked patches hidden.

        Returns:
            Contrastive features (B, D) of the clouds, and scores (M, T) of all words for the M masked patches.
        """
        x = self._states(groups, centers, mask)
        return self.cls_head(x[:, 0]), self.lm_head(x[:, 1:][mask])

    def describe(self, groups: Tensor, centers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return only the contrastive features (B, D). If `mask` is None, no patch is hidden."""
        return self.cls_head(self._states(groups, centers, mask)[:, 0])

    def _states(self, groups: Tensor, centers: Tensor, mask: Tensor | None) -> Tensor:
        # All patches are encoded, also the hidden ones: the batch norm of the encoder has statistics over all of them.
        tokens = self.reduce_dim(self.encoder(groups))
        if mask is not None:
            tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        x = self.blocks(*with_class_token(self.cls_token, self.cls_pos, tokens, self.pos_embed(centers)))
        return self.norm(x)
