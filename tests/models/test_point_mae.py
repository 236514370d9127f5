"""Point-MAE is the official one: initialisation, loss and gradients; and it learns from masked patches."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from official_keys import TINY
from small_models import small
from torch import Tensor, nn

from pc_ewa import ops
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import expert_layers, merge_experts, upcycle
from pc_ewa.models import create_model
from pc_ewa.models.patches import PatchEncoder
from pc_ewa.models.point_mae import PointMAE

Clouds = Callable[..., Tensor]


def small_mae(seed: int = 0, **kwargs: object) -> PointMAE:
    return small("point_mae", seed, **{"depth": 2, **kwargs})  # type: ignore[return-value]


def official_mask(samples: int, groups: int, hidden: int) -> Tensor:
    mask = torch.zeros(samples, groups, dtype=torch.bool)
    for sample in range(samples):
        mask[sample, np.random.RandomState(100 + sample).permutation(groups)[:hidden]] = True
    return mask


@pytest.mark.parametrize(("loss", "expected"), [("cdl2", 3.000691), ("cdl1", 1.027956)])
def test_official_weights_give_the_official_loss(
    loss: str, expected: float, clouds: Clouds, official_weights: Callable[..., dict]
) -> None:
    model = create_model("point_mae", **TINY["point_mae_tiny"], loss=loss).eval()
    model.load_state_dict(official_weights(model), strict=True)
    points, mask = clouds(3, 3, 128), official_mask(3, 16, 9)
    for network in (model, upcycle(model, 3, "all"), merge_experts(model)):
        with torch.no_grad():
            assert network(points, mask).loss.item() == pytest.approx(expected, rel=1e-6)


def plain_loss(model: PointMAE, points: Tensor, mask: Tensor) -> Tensor:
    """The official forward, sample by sample and with the official concatenations."""
    groups, centers = ops.group(points, model.num_groups, model.group_size)
    tokens = model.MAE_encoder.encoder(groups)
    distances = []
    for b in range(len(points)):
        visible, hidden = (~mask[b]).nonzero().flatten(), mask[b].nonzero().flatten()
        x = tokens[b, visible][None]
        for block in model.MAE_encoder.blocks.blocks:
            x = block(x + model.MAE_encoder.pos_embed(centers[b, visible]))
        x = torch.cat([model.MAE_encoder.norm(x), model.mask_token.expand(1, len(hidden), -1)], dim=1)
        position = model.decoder_pos_embed(centers[b, torch.cat([visible, hidden])])
        for block in model.MAE_decoder.blocks:
            x = block(x + position)
        x = model.MAE_decoder.norm(x[:, len(visible) :])
        flat = F.conv1d(x.transpose(1, 2), model.increase_dim[0].weight, model.increase_dim[0].bias)
        predicted = flat.transpose(1, 2).reshape(len(hidden), -1, 3)
        between = (predicted[:, :, None] - groups[b, hidden][:, None]).square().sum(-1)
        distances.append(between.amin(2).mean(1) + between.amin(1).mean(1))
    return torch.cat(distances).mean()


def test_loss_is_the_plain_formula_forward_and_backward(clouds: Clouds) -> None:
    model = small_mae(drop_path=0.0).double()
    points, mask = clouds(0, 3, 32).double(), official_mask(3, 8, 4)
    results = []
    for loss in (lambda: model(points, mask).loss, lambda: plain_loss(model, points, mask)):
        model.load_state_dict(small_mae(drop_path=0.0).double().state_dict())
        value = loss()
        results.append([value, *torch.autograd.grad(value, list(model.parameters()))])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


def test_initialisation_is_official() -> None:
    torch.manual_seed(0)
    model = create_model("point_mae", dim=96, depth=2, num_heads=3, decoder_depth=1)
    for module in model.MAE_encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv1d) and module.weight.numel() > 1000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.bias is None or not module.bias.any()
    fc1 = model.MAE_decoder.blocks[0].mlp.fc1
    assert fc1.weight.abs().max().item() == pytest.approx((6 / (96 + 384)) ** 0.5, rel=0.01)
    assert model.increase_dim[0].bias.any(), "the prediction head keeps PyTorch's own initialisation"


def test_what_is_hidden_has_no_say_in_what_is_predicted(clouds: Clouds) -> None:
    """But by the statistics of the patch encoder, which sees all patches: with these frozen, not at all."""
    model, points = small_mae().double().eval(), clouds(0, 2, 64).double()
    groups, centers = ops.group(points, 8, 4)
    mask = official_mask(2, 8, 4)
    changed = torch.where(mask[:, :, None, None], torch.randn_like(groups), groups)
    first, second = (model._predict(g, centers, mask) for g in (groups, changed))
    assert torch.equal(first, second)
    moved = torch.where(mask[:, :, None], centers, centers + 0.1)
    assert not torch.equal(first, model._predict(groups, moved, mask))


def test_parts_are_the_hidden_patches_and_a_prediction_of_each(clouds: Clouds) -> None:
    model, points = small_mae().eval(), clouds(0, 2, 64)
    output = model(points)
    loss, parts = output.loss, output.terms | output.outputs
    groups, centers = ops.group(points, 8, 4)
    assert torch.equal(parts["centers"], centers)
    assert parts["mask"].sum(1).tolist() == [4, 4]
    assert torch.equal(parts["target"], groups[parts["mask"]].unflatten(0, (2, 4)))
    assert parts["predicted"].shape == parts["target"].shape == (2, 4, 4, 3)
    expected = ops.chamfer_distance(parts["predicted"].flatten(0, 1), parts["target"].flatten(0, 1), "l2")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_masks_are_drawn_anew_in_training_and_fixed_in_evaluation(clouds: Clouds) -> None:
    model, points = small_mae(), clouds(0, 4, 64)
    masks = [model(points).outputs["mask"] for _ in range(2)]
    assert not torch.equal(*masks)
    model.eval()
    masks = [model(points).outputs["mask"] for _ in range(2)]
    assert torch.equal(*masks)
    assert len(masks[0].unique(dim=0)) > 1, "each sample has its own"


def test_block_masks_hide_neighbours(clouds: Clouds) -> None:
    output = small_mae(mask_type="block", mask_ratio=0.5).eval()(clouds(0, 3, 64))
    parts = output.terms | output.outputs
    for centers, hidden in zip(parts["centers"], parts["mask"], strict=True):
        nearest = (centers[:, None] - centers[None]).norm(dim=-1).argsort(dim=1)[:, :4]
        assert any(set(row) == set(hidden.nonzero().flatten().tolist()) for row in nearest.tolist())


def test_experts_go_to_the_encoder_only() -> None:
    names = list(expert_layers(upcycle(small_mae(depth=4), 2, "every-2")))
    assert names == ["MAE_encoder.blocks.blocks.1.mlp", "MAE_encoder.blocks.blocks.3.mlp"]


def test_features_are_mean_and_maximum_of_all_tokens_and_ignore_masks(clouds: Clouds) -> None:
    model, points = small_mae().double().eval(), clouds(0, 3, 64).double()
    groups, centers = ops.group(points, 8, 4)
    x = model.MAE_encoder.encoder(groups)
    for block in model.MAE_encoder.blocks.blocks:
        x = block(x + model.MAE_encoder.pos_embed(centers))
    x = model.MAE_encoder.norm(x)
    expected = torch.cat([x.mean(1), x.amax(1)], dim=-1)
    torch.testing.assert_close(model.features(points), expected, rtol=0, atol=1e-12)
    assert model.features(points).shape == (3, 24)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, 8, dtype=torch.bool), r"\[0, 0\]"),
        (torch.ones(2, 8, dtype=torch.bool), r"\[8, 8\]"),
        (torch.arange(16).view(2, 8) < 9, r"\[8, 1\]"),
        (torch.zeros(2, 7, dtype=torch.bool), r"\(2, 7\) .*\(2, 8\) bool"),
        (torch.zeros(2, 8), r"float32.*\(2, 8\) bool"),
    ],
    ids=["none", "all", "unequal", "shape", "type"],
)
def test_masks_that_do_not_fit_are_refused(mask: Tensor, message: str, clouds: Clouds) -> None:
    with pytest.raises(ValueError, match=message):
        small_mae()(clouds(0, 2, 64), mask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 0.1}, r"mask_ratio=0\.1 .*0 of 8"),
        ({"mask_ratio": 1.0}, r"mask_ratio=1\.0"),
        ({"decoder_depth": 0}, r"decoder_depth=0"),
        ({"decoder_num_heads": 5}, r"num_heads=5 .*dim=12"),
        ({"mask_type": "blok"}, r"mask_type='blok'.*'rand'.*'block'"),
        ({"loss": "l2"}, r"loss='l2'.*'cdl2'.*'cdl1'"),
    ],
    ids=str,
)
def test_impossible_ones_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_mae(**arguments)


@pytest.mark.parametrize("layer", ["second_conv.0", "second_conv.3"])
def test_layers_of_the_encoder_that_were_replaced_or_hooked_are_called(layer: str) -> None:
    """Adapters such as LoRA replace a layer, and pruning hooks it: neither may be passed over."""

    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    torch.manual_seed(0)
    encoder = PatchEncoder(8, 4).double().train()
    groups = torch.randn(2, 3, 5, 3).double()
    plain = encoder(groups)
    inner = encoder.get_submodule(layer)
    handle = inner.register_forward_hook(lambda module, inputs, output: 2 * output)
    hooked = encoder(groups)
    handle.remove()
    encoder.set_submodule(layer, Doubled(inner))
    replaced = encoder(groups)
    torch.testing.assert_close(hooked, replaced)
    assert layer == "second_conv.0" or not torch.allclose(plain, replaced)
    if layer == "second_conv.3":
        torch.testing.assert_close(replaced, 2 * plain)
    else:  # batch norm takes the factor out again
        torch.testing.assert_close(replaced, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["first_conv", "second_conv"])
@pytest.mark.parametrize("training", [True, False])
def test_hooks_on_the_two_halves_of_the_encoder_are_called(name: str, training: bool) -> None:
    """They see rows of points, and what they return counts."""
    torch.manual_seed(0)
    encoder, seen = PatchEncoder(8, 4).double().train(training), []
    groups = torch.randn(2, 3, 5, 3).double()
    plain = encoder(groups)
    half = encoder.get_submodule(name)
    handle = half.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    torch.testing.assert_close(encoder(groups), plain)
    handle.remove()
    assert seen == [(2 * 3 * 5, 3 if name == "first_conv" else 16)]
    half.register_forward_hook(lambda module, inputs, output: 0 * output)
    changed = encoder(groups)
    assert torch.equal(changed, changed[:1, :1].expand_as(changed))
    assert not torch.allclose(changed, plain)


@pytest.mark.parametrize("layer", ["first_conv", "first_conv.1", "second_conv.3"])
def test_a_hook_sees_all_patches_at_once(layer: str) -> None:
    """In evaluation patches pass in parts of 128, unless somebody watches."""
    encoder, seen = PatchEncoder(8, 4).eval(), []
    encoder.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output.numel()))
    encoder(torch.randn(1, 300, 2, 3))
    assert seen == [300 * 2 * 8] if layer == "first_conv" else len(seen) == 1


def test_layers_may_be_added_to_a_half_of_the_encoder() -> None:
    encoder, groups = PatchEncoder(8, 4).eval(), torch.randn(1, 3, 5, 3)
    plain = encoder(groups)
    encoder.first_conv.append(nn.Identity())
    torch.testing.assert_close(encoder(groups), plain)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layer", "other"),
    [("first_conv.1", nn.Identity()), ("second_conv.1", nn.LayerNorm(16)), ("first_conv.2", nn.GELU()),
     ("second_conv.2", nn.GELU()), ("second_conv.1", nn.BatchNorm1d(16, affine=False))],
)  # fmt: skip
def test_other_norms_and_activations_are_called(layer: str, other: nn.Module, training: bool) -> None:
    """Folding takes batch norm out, and others put their own in: the encoder is still the sum of its layers."""
    torch.manual_seed(0)
    encoder = PatchEncoder(8, 4).double().train(training)
    encoder.set_submodule(layer, other.double().train(training))
    groups = torch.randn(2, 3, 5, 3).double()
    rows = encoder.first_conv(groups.flatten(0, 2)).view(6, 5, 8)
    both = torch.cat([rows.amax(1, keepdim=True).expand_as(rows), rows], dim=2)
    expected = encoder.second_conv(both.flatten(0, 1)).view(6, 5, 8).amax(1).view(2, 3, 8)
    torch.testing.assert_close(encoder(groups), expected)
