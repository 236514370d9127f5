"""Point-BERT's classifier is the official one: its outputs and gradients, written here as published."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import filled_by_rule
from torch import Tensor

from pc_ewa import ops
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import expert_layers, merge_experts, upcycle
from pc_ewa.models.point_bert_classifier import PointBERTClassifier
from pc_ewa.validation import check_arguments

Clouds = Callable[..., Tensor]
SMALL: dict[str, Any] = {
    **{"num_classes": 5, "dim": 12, "depth": 3, "num_heads": 3, "num_groups": 8, "group_size": 4},
    **{"encoder_dim": 10, "encoder_width": 8, "drop_path": 0.0, "head_dropout": 0.0},
}


def build(**arguments: object) -> PointBERTClassifier:
    """A small classifier in float64, its weights by the rule that the official numbers were computed with."""
    return filled_by_rule(PointBERTClassifier(**{**SMALL, **arguments}).double())


def official(w: dict[str, Tensor], points: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """The input of the head and the logits, as the official code computes them: channels first, all concatenated."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def convolutions(name: str, x: Tensor) -> Tensor:
        x = F.conv1d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"])
        affine = w[f"{name}.1.weight"], w[f"{name}.1.bias"]
        running = w[f"{name}.1.running_mean"].clone(), w[f"{name}.1.running_var"].clone()
        return F.conv1d(
            F.batch_norm(x, *running, *affine, training=training).relu(), w[f"{name}.3.weight"], w[f"{name}.3.bias"]
        )

    groups, centers = ops.group(points, SMALL["num_groups"], SMALL["group_size"])
    local = convolutions("encoder.first_conv", groups.flatten(0, 1).transpose(1, 2))
    both = torch.cat([local.max(dim=2, keepdim=True).values.expand_as(local), local], dim=1)
    tokens = convolutions("encoder.second_conv", both).max(dim=2).values.unflatten(0, groups.shape[:2])
    batch, heads = len(points), SMALL["num_heads"]
    x = torch.cat([w["cls_token"].expand(batch, -1, -1), linear("reduce_dim", tokens)], dim=1)
    embedded = linear("pos_embed.2", F.gelu(linear("pos_embed.0", centers)))
    position = torch.cat([w["cls_pos"].expand(batch, -1, -1), embedded], dim=1)
    for i in range(SMALL["depth"]):
        block = f"blocks.blocks.{i}"
        x = x + position
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).unflatten(2, (3, heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(dim=-1)
        x = x + linear(f"{block}.attn.proj", (attention @ value).transpose(1, 2).flatten(2))
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
    x = norm("norm", x)
    features = torch.cat([x[:, 0], x[:, 1:].max(dim=1).values], dim=-1)
    return features, linear("cls_head_finetune.3", linear("cls_head_finetune.0", features).relu())


@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_official_one_forward_and_backward(training: bool, clouds: Clouds) -> None:
    model, points, labels = build().train(training), clouds(3, 3, 40).double(), torch.tensor([0, 4, 2])
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    leaves = {name: weights[name].requires_grad_() for name, _ in model.named_parameters()}
    features, expected = official(weights, points, training)
    logits = model(points)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.features(points), features, rtol=0, atol=1e-10)
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, leaves[name].grad, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert parameter.grad is not None
        assert parameter.grad.any(), f"{name} is not trained"


def test_from_scratch_layers_start_as_torch_makes_them() -> None:
    torch.manual_seed(0)
    model = PointBERTClassifier(depth=1)
    assert not model.cls_token.any()
    assert model.cls_pos.std().item() == pytest.approx(1, abs=0.15)
    bound = 256**-0.5
    assert model.reduce_dim.weight.abs().max().item() == pytest.approx(bound, rel=1e-3), "uniform, not cut at 0.04"
    assert model.reduce_dim.bias.any()


def test_it_holds_mixtures_in_its_blocks_and_merges_them(clouds: Clouds) -> None:
    model, points = build(), clouds(0, 2, 40).double()
    keys, before = list(model.state_dict()), model.eval()(points)
    upcycle(model, 3, "all")
    assert list(expert_layers(model)) == [f"blocks.blocks.{i}.mlp" for i in range(3)]
    torch.testing.assert_close(model(points), before, rtol=0, atol=1e-12)
    model.train()(points).sum().backward()
    model.zero_grad()
    assert list(merge_experts(model).state_dict()) == keys


def test_evaluation_is_deterministic_and_bf16_close(clouds: Clouds) -> None:
    torch.manual_seed(0)
    model, points = PointBERTClassifier(**SMALL).eval(), clouds(0, 2, 32)
    logits = model(points)
    assert torch.equal(model(points), logits)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(points).float(), logits, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder_dim": 0}, r"encoder_dim=0"),
        ({"encoder_dim": None}, r"encoder_dim=None.*integer"),
        ({"num_heads": 5}, r"num_heads=5 .*dim=384"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio=0\.0 .*dim=384"),
        ({"head_dropout": 1.0}, r"head_dropout=1\.0"),
    ],
    ids=str,
)
def test_impossible_models_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PointBERTClassifier(**check_arguments("classifier", PointBERTClassifier, arguments))
