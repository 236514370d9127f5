"""Every kind of host that upcycle finds FFNs in; classes of timm and torchvision by stand-ins of the same shape."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from ffn_kinds import KINDS, C, H
from ffn_kinds import build as build_kind
from torch import Tensor, nn

from pc_ewa.models.transformer import Block

Run = Callable[[nn.Module], Tensor]


class TimmMlp(nn.Module):
    """timm.layers.Mlp."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.norm = nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))


class TorchvisionMLPBlock(nn.Sequential):
    """torchvision.models.vision_transformer.MLPBlock."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(drop, inplace=False), nn.Linear(hidden, dim), nn.Dropout(drop)
        )


class FFNBlock(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), mlp

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class OlderIntermediate(nn.Module):
    """ViTIntermediate of older transformers, with the activation held as a plain function."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 16)
        self.intermediate_act_fn = F.gelu

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(hidden_states))


class OlderOutput(nn.Module):
    """ViTOutput of older transformers: adds the residual itself."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.dense = nn.Linear(16, 8)
        self.dropout = nn.Dropout(drop)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.dropout(self.dense(hidden_states)) + input_tensor


class OlderLayer(nn.Module):
    """The second half of ViTLayer of older transformers."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.intermediate = OlderIntermediate()
        self.output = OlderOutput(drop)
        self.layernorm_after = nn.LayerNorm(8)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.output(self.intermediate(self.layernorm_after(hidden_states)), hidden_states)


def build_vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=12, patch_size=4
    )
    return ViTModel(config)


HOSTS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "ours": (
        lambda: nn.Sequential(*(Block(8, 2, 2.0, 0.0) for _ in range(3))),
        ["0.mlp", "1.mlp", "2.mlp"],
    ),
    "timm": (
        lambda: nn.Sequential(*(FFNBlock(TimmMlp(8, 16, 0.0)) for _ in range(3))),
        ["0.mlp", "1.mlp", "2.mlp"],
    ),
    "torchvision": (
        lambda: nn.Sequential(*(FFNBlock(TorchvisionMLPBlock(8, 16, 0.0)) for _ in range(3))),
        ["0.mlp", "1.mlp", "2.mlp"],
    ),
    "transformers": (build_vit, ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]),
    "older transformers": (
        lambda: nn.Sequential(*(OlderLayer(0.0) for _ in range(3))),
        ["0.intermediate", "1.intermediate", "2.intermediate"],
    ),
}


def run(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if type(model).__name__ == "ViTModel":
        return model(torch.randn(2, 3, 12, 12, generator=generator).double()).last_hidden_state
    return model(torch.randn(2, 5, 8, generator=generator).double())


def build_encoder(activation: Any = "gelu", dropout: float = 0.0, **arguments: Any) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, activation, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says which layers get no nested tensors
        encoder = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(8)).double()
    for parameter in encoder.parameters():  # the layers start as copies of one; the norms as the identity
        nn.init.normal_(parameter, std=0.5)
    return encoder


def bart(**rates: float) -> nn.Module:
    from transformers.models.bart.modeling_bart import BartConfig, BartEncoderLayer

    return BartEncoderLayer(BartConfig(d_model=C, encoder_attention_heads=2, encoder_ffn_dim=H, dropout=0.0, **rates))


def opt() -> nn.Module:
    from transformers.models.opt.modeling_opt import OPTConfig, OPTDecoderLayer

    return OPTDecoderLayer(OPTConfig(hidden_size=C, num_attention_heads=2, ffn_dim=H, dropout=0.0), layer_idx=0)


def albert() -> nn.Module:
    from transformers.models.albert.modeling_albert import AlbertConfig, AlbertLayer

    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return AlbertLayer(AlbertConfig(hidden_size=C, num_attention_heads=2, intermediate_size=H, **rates))


def convnext() -> nn.Module:
    from transformers.models.convnext.modeling_convnext import ConvNextConfig, ConvNextLayer

    return ConvNextLayer(ConvNextConfig(), C)


SIDE_BY_SIDE = {
    "bart": (bart, "fc1"),
    "opt": (opt, "fc1"),
    "albert": (albert, "ffn"),
    "convnext": (convnext, "pwconv1"),
}


def run_beside(x: Tensor, model: nn.Module) -> Tensor:
    """The output of a layer of others, which may return more, or want a mask."""
    layer = model["layer"]
    output = layer(x, *((None,) if "Bart" in type(layer).__name__ else ()))
    return output if isinstance(output, Tensor) else output[0]


def build_beside(host: str) -> tuple[nn.Module, Run]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": SIDE_BY_SIDE[host][0]()}).double()
    x = torch.randn(2, C, 4, 4) if host == "convnext" else torch.randn(2, 5, C)
    return model, partial(run_beside, x.double())


def build_host(host: str) -> tuple[nn.Module, Run]:
    torch.manual_seed(0)
    return HOSTS[host][0]().double(), run


def build_of_kind(kind: str) -> tuple[nn.Module, Run]:
    model, x = build_kind(kind)
    return model, lambda model: model(x)


# One table over all kinds: each builds a model and what runs it.
EVERY_HOST: dict[str, Callable[[], tuple[nn.Module, Run]]] = {
    **{host: partial(build_host, host) for host in HOSTS},
    "torch encoder": lambda: (build_encoder(batch_first=True), run),
    "torch decoder layer": lambda: (
        nn.TransformerDecoderLayer(C, 2, H, 0.0, batch_first=True).double(),
        lambda model: model(torch.ones(2, 5, C).double(), torch.ones(2, 3, C).double()),
    ),
    **{host: partial(build_beside, host) for host in SIDE_BY_SIDE},
    **{f"FFN: {kind}": partial(build_of_kind, kind) for kind in KINDS},
}
