"""Point-BERT's pre-training step as the official code writes it, and small models to compare with it."""

from typing import Any

import torch
import torch.nn.functional as F
from parity import filled_by_rule
from small_models import snapshot
from torch import Tensor

from pc_ewa import ops
from pc_ewa.models.point_bert import PointBERT

TOKENIZER: dict[str, Any] = {
    **{"num_groups": 8, "group_size": 4, "encoder_dim": 10, "num_tokens": 12, "tokens_dim": 5, "decoder_dim": 8},
    **{"encoder_width": 4, "graph_width": 4, "decoder_width": 7},
}
SMALL: dict[str, Any] = TOKENIZER | {
    **{"dim": 12, "depth": 2, "num_heads": 3, "drop_path": 0.0, "contrast_dim": 6, "queue_size": 10},
    **{"momentum": 0.9, "mask_ratio": (0.3, 0.7)},
}


def build(**arguments: object) -> PointBERT:
    """A small model in float64, its weights by the rule that the official numbers were computed with."""
    model = filled_by_rule(PointBERT(**{**SMALL, **arguments}).double())
    model.queue.copy_(F.normalize(model.queue, dim=0))
    return model


class Official:
    """The official step on the weights of a model: channels first, concatenated, one sample after the other.

    It draws in our order: mask, mixture, mask of the mixture, mask of the keys.
    """

    def __init__(self, model: PointBERT, generator: torch.Generator | None) -> None:
        self.model, self.draws, self.training = model, generator, model.training
        self.state = snapshot(model)
        self.leaves = {n: self.state[n].requires_grad_() for n, p in model.named_parameters() if p.requires_grad}

    def loss(self, points: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        groups, centers = ops.group(points, 8, 4)
        with torch.no_grad():
            words = self.model.dvae.encode(groups, centers).argmax(-1)
        mask = self.mask(centers) if mask is None else mask
        query, scores = self.transformer("transformer_q", groups, centers, mask)
        share = torch.rand(len(points), generator=self.draws)
        keep = (torch.rand(len(points), 8, generator=self.draws) < share[:, None]).double()
        mixed_groups = groups * keep[..., None, None] + groups.flip(0) * (1 - keep[..., None, None])
        mixed_centers = centers * keep[..., None] + centers.flip(0) * (1 - keep[..., None])
        mixed_words = (words * keep + words.flip(0) * (1 - keep)).long()
        mixed_mask = self.mask(mixed_centers)
        mixed, mixed_scores = self.transformer("transformer_q", mixed_groups, mixed_centers, mixed_mask)
        with torch.no_grad():
            keys = F.normalize(self.transformer("transformer_k", groups, centers, self.mask(centers))[0], dim=1)
        query, mixed, queue = F.normalize(query, dim=1), F.normalize(mixed, dim=1), self.state["queue"]
        tokens = F.cross_entropy(scores[mask], words[mask])
        tokens = tokens + F.cross_entropy(mixed_scores[mixed_mask], mixed_words[mixed_mask])
        near = torch.cat([torch.einsum("nc,nc->n", query, keys)[:, None], query @ queue], dim=1) / 0.07
        logits = torch.cat([torch.einsum("nc,mc->nm", mixed, keys), mixed @ queue], dim=1) / 0.07
        target = torch.arange(len(points))
        one, two = (F.cross_entropy(logits, t, reduction="none") for t in (target, target.flip(0)))
        accuracy = (scores[mask].argmax(-1) == words[mask]).double().mean()
        return {
            "token_loss": tokens,
            "cutmix_loss": (share * one + (1 - share) * two).mean(),
            "moco_loss": F.cross_entropy(near, torch.zeros_like(target)),
            **{"token_accuracy": accuracy, "logits": scores[mask], "mask": mask, "keys": keys},
        }

    def mask(self, centers: Tensor) -> Tensor:
        ratios = 0.3 + 0.4 * torch.rand(len(centers), generator=self.draws)
        seeds = torch.randint(8, (len(centers), 1, 1), generator=self.draws).flatten()
        mask = torch.zeros(len(centers), 8, dtype=torch.bool)
        for i, (cloud, seed, ratio) in enumerate(zip(centers, seeds, ratios, strict=True)):
            mask[i, (cloud[seed] - cloud).norm(dim=-1).argsort()[: int(ratio * 8)]] = True
        return mask

    def transformer(self, half: str, groups: Tensor, centers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        w = {name.removeprefix(f"{half}."): v for name, v in self.state.items() if name.startswith(half)}

        def linear(name: str, x: Tensor) -> Tensor:
            return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

        def norm(name: str, x: Tensor) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

        def convolutions(name: str, x: Tensor) -> Tensor:
            x = F.conv1d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"])
            running = w[f"{name}.1.running_mean"], w[f"{name}.1.running_var"]
            x = F.batch_norm(x, *running, w[f"{name}.1.weight"], w[f"{name}.1.bias"], training=self.training)
            return F.conv1d(x.relu(), w[f"{name}.3.weight"], w[f"{name}.3.bias"])

        local = convolutions("encoder.first_conv", groups.flatten(0, 1).transpose(1, 2))
        both = torch.cat([local.max(dim=2, keepdim=True).values.expand_as(local), local], dim=1)
        tokens = convolutions("encoder.second_conv", both).max(dim=2).values.unflatten(0, groups.shape[:2])
        hidden = mask[..., None].double()
        tokens = linear("reduce_dim", tokens) * (1 - hidden) + w["mask_token"].expand(len(mask), 8, -1) * hidden
        x = torch.cat([w["cls_token"].expand(len(mask), -1, -1), tokens], dim=1)
        embedded = linear("pos_embed.2", F.gelu(linear("pos_embed.0", centers)))
        position = torch.cat([w["cls_pos"].expand(len(mask), -1, -1), embedded], dim=1)
        for i in range(2):
            block = f"blocks.blocks.{i}"
            x = x + position
            qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).unflatten(2, (3, 3, -1))
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            attention = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(dim=-1)
            x = x + linear(f"{block}.attn.proj", (attention @ value).transpose(1, 2).flatten(2))
            x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
        x = norm("norm", x)
        return linear("cls_head.2", F.gelu(linear("cls_head.0", x[:, 0]))), linear("lm_head", x[:, 1:])
