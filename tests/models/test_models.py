"""Promises that every model keeps, refused arguments, and the parts of the trunk."""

from collections.abc import Callable

import pytest
import torch
from small_models import WITH_FFNS, run, small, tensors
from torch import Tensor, nn

from pc_ewa.errors import ConfigError
from pc_ewa.ewa import expert_layers, upcycle
from pc_ewa.models import MODELS, create_model
from pc_ewa.models.transformer import Attention, DropPath, TransformerEncoder

Build = Callable[..., nn.Module]
Clouds = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("name", "upcycled"), [*((name, False) for name in MODELS), *((name, True) for name in WITH_FFNS)]
)
def test_every_model_trains_every_parameter(name: str, upcycled: bool, clouds: Clouds) -> None:
    model = small(name)
    if upcycled:
        upcycle(model, 3, "all", init="independent")
    outputs = [output for output in tensors(run(model, clouds(0, 4, 32))) if output.is_floating_point()]
    assert outputs
    assert all(output.isfinite().all() for output in outputs)
    sum(output.square().sum() for output in outputs if output.requires_grad).backward()  # type: ignore[union-attr]
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # the tokenizer and the momentum encoder of Point-BERT
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, f"{parameter_name} got no gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {parameter_name} is not finite"
    for layer_name, layer in expert_layers(model).items():
        for stack in layer.parameters():
            assert all(gradient.any() for gradient in stack.grad), f"an expert of {layer_name} got no tokens"


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_deterministic_in_evaluation(name: str, clouds: Clouds) -> None:
    model, points = small(name).eval(), clouds(0, 2, 32)
    first, second = list(tensors(run(model, points))), list(tensors(run(model, points)))
    assert all(output.isfinite().all() for output in first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_built_from_torchs_seed_alone(name: str) -> None:
    one, two = small(name).state_dict(), small(name).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", ["point_mae_classifier", "dvae"])
def test_models_that_draw_no_mask_compile_to_one_graph(name: str, clouds: Clouds) -> None:
    """With fullgraph=True a graph break is an error."""
    model, points = small(name, depth=1).eval(), clouds(0, 2, 32)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for ours, plain in zip(tensors(run(compiled, points)), tensors(run(model, points)), strict=True):
        assert torch.equal(ours, plain)


def test_samples_of_a_batch_do_not_see_each_other_in_evaluation(classifier: Build, clouds: Clouds) -> None:
    model, points = classifier().double().eval(), clouds(0, 3, 32).double()
    alone = torch.cat([model(cloud[None]) for cloud in points])
    torch.testing.assert_close(model(points), alone, rtol=0, atol=1e-12)


def test_logits_have_one_column_a_class(classifier: Build, clouds: Clouds) -> None:
    assert classifier(num_classes=7)(clouds(0, 3, 32)).shape == (3, 7)


def test_bf16_autocast_stays_close(classifier: Build, clouds: Clouds) -> None:
    model, points = classifier().eval(), clouds(0, 2, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(points)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(points), rtol=0, atol=0.05)


@pytest.mark.parametrize(("count", "message"), [(7, "n=8 .* 7"), (3, " 3")])
def test_clouds_with_too_few_points_are_refused(classifier: Build, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier()(torch.randn(2, count, 3))


def test_groups_larger_than_the_cloud_are_refused(classifier: Build) -> None:
    with pytest.raises(ValueError, match=r"k=20 .* 12"):
        classifier(group_size=20)(torch.randn(2, 12, 3))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("point_mae_clasifier", {}, r"'point_mae_clasifier'.*'point_mae_classifier'"),
        ("resnet", {}, r"'resnet'.*point_mae_classifier"),
        ("point_mae_classifier", {"dims": 48}, r"model point_mae_classifier\.dims.*'dim'"),
        ("point_mae_classifier", {"heads": 6}, r"heads'.*'num_heads'"),
        ("point_mae_classifier", {"dim": "wide"}, r"point_mae_classifier\.dim='wide'.*integer"),
        ("point_mae_classifier", {"depth": 1.5}, r"depth=1\.5.*integer"),
        ("point_mae_classifier", {"depth": None}, r"depth=None.*integer"),
        ("point_mae_classifier", {"num_heads": 5}, r"num_heads=5 .*dim=384.* 1, 2, 3, 4, 6"),
        ("point_mae_classifier", {"num_classes": 0}, r"num_classes=0"),
        ("point_mae_classifier", {"depth": 0}, r"depth=0"),
        ("point_mae_classifier", {"num_heads": 0}, r"num_heads=0"),
        ("point_mae_classifier", {"group_size": -1}, r"group_size=-1"),
        ("point_mae_classifier", {"num_groups": 0}, r"num_groups=0"),
        ("point_mae_classifier", {"encoder_width": 0}, r"encoder_width=0"),
        ("point_mae_classifier", {"drop_path": 1.0}, r"drop_path=1\.0"),
        ("point_mae_classifier", {"drop_path": float("nan")}, r"drop_path=nan.*finite"),
        ("point_mae_classifier", {"mlp_ratio": float("inf")}, r"mlp_ratio=inf.*finite"),
        ("point_mae_classifier", {"head_dropout": -0.1}, r"head_dropout=-0\.1"),
        ("point_mae_classifier", {"encoder_dim": 256}, r"encoder_dim=256 .*dim=384"),
        ("point_mae_classifier", {"mlp_ratio": 0.0}, r"mlp_ratio=0\.0 .*dim=384"),
    ],
    ids=str,
)
def test_impossible_models_are_refused(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model(name, **arguments)


def test_all_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"depth='deep'.*dims.*'dim'"):
        create_model("point_mae_classifier", dims=3, depth="deep")


