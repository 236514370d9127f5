"""Gated mixtures in use: precisions, checkpointing, copies, whole models, averaging, and what is refused."""

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pc_ewa.ewa import (
    ExpertAverager,
    ExpertFFN,
    Gate,
    GatedFFN,
    balance_loss,
    dense_state_dict,
    expert_layers,
    has_gate,
    merge_experts,
    routed_experts,
    upcycle,
)
from pc_ewa.ewa.conversion import merged_parameters
from pc_ewa.models.transformer import Mlp

Build = Callable[..., nn.Module]
Mixture = Callable[..., GatedFFN]


def test_gate_is_float32_under_bf16_autocast() -> None:
    torch.manual_seed(0)
    layer, x = GatedFFN(Mlp(16, 32), Gate(8.0, 0.5), 8), torch.randn(4, 32, 16)
    with torch.no_grad():
        for stack in layer.parameters():
            stack += 0.1 * torch.randn_like(stack)
    for training in (True, False):
        layer.train(training).zero_grad()
        expected = layer(x)
        balance = balance_loss(layer).item()
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x)
            assert balance_loss(layer).dtype == torch.float32
            assert balance_loss(layer).item() == balance, "in bfloat16 some tokens would choose otherwise"
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), expected, rtol=0, atol=2**-6 * expected.abs().max().item())
        (output.float().square().sum() + balance_loss(layer)).backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


def test_whole_model_in_bf16_still_gates_in_float32(gated_mixture: Mixture) -> None:
    layer = gated_mixture().bfloat16()
    assert layer(torch.randn(7, 5).bfloat16()).dtype == torch.bfloat16
    assert balance_loss(layer).dtype == torch.float32


def test_activation_checkpointing_changes_nothing(gated_mixture: Mixture) -> None:
    x = torch.randn(2, 7, 5).double().requires_grad_()
    results = []
    for checkpointed in (False, True):
        layer = gated_mixture()
        block = nn.Sequential(nn.Tanh(), layer, nn.Tanh())
        output = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
        x.grad = None
        (output.square().sum() + balance_loss(block)).backward()
        results.append([output, x.grad, *(p.grad for p in layer.parameters())])
        assert layer.balance.grad_fn is None, "the forward within backward left its graph behind"
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_without_gradients_output_and_balance_loss_are_the_same(gated_mixture: Mixture) -> None:
    layer, x = gated_mixture(), torch.randn(7, 5).double()
    expected = layer(x), balance_loss(layer)
    with torch.no_grad():
        actual = layer(x), balance_loss(layer)
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(actual, expected, strict=True))


def test_copies_and_pickles_after_a_training_forward(gated_mixture: Mixture) -> None:
    layer, x = gated_mixture(), torch.randn(7, 5).double()
    output, balance = layer(x), balance_loss(layer)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert balance_loss(twin).item() == 0
        assert torch.equal(twin(x), output)
        assert torch.equal(balance_loss(twin), balance)
    assert balance_loss(layer).requires_grad
    assert set(layer.state_dict()) == {"gate.weight", *(f"experts.{p}" for p, _ in layer.experts.named_parameters())}


# Whole models


def test_upcycling_with_a_gate(transformer: Build) -> None:
    dense = transformer()
    model = upcycle(transformer(), 3, "all", "independent", gate=Gate(2.0, 0.3))
    assert has_gate(model)
    assert not has_gate(dense)
    assert not has_gate(upcycle(transformer(), 2))
    mixtures = expert_layers(model)
    assert list(mixtures) == [f"blocks.{i}.mlp" for i in range(4)]
    for name, layer in mixtures.items():
        assert isinstance(layer, GatedFFN)
        assert (layer.num_experts, layer.settings) == (3, Gate(2.0, 0.3))
        weight = layer.experts.fc1.weight
        assert torch.equal(weight[0], dense.get_submodule(name).fc1.weight)
        assert torch.equal(weight[1].flatten().sort().values, weight[0].flatten().sort().values)
        assert not torch.equal(weight[1], weight[0])
    loss = model(torch.randn(2, 7, 3).double()).square().mean() + balance_loss(model)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_gated_transformers_vit_trains_and_evaluates() -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 12, "patch_size": 4}
    model = upcycle(ViTModel(ViTConfig(num_hidden_layers=2, **sizes)), 3, "all", gate=Gate(balance_weight=0.1)).train()
    images = torch.randn(2, 3, 12, 12)
    loss = model(images).last_hidden_state.square().mean() + balance_loss(model)
    loss.backward()
    assert 0.2 <= balance_loss(model).item() < 0.6, "two mixtures, each from its weight to N times that"
    assert all(m.gate.weight.grad.any() for m in model.modules() if isinstance(m, GatedFFN))
    both = model.eval()(images).last_hidden_state
    torch.testing.assert_close(model(images[1:]).last_hidden_state[0], both[1], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_a_gated_torch_encoder_does_not_take_the_fused_path() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2)
    before = model.eval()(torch.ones(1, 3, 8))
    upcycle(model, 2, "all", gate=Gate())
    with torch.no_grad():
        assert not torch.allclose(model(torch.ones(1, 3, 8)), before, atol=1e-3), "half of each FFN's output at most"


