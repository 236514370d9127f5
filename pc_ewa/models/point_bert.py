"""Point-BERT (arXiv 2111.14819): pre-training that predicts the words of masked patches and contrasts clouds."""

import copy
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pc_ewa import ops
from pc_ewa.errors import ConfigError
from pc_ewa.ewa.conversion import merged_parameters
from pc_ewa.models.base import PointModel
from pc_ewa.models.contrast import contrast, contrast_mixed, cutmix, enqueue
from pc_ewa.models.dvae import DiscreteVAE
from pc_ewa.models.losses import LossOutput, at_least_single
from pc_ewa.models.mask_transformer import MaskTransformer
from pc_ewa.models.masking import block_mask, check_mask, fixed_in_evaluation
from pc_ewa.models.next_step import FINE_TUNING, NextStep
from pc_ewa.models.patches import PatchEncoder
from pc_ewa.models.transformer import TransformerEncoder, check_positive, check_rates, check_sizes


class PointBERT(PointModel):
    """Transformer pre-trained to predict the words that a frozen tokenizer assigns to masked patches.

    The state_dict keys are the official ones. The defaults are the official pre-training on ShapeNet-55, with 78.6 M
    parameters, the two frozen networks included. For the other arguments see `pc_ewa.models`, and `DiscreteVAE` for
    those of the tokenizer.

    Call `load_tokenizer` before training and `after_step` after every optimizer step. `forward` changes nothing in the
    state_dict except BatchNorm statistics.

    `transformer_q` is trained, and may hold mixtures of experts. `transformer_k` computes the keys of the contrastive
    loss. It is dense and follows the mean of the experts, which is the model that they merge into. Averaging the
    experts (EWA, Eq. 6) does not change that mean, so it may run before or after `after_step`.

    Args:
        num_groups: patches per cloud, at least 4.
        group_size: points per patch, a multiple of 4.
        mask_ratio: smallest and largest fraction of the patches to hide. The fraction is drawn for each sample, or with
            "rand" for each batch.
        mask_type: "block" hides a patch and its nearest ones, "rand" hides each patch with the same probability.
        contrast_dim: width of the contrastive features.
        queue_size: number of keys of earlier steps to contrast with.
        momentum: fraction of its weights that `transformer_k` keeps at each step.
        contrast_temperature: temperature of the softmax over keys.
        cutmix_loss: add the contrastive loss on clouds whose patches were mixed.
        moco_loss: add the contrastive loss on unmixed clouds. It is off in the released configuration.
        live_tokenizer: keep the BatchNorm of the tokenizer in training mode, as the official code does by accident. The
            words then depend on the batch, and the running statistics change.

    Raises:
        ConfigError: an impossible size.

    Example:
        >>> model = pc_ewa.create_model("point_bert", depth=2, num_tokens=512, graph_width=16, queue_size=64)
        >>> model(torch.rand(4, 1024, 3)).loss.backward()
        >>> model.after_step()
    """

    task: ClassVar[str] = "pretrain"
    expert_ffns: ClassVar[str] = "transformer_q.blocks.blocks.*.mlp"
    feature_name: ClassVar[str] = "output of the contrastive head"
    head_keys: ClassVar[tuple[str, ...]] = ()
    needs_tokenizer: ClassVar[bool] = True
    refuses_gate: ClassVar[str] = "its momentum encoder follows the merged experts, and gated ones do not merge"
    official_arguments: ClassVar[dict[str, bool]] = {"live_tokenizer": True}
    next_step: ClassVar[NextStep] = NextStep("point_bert_classifier", FINE_TUNING, "fine-tuning from here")

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
        check_sizes(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, depth=depth)
        check_positive(contrast_dim=contrast_dim, queue_size=queue_size)
        check_rates(drop_path=drop_path, momentum=momentum)
        least, most = mask_ratio
        if not (least <= most < 1 and int(least * num_groups) >= 1):
            raise ConfigError(
                f"mask_ratio={mask_ratio} with num_groups={num_groups}; give the smallest fraction first, which must "
                "hide a patch, and the largest below 1"
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
        # The words are targets. If the same loss trained the tokenizer, it could make them trivial to predict.
        self.dvae = dvae.requires_grad_(False)
        self._contrasts = cutmix_loss or moco_loss
        if not self._contrasts:
            # No loss depends on this head, and DistributedDataParallel needs a gradient for every trainable parameter.
            self.transformer_q.cls_head.requires_grad_(False)
        self._keys: list[Tensor] = []
        self.train()

    def train(self, mode: bool = True) -> "PointBERT":
        """Set training or evaluation mode. The tokenizer stays in evaluation mode unless it is live."""
        super().train(mode)
        # In evaluation mode BatchNorm uses running statistics, so the word of a patch does not depend on its batch.
        self.dvae.train(mode and self.live_tokenizer)
        return self

    def load_tokenizer(self, state: Mapping[str, Tensor]) -> None:
        """Load the state_dict of a trained `DiscreteVAE`. Both transformers start from its patch encoder.

        Raises:
            RuntimeError: the keys or shapes differ from those of the tokenizer.
        """
        self.dvae.load_state_dict(state, strict=True)
        encoder = self.dvae.encoder.state_dict()
        self.transformer_q.encoder.load_state_dict(encoder)
        self.transformer_k.encoder.load_state_dict(encoder)

    def forward(self, points: Tensor, mask: Tensor | None = None) -> LossOutput:
        """Compute the loss on clouds (B, N, 3).

        The clouds pass through the transformer twice: unmixed, and with patches exchanged between samples.

        Args:
            points: clouds.
            mask: (B, G), True = hidden, for the first pass. If None, it is drawn; in evaluation the draw is always the
                same. The second pass and the keys always draw separate masks.

        Returns:
            The loss; the terms `token_loss` (of both passes), `token_accuracy` (of the first pass), and `cutmix_loss`
            and `moco_loss` if they are on; and the output `logits` (M, T) of the hidden patches of the first pass, in
            the order of the output `mask` (B, G).

        Raises:
            ValueError: the mask has the wrong shape or type.
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
            # Only keys of training steps are enqueued, and in `after_step`, not here: a forward must not change the
            # queue that later forwards of the same step (gradient accumulation, checkpointing) contrast with.
            if self.training and torch.is_grad_enabled():
                self._keys.append(keys)
            against = keys, self.queue, self.contrast_temperature
            if self.cutmix_loss:
                losses["cutmix_loss"] = contrast_mixed(at_least_single(query_mixed), *against, share)
            if self.moco_loss:
                losses["moco_loss"] = contrast(at_least_single(query), *against)
        terms = {name: loss.detach() for name, loss in losses.items()} | {"token_accuracy": token_accuracy}
        return LossOutput(torch.stack(list(losses.values())).sum(), terms, {"logits": logits, "mask": mask})

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
        """Return the contrastive features (B, D) of clouds (B, N, 3) without a mask, the input of the official SVM."""
        groups, centers = ops.group(points, self.num_groups, self.group_size)
        return self.transformer_q.describe(groups, centers)

    @torch.no_grad()
    def after_step(self) -> None:
        """Enqueue the keys of this step, and move `transformer_k` towards `transformer_q`.

        All processes must call it once after each optimizer step. The official code does the same at another point of
        the loop: it moves the weights before it computes the keys of the next step.

        The keys of all training forwards since the last call replace the oldest in the queue, ordered by process, and
        within a process by forward.

        Raises:
            ValueError: there are more keys than the queue holds.
        """
        if self._keys:
            keys, self._keys = torch.cat(self._keys), []
            enqueue(self.queue, self.queue_ptr, keys)
        # Parameters, not buffers: the batch norms of `transformer_k` have the statistics of its own forwards.
        for name, value in merged_parameters(self.transformer_q):
            self.transformer_k.get_parameter(name).mul_(self.momentum).add_(value, alpha=1 - self.momentum)

    @torch.no_grad()
    def _make_keys(self, groups: Tensor, centers: Tensor, draws: torch.Generator | None) -> Tensor:
        keys = self.transformer_k.describe(groups, centers, self.draw_mask(centers, draws))
        return F.normalize(at_least_single(keys), dim=1)


def _guesses(logits: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and the accuracy of scores (M, T) for words (M,). Both are 0 if M is 0."""
    # A sum divided by at least 1: the mean over no patches would be NaN. With "rand" a mask can hide none.
    count = max(1, len(words))
    loss = F.cross_entropy(at_least_single(logits), words, reduction="sum") / count
    return loss, (logits.argmax(dim=1) == words).sum() / count