def test_encoder_dim_may_repeat_dim(classifier: Build) -> None:
    assert classifier(encoder_dim=12).encoder.second_conv[3].out_channels == 12


# Parts


def test_drop_path_drops_whole_samples_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    output = DropPath(0.3)(torch.ones(20_000, 2, 3))
    kept = output[:, 0, 0]
    assert torch.equal(output, kept[:, None, None].expand_as(output)), "a sample is dropped whole"
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert abs(kept.mean().item() - 1) < 4 * (0.3 / 0.7 / 20_000) ** 0.5


def test_drop_path_is_the_identity_in_evaluation_and_at_rate_0() -> None:
    x = torch.randn(3, 2)
    assert torch.equal(DropPath(0.9).eval()(x), x)
    assert torch.equal(DropPath(0.0)(x), x)


def test_drop_path_grows_linearly_from_0_over_the_blocks() -> None:
    encoder = TransformerEncoder(12, 5, 3, 2.0, 0.2)
    assert [block.drop_path.rate for block in encoder.blocks] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])  # type: ignore[union-attr]


def test_each_residual_branch_draws_its_own_drop_path() -> None:
    torch.manual_seed(0)
    block = TransformerEncoder(12, 2, 3, 2.0, 0.5).blocks[1]
    x = torch.randn(1, 4, 12).expand(200, -1, -1)
    outcomes = block(x).flatten(1).detach().mul(1e5).round().unique(dim=0)
    assert len(outcomes) == 4, "attention kept or not, times FFN kept or not"


def test_attention_is_softmax_of_scaled_products() -> None:
    torch.manual_seed(0)
    attention, x = Attention(12, 3).double(), torch.randn(2, 5, 12).double()
    expected = torch.zeros(2, 5, 12).double()
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        query, key, value = (x @ attention.qkv.weight[part : part + 12][rows].T for part in (0, 12, 24))
        weights = (query @ key.transpose(1, 2) * 4**-0.5).softmax(-1)
        expected[..., rows] = weights @ value
    expected = expected @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(attention(x), expected)


def test_position_is_added_before_every_block() -> None:
    torch.manual_seed(0)
    encoder = TransformerEncoder(12, 3, 3, 2.0, 0.0).double()
    x, position = torch.randn(2, 5, 12).double(), torch.randn(2, 5, 12).double()
    expected = x
    for block in encoder.blocks:
        expected = block(expected + position)
    torch.testing.assert_close(encoder(x, position), expected)
    for block in encoder.blocks:  # without branches, the position stays: three times
        for parameter in block.parameters():
            parameter.data.zero_()
    torch.testing.assert_close(encoder(x, position), x + 3 * position)
