"""The ViT trunk of Point-BERT and Point-MAE: pre-norm blocks. The position embedding is added before each block."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pc_ewa.errors import ConfigError


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drop a sample's residual branch with probability `rate` in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples of (B, ...), and scale the others by 1 / (1 - rate), so that the expectation does not change."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        # One draw per sample, (B, 1, ...), in the dtype of x: a float32 mask would promote half precision.
        return x * (x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep) / keep)


class Mlp(nn.Module):
    """The FFN: Linear, GELU, Linear, on tokens (..., C)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map each token independently."""
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention on tokens (B, T, C); query, key and value have no bias."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Let every token attend to all tokens of its sample."""
        query, key, value = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.num_heads)
        x = F.scaled_dot_product_attention(query, key, value)
        return self.proj(rearrange(x, "b h t d -> b t (h d)"))


class Block(nn.Module):
    """A pre-norm transformer block. Its two residual branches have the same drop-path rate and separate draws."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        # The official order of registration. It decides the order of the keys, and which random numbers a layer gets.
        self.norm1 = nn.LayerNorm(dim)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.attn = Attention(dim, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class TransformerEncoder(nn.Module):
    """Transformer blocks that each map `x + position`, as in the official code.

    The residual stream therefore gains the position embedding once per block, not once in all.

    Args:
        dim: width of the tokens.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the FFNs, in units of `dim`.
        drop_path: stochastic depth of the last block; the rate grows linearly from 0 at the first.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, rate) for rate in rates)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Map tokens and their positions, both (B, T, C), to tokens."""
        return self.states(x, position)[-1]

    def states(self, x: Tensor, position: Tensor) -> list[Tensor]:
        """Return the tokens after each block, as a list."""
        states = []
        for block in self.blocks:
            x = block(x + position)
            states.append(x)
        return states


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Return drop-path rates that grow linearly from 0 at the first of `depth` blocks to `last`."""
    return torch.linspace(0, last, depth, device="cpu").tolist()  # on the CPU: a tensor on "meta" has no values


def trunc_normal_init(module: nn.Module) -> None:
    """Initialise a linear layer as in the official pre-training: truncated normal weights of std 0.02, zero bias."""
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_sizes(*, dim: int, num_heads: int, mlp_ratio: float = 1.0, **others: int) -> None:
    """Check the sizes of a network with a trunk before it is built.

    Raises:
        ConfigError: a size below 1, `num_heads` that does not divide `dim`, or FFNs without a hidden unit.
    """
    check_positive(dim=dim, num_heads=num_heads, **others)
    if dim % num_heads:
        fitting = ", ".join(str(n) for n in range(1, 2 * num_heads) if dim % n == 0)
        raise ConfigError(f"num_heads={num_heads} does not divide dim={dim}; choose one of {fitting}")
    if int(dim * mlp_ratio) < 1:
        raise ConfigError(f"mlp_ratio={mlp_ratio} with dim={dim} gives the FFN no hidden unit; make it larger")


def check_positive(**sizes: int) -> None:
    """Raise ConfigError unless every size is at least 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name}={value}; it must be at least 1")


def check_rates(**rates: float) -> None:
    """Raise ConfigError unless every rate is at least 0 and below 1."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ConfigError(f"{name}={rate}; it must be at least 0 and below 1")
