"""Point-BERT (arXiv 2111.14819): guess the words of hidden patches, and tell mixed clouds apart."""

import copy
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.errors import ConfigError
from pc_ewa.ewa.conversion import merged_parameters
from pc_ewa.models.contrast import contrast, contrast_mixed, cutmix, enqueue
from pc_ewa.models.dvae import DiscreteVAE
from pc_ewa.models.mask_transformer import MaskTransformer
from pc_ewa.models.masking import block_mask, check_mask, fixed_in_evaluation
from pc_ewa.models.objective import LossOutput, at_least_single
from pc_ewa.models.patches import PatchEncoder
from pc_ewa.models.transformer import TransformerEncoder, check_sizes


class PointBERT(nn.Module):
    """Pre-train a transformer on the words that a frozen tokenizer gives to patches; the keys are the official ones.

    The defaults are the official pre-training on ShapeNet-55: 78.6 M parameters, the two frozen networks included.
    Call `load_tokenizer` before training, and `after_step` after every optimizer step: nothing but BatchNorm's
    statistics changes in between.

    `transformer_q` is what is trained, and may hold mixtures of experts. `transformer_k`, which makes the keys that its
    class token is told apart by, stays dense: it follows the mean of the experts, which is the model that they merge
    into. Averaging the experts (EWA, Eq. 6) leaves that mean as it is, so it may come before `after_step` or after.

    Args:
        dim: width of the tokens.
        depth: number of blocks.
        num_heads: attention heads; must divide `dim`.
        num_groups: patches per cloud, at least 4.
        group_size: points per patch, a multiple of 4.
        encoder_dim: width of the patch encoders.
        encoder_width: width of the first layer of the patch encoders.
        mlp_ratio: hidden width of the FFNs, in units of `dim`.
        drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
        mask_ratio: least and greatest share of the patches to hide; drawn for each sample ("rand": batch).
        mask_type: "block" hides a patch and those nearest to it, "rand" each patch by chance.
        contrast_dim: width of what is contrasted.
        queue_size: keys of earlier steps to contrast with.
        momentum: of the weights of `transformer_k`.
        contrast_temperature: of the softmax over keys.
        num_tokens: words of the tokenizer, as the next four: see `DiscreteVAE`.
        tokens_dim: width of its words.
        decoder_dim: width of its decoder's input.
        graph_width: width of its DGCNNs.
        decoder_width: width of its decoder.
        cutmix_loss: tell clouds apart whose patches were mixed.
        moco_loss: tell clouds apart as they are; off in the released configuration.
        live_tokenizer: leave the tokenizer's BatchNorm in training mode, as the official code does by accident: the
            words then depend on the batch, and its running statistics change.

    Raises:
        ConfigError: an impossible size.
    """

    task: ClassVar[str] = "pretrain"
    expert_ffns: ClassVar[str] = "transformer_q.blocks.blocks.*.mlp"
    feature_name: ClassVar[str] = "output of the contrastive head"
    head_keys: ClassVar[tuple[str, ...]] = ()

    queue: Tensor
    queue_ptr: Tensor

    def __init__(
        self,
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
        mask_ratio: tuple[float, float] = (0.25, 0.45),
        mask_type: Literal["block", "rand"] = "block",
        contrast_dim: int = 512,
        queue_size: int = 16384,
        momentum: float = 0.999,
        contrast_temperature: float = 0.07,
        num_tokens: int = 8192,
        tokens_dim: int = 256,
        decoder_dim: int = 256,
        graph_width: int = 128,
        decoder_width: int = 512,
        cutmix_loss: bool = True,
        moco_loss: bool = False,
        live_tokenizer: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "depth": depth, "num_heads": num_heads}
        sizes |= {"contrast_dim": contrast_dim, "queue_size": queue_size}
        check_sizes(sizes, mlp_ratio, drop_path=drop_path, momentum=momentum)
        least, most = mask_ratio
        if not (least <= most < 1 and int(least * num_groups) >= 1):
            raise ConfigError(
                f"mask_ratio={mask_ratio} with num_groups={num_groups}; give the least share first, which must hide a "
                "patch, and the greatest below 1"
            )
        if contrast_temperature <= 0:
            raise ConfigError(f"contrast_temperature={contrast_temperature}; it must be above 0")
        dvae = DiscreteVAE(
            num_groups=num_groups,
            group_size=group_size,
            encoder_dim=encoder_dim,
            num_tokens=num_tokens,
            tokens_dim=tokens_dim,
            decoder_dim=decoder_dim,
            encoder_width=encoder_width,
            graph_width=graph_width,
            decoder_width=decoder_width,
        )
        self.num_groups, self.group_size = num_groups, group_size
        self.mask_ratio, self.mask_type = mask_ratio, mask_type
        self.momentum, self.contrast_temperature = momentum, contrast_temperature
        self.cutmix_loss, self.moco_loss, self.live_tokenizer = cutmix_loss, moco_loss, live_tokenizer
        self.register_buffer("queue", F.normalize(torch.randn(contrast_dim, queue_size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))
        encoder = PatchEncoder(encoder_dim, encoder_width)
        blocks = TransformerEncoder(dim, depth, num_heads, mlp_ratio, drop_path)
        self.transformer_q = MaskTransformer(encoder, encoder_dim, blocks, dim, num_tokens, contrast_dim)
        self.transformer_k = copy.deepcopy(self.transformer_q).requires_grad_(False)
        self.dvae = dvae.requires_grad_(False)
        self._contrasts = cutmix_loss or moco_loss
        if not self._contrasts:
            self.transformer_q.cls_head.requires_grad_(False)  # nothing trains it
        self._keys: list[Tensor] = []
        self.train()

    def train(self, mode: bool = True) -> "PointBERT":
        """Switch to training or evaluation; the tokenizer stays in evaluation unless it is live."""
        super().train(mode)
        self.dvae.train(mode and self.live_tokenizer)
        return self

    def load_tokenizer(self, state: Mapping[str, Tensor]) -> None:
        """Take up a trained `DiscreteVAE` by its state_dict; both transformers start from its patch encoder.

        Raises:
            RuntimeError: keys or shapes that are not those of the tokenizer.
        """
        self.dvae.load_state_dict(state, strict=True)
        encoder = self.dvae.encoder.state_dict()
        self.transformer_q.encoder.load_state_dict(encoder)
        self.transformer_k.encoder.load_state_dict(encoder)

    def forward(self, points: Tensor, mask: Tensor | None = None) -> LossOutput:
        """Return the loss on clouds (B, N, 3), and the parts it came from.

        The clouds pass through the transformer twice: as they are, and with patches exchanged between samples.

        Args:
            points: clouds.
            mask: (B, G), True = hidden, for the first pass; drawn if not given, in evaluation always the same. The
                second pass and the keys draw their own.

        Returns:
            The loss, and its parts: the detached scalars `token_loss` (of both passes), `token_accuracy` (of the
            first), and `cutmix_loss` and `moco_loss` if they are on; the `logits` (M, T) of the hidden patches of the
            first pass, in the order of `mask` (B, G).

        Raises:
            ValueError: a mask that does not fit.
        """
        draws = fixed_in_evaluation(self, points.device)
        groups, centers = ops.group(points, self.num_groups, self.group_size)
        words = self.dvae.tokenize(groups, centers)
        mask = self.draw_mask(centers, draws) if mask is None else check_mask(mask, centers)
        query, logits = self.transformer_q(groups, centers, mask)
        token_loss, token_accuracy = _guesses(logits, words[mask])

        (groups_mixed, centers_mixed, words_mixed), share = cutmix(groups, centers, words, generator=draws)
        mask_mixed = self.draw_mask(centers_mixed, draws)
        query_mixed, logits_mixed = self.transformer_q(groups_mixed, centers_mixed, mask_mixed)
        losses = {"token_loss": token_loss + _guesses(logits_mixed, words_mixed[mask_mixed])[0]}
        if self._contrasts:
            keys = self._make_keys(groups, centers, draws)
            if self.training and torch.is_grad_enabled():
                self._keys.append(keys)
            against = keys, self.queue, self.contrast_temperature
            if self.cutmix_loss:
                losses["cutmix_loss"] = contrast_mixed(at_least_single(query_mixed), *against, share)
            if self.moco_loss:
                losses["moco_loss"] = contrast(at_least_single(query), *against)
        parts = {name: loss.detach() for name, loss in losses.items()} | {"token_accuracy": token_accuracy}
        return LossOutput(torch.stack(list(losses.values())).sum(), parts | {"logits": logits, "mask": mask})

    def draw_mask(self, centers: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a mask (B, G) for centers (B, G, 3)."""
        batch, least, most = centers.shape[0], *self.mask_ratio
        if self.mask_type == "block":
            ratio = torch.rand(batch, device=centers.device, generator=generator)
            return block_mask(centers, least + (most - least) * ratio, generator)
        ratio = torch.rand((), device=centers.device, generator=generator)
        keys = torch.rand(centers.shape[:2], device=centers.device, generator=generator)
        return keys < least + (most - least) * ratio

    def features(self, points: Tensor) -> Tensor:
        """Describe clouds (B, N, 3) by what is contrasted, nothing hidden: (B, D), the official SVM's input."""
        groups, centers = ops.group(points, self.num_groups, self.group_size)
        return self.transformer_q.describe(groups, centers)

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the keys of this step in the queue, and move `transformer_k` towards `transformer_q`.

        To be called once after each optimizer step, by all processes. The official code does the same with other bounds
        of a step: it moves the weights before the keys of the next one are made.

        The keys of all forwards in training since the last call are kept, process after process, each in the order of
        its forwards; the oldest in the queue make room.

        Raises:
            ValueError: more keys than the queue holds.
        """
        if self._keys:
            keys, self._keys = torch.cat(self._keys), []
            enqueue(self.queue, self.queue_ptr, keys)
        for name, value in merged_parameters(self.transformer_q):
            self.transformer_k.get_parameter(name).mul_(self.momentum).add_(value, alpha=1 - self.momentum)

    @torch.no_grad()
    def _make_keys(self, groups: Tensor, centers: Tensor, draws: torch.Generator | None) -> Tensor:
        keys = self.transformer_k.describe(groups, centers, self.draw_mask(centers, draws))
        return F.normalize(at_least_single(keys), dim=1)


def _guesses(logits: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy of guesses (M, T) at words (M,); 0 where there is none."""
    count = max(1, len(words))
    loss = F.cross_entropy(at_least_single(logits), words, reduction="sum") / count
    return loss, (logits.argmax(dim=1) == words).sum() / count
