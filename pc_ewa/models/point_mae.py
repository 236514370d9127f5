"""Point-MAE (arXiv 2203.06604): a masked autoencoder of patches. Its encoder sees only the visible patches."""

from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.errors import ConfigError
from pc_ewa.models.base import PointModel
from pc_ewa.models.losses import LossOutput, at_least_single
from pc_ewa.models.masking import block_mask, check_mask, fixed_in_evaluation, random_mask
from pc_ewa.models.next_step import FINE_TUNING, NextStep
from pc_ewa.models.patches import PatchEncoder, PointConv, position_embedding
from pc_ewa.models.transformer import (
    Block,
    TransformerEncoder,
    check_positive,
    check_rates,
    check_sizes,
    drop_path_rates,
    trunc_normal_init,
)


class PointMAE(PointModel):
    """Masked autoencoder that predicts the points of masked patches from the visible ones.

    The state_dict keys are the official ones. The defaults are the official pre-training on ShapeNet-55, with 29.0 M
    parameters. For the other arguments see `pc_ewa.models`.

    Args:
        decoder_depth: number of blocks of the decoder.
        decoder_num_heads: attention heads of the decoder. None uses the number of the encoder.
        mask_ratio: fraction of the patches to hide: int(mask_ratio * num_groups) of each sample.
        mask_type: "rand" hides patches at random, "block" hides a patch and its nearest ones.
        loss: Chamfer distance between predicted and masked patches, "cdl2" or "cdl1".

    Raises:
        ConfigError: an impossible size.

    Example:
        >>> model = pc_ewa.create_model("point_mae", depth=2, decoder_depth=1)
        >>> model(torch.rand(4, 1024, 3)).loss.backward()
        >>> model.features(torch.rand(4, 1024, 3)).shape
        torch.Size([4, 768])
    """

    task: ClassVar[str] = "pretrain"
    expert_ffns: ClassVar[str] = "MAE_encoder.blocks.blocks.*.mlp"  # the decoder is dropped after pre-training
    feature_name: ClassVar[str] = "mean and maximum over all tokens of the encoder"
    head_keys: ClassVar[tuple[str, ...]] = ()
    next_step: ClassVar[NextStep] = NextStep("point_mae_classifier", FINE_TUNING, "fine-tuning from here")

    def __init__(
        self,
        *,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_groups: int = 64,
        group_size: int = 32,
        encoder_width: int = 128,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        decoder_depth: int = 4,
        decoder_num_heads: int | None = None,
        mask_ratio: float = 0.6,
        mask_type: Literal["rand", "block"] = "rand",
        loss: Literal["cdl2", "cdl1"] = "cdl2",
    ) -> None:
        super().__init__()
        decoder_num_heads = num_heads if decoder_num_heads is None else decoder_num_heads
        check_sizes(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, depth=depth, decoder_depth=decoder_depth)
        check_sizes(dim=dim, num_heads=decoder_num_heads)
        check_positive(num_groups=num_groups, group_size=group_size, encoder_width=encoder_width)
        check_rates(drop_path=drop_path, mask_ratio=mask_ratio)
        if not 1 <= int(mask_ratio * num_groups) < num_groups:
            hidden = int(mask_ratio * num_groups)
            raise ConfigError(f"mask_ratio={mask_ratio} hides {hidden} of {num_groups} patches; hide some, leave some")
        self.num_groups, self.group_size = num_groups, group_size
        self.mask_ratio, self.mask_type, self.norm_of_loss = mask_ratio, mask_type, loss.removeprefix("cd")
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.MAE_encoder = _Encoder(dim, depth, num_heads, encoder_width, mlp_ratio, drop_path)
        self.decoder_pos_embed = position_embedding(dim)
        self.MAE_decoder = _Decoder(dim, decoder_depth, decoder_num_heads, mlp_ratio, drop_path)
        self.increase_dim = nn.Sequential(PointConv(dim, 3 * group_size))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, points: Tensor, mask: Tensor | None = None) -> LossOutput:
        """Compute the loss on clouds (B, N, 3).

        Args:
            points: clouds.
            mask: (B, G), True = hidden, with the same number in each sample. If None, it is drawn; in evaluation the
                draw is always the same.

        Returns:
            The loss, and the outputs `predicted` and `target`, the predicted and the true hidden patches (B, M, K, 3)
            relative to their centers, `centers` (B, G, 3) and `mask`.

        Raises:
            ValueError: the mask has the wrong shape or type, or hides a different number of patches in each sample.
        """
        groups, centers = ops.group(points, self.num_groups, self.group_size)
        mask = self.draw_mask(centers) if mask is None else self._checked(mask, centers)
        predicted, target = self._predict(groups, centers, mask), _pick(groups, mask)
        loss = ops.chamfer_distance(predicted.flatten(0, 1), target.flatten(0, 1), self.norm_of_loss)  # type: ignore[arg-type]
        return LossOutput(loss, {}, {"predicted": predicted, "target": target, "centers": centers, "mask": mask})

    def draw_mask(self, centers: Tensor) -> Tensor:
        """Draw a mask (B, G) for centers (B, G, 3)."""
        draw = random_mask if self.mask_type == "rand" else block_mask
        return draw(centers, self.mask_ratio, fixed_in_evaluation(self, centers.device))

    def features(self, points: Tensor) -> Tensor:
        """Return the mean and maximum over the tokens of the encoder, (B, 2 C), for clouds (B, N, 3) without a mask."""
        groups, centers = ops.group(points, self.num_groups, self.group_size)
        tokens = self.MAE_encoder(groups, centers, torch.zeros_like(centers[..., 0], dtype=torch.bool))
        return torch.cat([tokens.mean(dim=1), tokens.max(dim=1).values], dim=-1)

    def _predict(self, groups: Tensor, centers: Tensor, mask: Tensor) -> Tensor:
        """Predict the points (B, M, K, 3) of the hidden patches, relative to their centers."""
        # Visible tokens first, mask tokens last, instead of the order of the patches: attention does not depend on the
        # order of tokens, and the decoder returns the last M of them.
        visible = self.MAE_encoder(groups, centers, mask)
        hidden_position = self.decoder_pos_embed(_pick(centers, mask))
        position = torch.cat([self.decoder_pos_embed(_pick(centers, ~mask)), hidden_position], dim=1)
        tokens = torch.cat([visible, self.mask_token.expand_as(hidden_position).to(visible.dtype)], dim=1)
        decoded = self.MAE_decoder(tokens, position, hidden_position.shape[1])
        return rearrange(at_least_single(self.increase_dim(decoded)), "b m (k c) -> b m k c", c=3)

    def _checked(self, mask: Tensor, centers: Tensor) -> Tensor:
        mask = check_mask(mask, centers)
        counts = mask.sum(1)
        if not 0 < int(counts.min()) == int(counts.max()) < mask.shape[1]:
            raise ValueError(f"mask hides {counts.tolist()} patches; hide as many in each sample, not none and not all")
        return mask


