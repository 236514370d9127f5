"""Point-BERT's tokenizer (arXiv 2111.14819): a discrete VAE that assigns one of 8192 words to each patch."""

import math
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.errors import ConfigError
from pc_ewa.models.base import PointModel
from pc_ewa.models.dgcnn import DGCNN, NEIGHBOURS, NORM_GROUPS, neighbour_graph
from pc_ewa.models.losses import LossOutput, at_least_single
from pc_ewa.models.next_step import NextStep
from pc_ewa.models.patches import PatchEncoder, PointConv
from pc_ewa.models.transformer import check_positive

FOLD = 4  # fine points around each coarse point
FOLD_HALF_WIDTH = 0.05


class DiscreteVAE(PointModel):
    """Discrete VAE that encodes patches as words of a codebook, and decodes points from the words.

    The state_dict keys are the official ones. The defaults are the official model, with 27.6 M parameters. It has no
    FFN that could become a mixture of experts. For the other arguments see `pc_ewa.models`.

    Args:
        num_groups: patches per cloud, at least 4.
        group_size: points per patch, a multiple of 4.
        encoder_dim: width of the patch encoder.
        num_tokens: number of words in the codebook, a multiple of 4.
        tokens_dim: width of a word.
        decoder_dim: width of the input of the decoder, a multiple of 4.
        graph_width: width of the first layer of both DGCNNs, an even number.
        decoder_width: half the width of the MLP in the decoder, and the width of its folding.
        temperature: temperature of the Gumbel softmax at the first step, and after `temperature_steps`.
        temperature_steps: number of optimizer steps over which the temperature changes.
        kl_weight: final weight of the KL divergence.
        kl_start: number of optimizer steps for which the weight of the KL divergence is 0.
        kl_steps: number of optimizer steps after that in which the weight rises to `kl_weight`.

    Raises:
        ConfigError: an impossible size or schedule.

    Example:
        >>> model = pc_ewa.create_model("dvae", num_tokens=512, graph_width=16).eval()
        >>> model.tokenize(*pc_ewa.ops.group(torch.rand(4, 1024, 3), 64, 32)).shape
        torch.Size([4, 64])
    """

    task: ClassVar[str] = "tokenize"
    head_keys: ClassVar[tuple[str, ...]] = ()
    next_step: ClassVar[NextStep] = NextStep(
        "point_bert",
        ("quickstart_point_bert", "pretrain/point_bert_shapenet55"),
        "pre-training that predicts its tokens",
    )

    def __init__(
        self,
        *,
        num_groups: int = 64,
        group_size: int = 32,
        encoder_dim: int = 256,
        num_tokens: int = 8192,
        tokens_dim: int = 256,
        decoder_dim: int = 256,
        encoder_width: int = 128,
        graph_width: int = 128,
        decoder_width: int = 512,
        temperature: tuple[float, float] = (1.0, 0.0625),
        temperature_steps: int = 100_000,
        kl_weight: float = 0.1,
        kl_start: int = 10_000,
        kl_steps: int = 100_000,
    ) -> None:
        super().__init__()
        check_positive(encoder_dim=encoder_dim, tokens_dim=tokens_dim, encoder_width=encoder_width)
        check_positive(decoder_width=decoder_width, temperature_steps=temperature_steps, kl_steps=kl_steps)
        if num_groups < NEIGHBOURS:
            raise ConfigError(
                f"num_groups={num_groups}; the graph joins {NEIGHBOURS} patches: choose {NEIGHBOURS} or more"
            )
        _check_multiple(FOLD, group_size=group_size)
        _check_multiple(NORM_GROUPS, num_tokens=num_tokens, decoder_dim=decoder_dim)
        _check_multiple(NORM_GROUPS // 2, graph_width=graph_width)
        if min(temperature) <= 0:
            raise ConfigError(f"temperature={temperature}; both must be above 0")
        if kl_weight < 0 or kl_start < 0:
            raise ConfigError(f"kl_weight={kl_weight}, kl_start={kl_start}; neither may be negative")
        self.num_groups, self.group_size, self.num_tokens = num_groups, group_size, num_tokens
        self.temperature, self.temperature_steps = temperature, temperature_steps
        self.kl_weight, self.kl_start, self.kl_steps = kl_weight, kl_start, kl_steps
        self.codebook = nn.Parameter(torch.randn(num_tokens, tokens_dim))
        self.encoder = PatchEncoder(encoder_dim, encoder_width)
        self.dgcnn_1 = DGCNN(encoder_dim, num_tokens, graph_width)
        self.dgcnn_2 = DGCNN(tokens_dim, decoder_dim, graph_width)
        self.decoder = _Folding(decoder_dim, group_size, decoder_width)

    def forward(self, points: Tensor, step: int | None = None) -> LossOutput:
        """Compute the loss of reconstructing clouds (B, N, 3).

        In training the words are mixed by a Gumbel softmax. In evaluation each patch takes the most likely word,
        without noise, so that the loss is reproducible. The official validation draws noise there too.

        Args:
            points: clouds.
            step: optimizer steps done so far, for the schedules. None means 0.

        Returns:
            The loss; the terms `reconstruction` and `kl` (not weighted); and the outputs `coarse` (B, G, K/4, 3) and
            `fine` (B, G, K, 3), the predicted points relative to `centers` (B, G, 3), and `logits` (B, G, T).
        """
        groups, centers = ops.group(points, self.num_groups, self.group_size)
        index = neighbour_graph(centers)
        logits = self._logits(groups, index)
        if self.training:
            words = F.gumbel_softmax(logits, self.temperature_at(step or 0), dim=2)
        else:
            words = F.one_hot(logits.argmax(dim=2), self.num_tokens).to(logits.dtype)
        coarse, fine = self._points(words, index)
        patches = groups.flatten(0, 1)
        reconstruction = ops.chamfer_distance(coarse.flatten(0, 1), patches, "l1")
        reconstruction = reconstruction + ops.chamfer_distance(fine.flatten(0, 1), patches, "l1")
        kl = _kl_from_uniform(logits)
        loss = reconstruction + self.kl_weight_at(step or 0) * kl
        terms = {"reconstruction": reconstruction.detach(), "kl": kl.detach()}
        return LossOutput(loss, terms, {"coarse": coarse, "fine": fine, "logits": logits, "centers": centers})

    def encode(self, groups: Tensor, centers: Tensor) -> Tensor:
        """Return scores (B, G, T), at least float32, of all words for patches (B, G, K, 3) around centers (B, G, 3)."""
        return self._logits(groups, neighbour_graph(centers))

    def decode(self, words: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
        """Decode patches from weights of words (B, G, T): coarse (B, G, K/4, 3) and fine (B, G, K, 3) points."""
        return self._points(words, neighbour_graph(centers))

    @torch.no_grad()
    def tokenize(self, groups: Tensor, centers: Tensor) -> Tensor:
        """Return the most likely word of each patch (B, G, K, 3), as (B, G) int64."""
        # Without autocast: the words are targets, and rounding to bfloat16 can change the best of 8192 scores.
        with torch.autocast(groups.device.type, enabled=False):
            return self.encode(groups, centers).argmax(dim=2)

    def temperature_at(self, step: int) -> float:
        """Return the temperature of the Gumbel softmax after `step` steps: half a cosine from start to end."""
        start, end = self.temperature
        return start + (end - start) * _half_cosine(step / self.temperature_steps)

    def kl_weight_at(self, step: int) -> float:
        """Return the weight of the KL divergence after `step` optimizer steps: 0 to `kl_start`, then half a cosine."""
        return self.kl_weight * _half_cosine((step - self.kl_start) / self.kl_steps)

    def _logits(self, groups: Tensor, index: Tensor) -> Tensor:
        return at_least_single(self.dgcnn_1(self.encoder(groups), index))

    def _points(self, words: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder(self.dgcnn_2(words @ self.codebook, index))


class _Folding(nn.Module):
    """Decoder of the points of a patch: coarse points, and a 2 x 2 grid around each that an MLP folds (FoldingNet)."""

    seed: Tensor

    def __init__(self, dim: int, group_size: int, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.mlp = nn.Sequential(
            *(nn.Linear(dim, wide), nn.ReLU(inplace=True), nn.Linear(wide, wide), nn.ReLU(inplace=True)),
            nn.Linear(wide, 3 * group_size // FOLD),
        )
        self.final_conv = nn.Sequential(
            *(PointConv(dim + 2 + 3, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)),
            *(PointConv(width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)),
            PointConv(width, 3),
        )
        side = torch.tensor([-FOLD_HALF_WIDTH, FOLD_HALF_WIDTH])
        self.register_buffer("seed", torch.cartesian_prod(side, side).flip(1), persistent=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (B, G, C) to coarse (B, G, K/4, 3) and fine (B, G, K, 3) points, at least float32."""
        coarse = at_least_single(rearrange(self.mlp(features), "b g (n c) -> b g n c", c=3))
        first = cast(PointConv, self.final_conv[0])
        weight, dim = first.weight.squeeze(-1), features.shape[2]
        by_feature, by_seed, by_point = weight[:, :dim], weight[:, dim : dim + 2], weight[:, dim + 2 :]
        # The official layer maps concat(feature, seed, coarse point) of each fine point. A linear layer on a
        # concatenation is a sum of three, and each of them runs once for all points that share its input.
        hidden = F.linear(features, by_feature, first.bias)[:, :, None, None] + F.linear(self.seed, by_seed)
        hidden = hidden + F.linear(coarse, by_point)[:, :, :, None]
        offsets = self.final_conv[1:](hidden.flatten(0, 3)).view(*hidden.shape[:-1], 3)
        return coarse, (coarse[:, :, :, None] + offsets).flatten(2, 3)


def _kl_from_uniform(logits: Tensor) -> Tensor:
    """Return KL(uniform || q), the mean over the batch; q is the mean over patches of the softmax over words."""
    # In logarithms throughout, because the probability of an unused word may underflow to 0 in float32. The
    # logsumexp over patches minus log(G) is the logarithm of the mean probability.
    log_mean = F.log_softmax(logits, dim=2).logsumexp(dim=1) - math.log(logits.shape[1])
    return -math.log(logits.shape[2]) - log_mean.mean()


def _half_cosine(progress: float) -> float:
    """Return a value that rises from 0 at progress 0 to 1 at progress 1 along half a cosine."""
    return (1 - math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2


def _check_multiple(of: int, **sizes: int) -> None:
    for name, value in sizes.items():
        if value < of or value % of:
            raise ConfigError(f"{name}={value}; it must be a multiple of {of}, such as {max(of, value // of * of)}")
