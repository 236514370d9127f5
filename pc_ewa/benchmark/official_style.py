"""Point-MAE's classifier written as its official code is: what `pc-ewa benchmark model` compares ours with.

The arithmetic of the official repository in eager PyTorch, in our own words: channels first, global and local features
concatenated, attention by two products and a softmax. Its keys are those of the official checkpoints, as ours are, so
that one state_dict serves both, and both give the same logits.
"""

import torch
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.models.transformer import DropPath, drop_path_rates


class OfficialEncoder(nn.Module):
    """Encode patches by convolutions of kernel 1 on channels first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, 128, 1), nn.BatchNorm1d(128), nn.ReLU(inplace=True), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Conv1d(512, dim, 1)
        )

    def forward(self, groups: Tensor) -> Tensor:
        """Encode groups (B, G, K, 3) as tokens (B, G, C)."""
        batch, count, size, _ = groups.shape
        local = self.first_conv(groups.reshape(batch * count, size, 3).transpose(2, 1))
        whole = torch.max(local, dim=2, keepdim=True)[0]
        both = torch.cat([whole.expand(-1, -1, size), local], dim=1)
        return torch.max(self.second_conv(both), dim=2)[0].reshape(batch, count, -1)


class OfficialAttention(nn.Module):
    """Attend by two products and a softmax."""

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

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C)."""
        return self.fc2(self.act(self.fc1(x)))


class OfficialBlock(nn.Module):
    """A pre-norm block."""

    def __init__(self, dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.drop_path = DropPath(drop_path)
        self.mlp, self.attn = OfficialMlp(dim), OfficialAttention(dim, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class OfficialTrunk(nn.Module):
    """The blocks, the position added before each."""

    def __init__(self, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(OfficialBlock(dim, num_heads, rate) for rate in drop_path_rates(0.1, depth))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map tokens and positions (B, T, C)."""
        for block in self.blocks:
            x = block(x + position)
        return x


class OfficialClassifier(nn.Module):
    """Classify clouds; grouping is by our ops, since the official ones need CUDA.

    Example:
        >>> official = OfficialClassifier(40)
        >>> _ = official.load_state_dict(pc_ewa.create_model("point_mae_classifier", num_classes=40).state_dict())
    """

    def __init__(self, num_classes: int, dim: int = 384, depth: int = 12, num_heads: int = 6) -> None:
        super().__init__()
        self.cls_token, self.cls_pos = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder = OfficialEncoder(dim)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))
        self.blocks = OfficialTrunk(dim, depth, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.cls_head_finetune = nn.Sequential(
            *(nn.Linear(2 * dim, 256), nn.BatchNorm1d(256), nn.ReLU(inplace=True), nn.Dropout(0.5)),
            *(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(inplace=True), nn.Dropout(0.5)),
            nn.Linear(256, num_classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        """Map clouds (B, N, 3) to logits."""
        groups, centers = ops.group(points, 64, 32)
        tokens, position = self.encoder(groups), self.pos_embed(centers)
        batch = len(points)
        x = torch.cat((self.cls_token.expand(batch, -1, -1), tokens), dim=1)
        x = self.norm(self.blocks(x, torch.cat((self.cls_pos.expand(batch, -1, -1), position), dim=1)))
        return self.cls_head_finetune(torch.cat([x[:, 0], x[:, 1:].max(1)[0]], dim=-1))
