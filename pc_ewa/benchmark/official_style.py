"""Point-MAE's classifier with the arithmetic of its official code, for comparison in `pc-ewa benchmark model`.

It is our own text, in eager PyTorch: channels first, global and local features concatenated, attention by two matrix
products and a softmax. Its keys are those of official checkpoints, as ours are. One state_dict therefore serves both
models, and both return the same logits.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.models.transformer import DropPath, drop_path_rates


class OfficialEncoder(nn.Module):
    """The patch encoder: convolutions of kernel 1, channels first."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        wide = 4 * width
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Conv1d(width, 2 * width, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(wide, wide, 1), nn.BatchNorm1d(wide), nn.ReLU(inplace=True), nn.Conv1d(wide, dim, 1)
        )

    def forward(self, groups: Tensor) -> Tensor:
        """Encode groups (B, G, K, 3) as tokens (B, G, C)."""
        batch, count, size, _ = groups.shape
        local = self.first_conv(groups.reshape(batch * count, size, 3).transpose(2, 1))
        # The official code expands the maximum and concatenates it: twice the channels for every point. Ours does not.
        whole = torch.max(local, dim=2, keepdim=True)[0]
        both = torch.cat([whole.expand(-1, -1, size), local], dim=1)
        return torch.max(self.second_conv(both), dim=2)[0].reshape(batch, count, -1)


class OfficialAttention(nn.Module):
    """Self-attention by two matrix products and a softmax, which stores the (T, T) weights."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C)."""
        batch, count, dim = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        attention = ((query @ key.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attention @ value).transpose(1, 2).reshape(batch, count, dim))


class OfficialMlp(nn.Module):
    """The FFN."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C)."""
        return self.fc2(self.act(self.fc1(x)))


class OfficialBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.drop_path = DropPath(drop_path)
        self.mlp, self.attn = OfficialMlp(dim, hidden), OfficialAttention(dim, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class OfficialTrunk(nn.Module):
    """The transformer blocks. The position embedding is added before each block."""

    def __init__(self, dim: int, depth: int, num_heads: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(OfficialBlock(dim, num_heads, hidden, rate) for rate in rates)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map tokens and positions (B, T, C)."""
        for block in self.blocks:
            x = block(x + position)
        return x


class OfficialClassifier(nn.Module):
    """The classifier of clouds. Grouping is by our ops, since the official ones need CUDA.

    Args:
        num_classes: number of outputs.
        arguments: all arguments of `PointMAEClassifier`, as a resolved config has them.
    """

    def __init__(self, num_classes: int, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        dim, dropout = arguments["dim"], arguments["head_dropout"]
        self.num_groups, self.group_size = arguments["num_groups"], arguments["group_size"]
        self.cls_token, self.cls_pos = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder = OfficialEncoder(dim, arguments["encoder_width"])
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))
        hidden = int(dim * arguments["mlp_ratio"])
        self.blocks = OfficialTrunk(dim, arguments["depth"], arguments["num_heads"], hidden, arguments["drop_path"])
        self.norm = nn.LayerNorm(dim)
        self.cls_head_finetune = nn.Sequential(
            *(nn.Linear(2 * dim, 256), nn.BatchNorm1d(256), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            *(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            nn.Linear(256, num_classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        """Map clouds (B, N, 3) to logits."""
        groups, centers = ops.group(points, self.num_groups, self.group_size)
        tokens, position = self.encoder(groups), self.pos_embed(centers)
        batch = len(points)
        x = torch.cat((self.cls_token.expand(batch, -1, -1), tokens), dim=1)
        x = self.norm(self.blocks(x, torch.cat((self.cls_pos.expand(batch, -1, -1), position), dim=1)))
        return self.cls_head_finetune(torch.cat([x[:, 0], x[:, 1:].max(1)[0]], dim=-1))