class _Encoder(nn.Module):
    """The encoder: a patch encoder for all patches, and a transformer on the visible ones."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, encoder_width: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.encoder = PatchEncoder(dim, encoder_width)
        self.pos_embed = position_embedding(dim)
        self.blocks = TransformerEncoder(dim, depth, num_heads, mlp_ratio, drop_path)
        self.norm = nn.LayerNorm(dim)
        self.apply(trunc_normal_init)

    def forward(self, groups: Tensor, centers: Tensor, mask: Tensor) -> Tensor:
        """Map patches (B, G, K, 3) to tokens (B, V, C) of the visible ones."""
        # All patches pass through the patch encoder, as in the official code. The hidden ones count in the statistics
        # of its batch norm, so encoding only the visible ones would be cheaper but another model.
        tokens, position = _pick(self.encoder(groups), ~mask), self.pos_embed(_pick(centers, ~mask))
        return self.norm(self.blocks(tokens, position))


class _Decoder(nn.Module):
    """The decoder: a transformer on the visible tokens and the mask tokens."""

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)
        self.apply(_xavier_init)

    def forward(self, x: Tensor, position: Tensor, count: int) -> Tensor:
        """Map all tokens (B, G, C), and return the last `count` of each sample, those of the masked patches."""
        for block in self.blocks:
            x = block(x + position)
        # `count` is at least 1, as every mask hides a patch: -0 would return all tokens.
        return self.norm(x[:, -count:])


def _xavier_init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _pick(values: Tensor, mask: Tensor) -> Tensor:
    """Select the entries of (B, G, ...) where the mask (B, G) is True, (B, M, ...)."""
    # Indexing with a bool mask flattens the first two axes. The result can be split into samples again only because
    # each sample has the same number M of entries.
    return rearrange(values[mask], "(b m) ... -> b m ...", b=len(values))