def test_averaging_moves_the_experts_and_never_the_gate(transformer: Build) -> None:
    model = upcycle(transformer(), 3, init="independent", gate=Gate())
    averager = ExpertAverager(model, 2 / 3, "constant")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert all(measured.spread > 0.1 for measured in averager.statistics().values())
    averager.step()
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            expected = before[name].mean(0).expand_as(parameter)
            torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-14)
        else:
            assert torch.equal(parameter, before[name])
    for measured in averager.statistics().values():
        assert (measured.spread, measured.cosine) == pytest.approx((0, 1), abs=1e-12)


def test_statistics_do_not_see_the_gate(gated_mixture: Mixture) -> None:
    layer = gated_mixture()
    averager = ExpertAverager(layer, 0.5, "constant")
    before = averager.statistics()
    with torch.no_grad():
        layer.gate.weight.mul_(100)
    assert averager.statistics() == before


def test_routed_experts_leave_gated_mixtures_alone(gated_mixture: Mixture) -> None:
    model, x = nn.Sequential(gated_mixture(), ExpertFFN(Mlp(5, 10).double(), 2)).eval(), torch.randn(7, 5).double()
    expected = model[0](x)
    with routed_experts(model):
        assert not any(module.training for module in model[0].modules())
        assert model[1].training
        assert torch.equal(model[0](x), expected)


def test_gated_mixtures_cannot_be_merged(gated_mixture: Mixture, transformer: Build) -> None:
    model = upcycle(transformer(), 2, gate=Gate())
    layout = repr(model)
    message = (
        r"^blocks\.1\.mlp chooses its experts by content, so it stays a mixture at inference: it cannot be merged$"
    )
    for merge in (merge_experts, dense_state_dict, lambda model: list(merged_parameters(model))):
        with pytest.raises(ValueError, match=message):
            merge(model)
    assert repr(model) == layout
    for refuse in (lambda: merge_experts(gated_mixture()), gated_mixture().fuse):
        with pytest.raises(ValueError, match=r"^a GatedFFN chooses its experts by content"):
            refuse()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"capacity_factor": 0}, r"capacity_factor=0; it must be above 0 and finite"),
        ({"capacity_factor": -1.0}, r"capacity_factor=-1\.0; it must be above 0"),
        ({"capacity_factor": math.nan}, r"capacity_factor=nan; it must be above 0"),
        ({"capacity_factor": math.inf}, r"capacity_factor=inf; it must be above 0 and finite"),
        ({"balance_weight": -0.1}, r"balance_weight=-0\.1; it must be at least 0 and finite"),
        ({"balance_weight": math.nan}, r"balance_weight=nan; it must be at least 0"),
    ],
    ids=str,
)
def test_impossible_gates_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gate(**values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"partition": "sample"}, r"partition='sample' with a gate, which routes the tokens by content"),
        ({"num_experts": 1}, r"num_experts=1; a mixture needs at least 2"),
        ({"init": "x"}, r"init='x'; choose"),
    ],
    ids=str,
)
def test_impossible_upcycling_with_a_gate_leaves_the_model(transformer: Build, arguments: dict, message: str) -> None:
    model = transformer()
    with pytest.raises(ValueError, match=message):
        upcycle(model, **arguments, gate=Gate())
    assert not expert_layers(model)


def test_upcycling_a_gated_model_again_is_refused(transformer: Build) -> None:
    with pytest.raises(ValueError, match="has gated mixtures of experts already; start from a dense model"):
        upcycle(upcycle(transformer(), 2, gate=Gate()), 2)


def test_printed_layer_says_what_it_is(gated_mixture: Mixture) -> None:
    assert "num_experts=3, capacity_factor=1.25, balance_weight=0.5" in repr(gated_mixture())


def test_a_gate_that_is_no_gate_is_refused(transformer: Build) -> None:
    with pytest.raises(ValueError, match=r"^gate=True; give a Gate\(\)"):
        upcycle(transformer(), 2, gate=True)  # type: ignore[arg-type]
