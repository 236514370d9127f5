"""Real models of timm and torchvision, where they are installed: CONTRIBUTING says how."""

from typing import Any

import pytest
import torch
from torch import nn

from pc_ewa.ewa import expert_layers, merge_experts, upcycle

timm = pytest.importorskip("timm")

# Options that make it small, how many FFNs become experts, whether they take the batched product.
FOUND: dict[str, tuple[dict[str, Any], int, bool]] = {
    "vit_tiny_patch16_224": ({"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}, 2, True),
    "eva02_tiny_patch14_224": ({"img_size": 28, "embed_dim": 24, "depth": 2, "num_heads": 2}, 2, True),
    "vit_giant_patch14_dinov2": ({"img_size": 28, "embed_dim": 24, "depth": 2, "num_heads": 2}, 2, True),
    "vit_small_plus_patch16_dinov3": ({"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}, 2, True),
    "swin_tiny_patch4_window7_224": ({"img_size": 32, "embed_dim": 12, "window_size": 2}, 12, True),
    "tiny_vit_5m_224": ({"embed_dims": (16, 16, 32, 32), "num_heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1)}, 3, False),
    "caformer_s18": ({}, 18, False),
    "convnext_atto": ({"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}, 4, False),
    "poolformer_s12": ({}, 12, False),
    "gmixer_12_224": ({"img_size": 32}, 12, True),
}
REFUSED = {
    "pvt_v2_b0": "3x3 depthwise convolution",
    "convnextv2_atto": "depends on other tokens",
    "levit_128s": "BatchNorm1d, whose running statistics",
}


@pytest.mark.parametrize("name", FOUND)
def test_real_timm_there_and_back(name: str) -> None:
    options, count, batched = FOUND[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **options).eval()
    size = options.get("img_size", 64)
    x = torch.randn(2, 3, size, size)
    check(model, x, count, batched)


def check(model: nn.Module, x: torch.Tensor, count: int, batched: bool) -> None:
    keys, expected = {key: value.clone() for key, value in model.state_dict().items()}, model(x)
    layers = expert_layers(upcycle(model, 3, "all"))
    assert len(layers) == count
    assert {layer.batched for layer in layers.values()} == {batched}
    assert torch.equal(model(x), expected)
    for layer in layers.values():
        layer.train()
    model(x).square().sum().backward()
    assert all(p.grad is not None for layer in layers.values() for p in layer.parameters())
    merge_experts(model)
    assert list(model.state_dict()) == list(keys)
    assert all(torch.equal(value, keys[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", REFUSED)
def test_real_timm_that_cannot_be_dealt_says_why(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        upcycle(timm.create_model(name, num_classes=5), 2, "all")


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "maxvit_t"])
def test_real_torchvision_there_and_back(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    if name == "vit_b_16":
        model = models.VisionTransformer(32, 16, 2, 2, 24, 48)
        x, count, batched = torch.randn(2, 3, 32, 32), 2, True
    elif name == "swin_t":
        model = models.SwinTransformer([4, 4], 12, [1, 1], [2, 2], [2, 2])
        x, count, batched = torch.randn(2, 3, 32, 32), 2, True
    else:
        model = models.MaxVit((32, 32), 8, 2, [8, 8], [1, 1], 4, 0.0)
        x, count, batched = torch.randn(2, 3, 32, 32), 4, False
    check(model.eval(), x, count, batched)
