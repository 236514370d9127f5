"""Every kind of FFN that can become experts, by stand-ins of the classes of others."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.ewa import expert_layers, upcycle

Build = Callable[[], nn.Module]
C, H = 8, 12


class Packed(nn.Module):
    """timm's GluMlp, ModernBERT, DINOv2's SwiGLUFFN: one layer makes value and gate."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(C, 2 * H), nn.SiLU(), nn.Linear(H, C)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(self.act(gate) * value)


class Llama(nn.Module):
    """LlamaMLP, AIMv2: no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(C, H, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(H, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Swiglu(nn.Module):
    """EVA-02: gated, with a norm inside, and the last layer in the middle of the list."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3, self.norm = nn.Linear(C, H), nn.Linear(H, C), nn.Linear(C, H), nn.LayerNorm(H)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.norm(F.silu(self.w1(x)) * self.w3(x)))


class StarRelu(nn.Module):
    """MetaFormer: an activation with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.full((1,), 0.9)), nn.Parameter(torch.full((1,), -0.4))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.relu() ** 2 + self.bias


class Scaled(nn.Module):
    """A norm first, as in TinyViT, an RMSNorm, and a layer scale that the FFN holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.act, self.rms = nn.LayerNorm(C), nn.Linear(C, H), StarRelu(), nn.RMSNorm(H)
        self.fc2, self.gamma = nn.Linear(H, C), nn.Parameter(torch.linspace(0.1, 1, C))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.fc2(self.rms(self.act(self.fc1(self.norm(x)))))


class ChannelNorm(nn.LayerNorm):
    """timm's LayerNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvMlp(nn.Module):
    """timm's ConvMlp, PoolFormer: 1x1 convolutions on maps (B, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Conv2d(C, H, 1), ChannelNorm(H), nn.Conv2d(H, C, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.norm(self.fc1(x))))


class PointMlp(nn.Sequential):
    """The shared MLP of point networks, on (B, C, N)."""

    def __init__(self) -> None:
        super().__init__(nn.Conv1d(C, H, 1), nn.GELU(), nn.Conv1d(H, C, 1))


class Flattens(nn.Sequential):
    """Reshapes to a matrix, as OPT does: a forward that takes no groups."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(C, H), nn.GELU(), nn.Linear(H, C))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, C)).view_as(x)


class Buffered(nn.Sequential):
    """Holds a constant that is no parameter."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(C, H), nn.GELU(), nn.Linear(H, C))
        self.register_buffer("offset", torch.full((C,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.offset


class NormedLayers(nn.Sequential):
    """A norm around each layer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(C, H), nn.LayerNorm(H)), nn.GELU(), nn.Sequential(nn.Linear(H, C), nn.LayerNorm(C))
        )


def gpt2() -> nn.Module:
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Config

    return GPT2MLP(H, GPT2Config(n_embd=C, resid_pdrop=0.0))


def weight_norm() -> nn.Module:
    """One parameter computed from others."""
    ffn = Flattens()
    nn.utils.parametrizations.weight_norm(ffn[0])
    return ffn


class Residual(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)


# The FFN, and the shape of what it maps: tokens last, or channels first.
KINDS: dict[str, tuple[Build, tuple[int, ...]]] = {
    "packed": (Packed, (2, 7, C)),
    "llama": (Llama, (2, 7, C)),
    "swiglu": (Swiglu, (2, 7, C)),
    "scaled": (Scaled, (2, 7, C)),
    "on maps of tokens": (Scaled, (2, 3, 3, C)),
    "conv1d of gpt2": (gpt2, (2, 7, C)),
    "convolutions": (ConvMlp, (2, C, 3, 5)),
    "point convolutions": (PointMlp, (2, C, 7)),
    "flattens": (Flattens, (2, 7, C)),
    "buffer": (Buffered, (2, 7, C)),
    "norm per layer": (NormedLayers, (2, 7, C)),
    "weight norm": (weight_norm, (2, 7, C)),
}


def build(kind: str, depth: int = 2) -> tuple[nn.Module, Tensor]:
    """Return blocks with FFNs of a kind, and input for them."""
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    model = nn.Sequential(*(Residual(make()) for _ in range(depth))).double()
    return model, torch.randn(shape).double()


def upcycled(kind: str, num_experts: int = 3, **options: object) -> tuple[nn.Module, Tensor]:
    model, x = build(kind)
    return upcycle(model, num_experts, "all", ffn="*.mlp", **options), x  # type: ignore[arg-type]


def spread_out(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for layer in expert_layers(model).values():
            for stack in layer.parameters():
                stack += 0.1 * torch.randn_like(stack)
    return model
