"""The naive top-1 mixture, held to a loop over tokens that spells out Switch Transformer's definition."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.ewa import Gate, GatedFFN, balance_loss, upcycle
from pc_ewa.flops import flops_of
from pc_ewa.models.transformer import Mlp

Build = Callable[..., nn.Module]
Mixture = Callable[..., GatedFFN]


def probabilities_by_hand(layer: GatedFFN, token: Tensor) -> Tensor:
    logits = torch.stack([(row * token).sum() for row in layer.gate.weight])
    return logits.exp() / logits.exp().sum()


def expert_by_hand(layer: GatedFFN, expert: int, token: Tensor) -> Tensor:
    first, second = layer.experts.fc1, layer.experts.fc2
    return second.weight[expert] @ F.gelu(first.weight[expert] @ token + first.bias[expert]) + second.bias[expert]


def forward_by_hand(layer: GatedFFN, x: Tensor, capacity: float) -> tuple[Tensor, int]:
    """Output, and how many tokens were dropped."""
    outputs, taken, dropped = [], Counter[int](), 0
    for token in x.reshape(-1, 5):
        probabilities = probabilities_by_hand(layer, token)
        expert = max(range(layer.num_experts), key=lambda i: probabilities[i].item())
        if taken[expert] < capacity:
            outputs.append(probabilities[expert] * expert_by_hand(layer, expert, token))
        else:
            outputs.append(0 * token)
            dropped += 1
        taken[expert] += 1
    return torch.stack(outputs).reshape(x.shape), dropped


def balance_by_hand(layer: GatedFFN, x: Tensor) -> Tensor:
    tokens = x.reshape(-1, 5)
    probabilities = [probabilities_by_hand(layer, token) for token in tokens]
    total = torch.zeros((), dtype=x.dtype)
    for i in range(layer.num_experts):
        share = sum(p.argmax().item() == i for p in probabilities) / len(tokens)
        total = total + share * sum(p[i] for p in probabilities) / len(tokens)
    return layer.settings.balance_weight * layer.num_experts * total


def gradients(output: Tensor, *sources: Tensor) -> list[Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=output.dtype)
    return list(torch.autograd.grad((output * weights).sum(), sources, materialize_grads=True))


def check(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("capacity_factor", [0.3, 1.0, 1.25, 3.0, 1e9])
@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5), (2, 3, 4, 5), (2, 5), (1, 1, 5)], ids=str)
def test_training_is_that_of_the_loop_over_tokens(
    gated_mixture: Mixture, shape: tuple[int, ...], capacity_factor: float
) -> None:
    layer, x = gated_mixture(3, capacity_factor), torch.randn(shape).double().requires_grad_()
    count = x.numel() // 5
    expected, dropped = forward_by_hand(layer, x, math.ceil(capacity_factor * count / 3))
    output, sources = layer(x), [x, *layer.parameters()]
    check([output, *gradients(output, *sources)], [expected, *gradients(expected, *sources)])
    if capacity_factor >= 3:
        assert dropped == 0
    if count > 7 and capacity_factor < 1:
        assert dropped > 0, "the case must be one where tokens are dropped"


@pytest.mark.parametrize("shape", [(7, 5), (2, 30, 5), (1, 5)], ids=str)
def test_evaluation_is_that_of_the_loop_without_capacity(gated_mixture: Mixture, shape: tuple[int, ...]) -> None:
    layer, x = gated_mixture(3, 0.3).eval(), torch.randn(shape).double().requires_grad_()
    expected, _ = forward_by_hand(layer, x, math.inf)
    output, sources = layer(x), [x, *layer.parameters()]
    check([output, *gradients(output, *sources)], [expected, *gradients(expected, *sources)])
    assert torch.equal(layer(x), output)


def test_evaluation_of_a_token_does_not_depend_on_the_batch(gated_mixture: Mixture) -> None:
    layer, x = gated_mixture(4, 0.3).eval(), torch.randn(6, 9, 5).double()
    alone = torch.stack([torch.stack([layer(token[None])[0] for token in sample]) for sample in x])
    torch.testing.assert_close(layer(x), alone, rtol=0, atol=1e-13)
    torch.testing.assert_close(layer(x.flip(0, 1)).flip(0, 1), alone, rtol=0, atol=1e-13)


def test_dropped_tokens_are_exactly_0_and_pass_no_gradient(gated_mixture: Mixture) -> None:
    layer = gated_mixture(2, capacity_factor=1.0)
    with torch.no_grad():
        layer.gate.weight.copy_(torch.eye(2, 5))
    x = torch.randn(2, 4, 5).double()
    x[..., 0], x[..., 1] = 3, -3  # all prefer expert 0, which has room for the first 4 of 8
    x[1, 3, :2] = torch.tensor([-3, 3])  # but the last, which finds expert 1 free
    x.requires_grad_()
    output = layer(x)
    assert torch.equal(output[1, :3], torch.zeros(3, 5).double())
    assert (output[0] != 0).all()
    assert (output[1, 3] != 0).all()
    (output * torch.randn_like(output)).sum().backward()
    assert torch.equal(x.grad[1, :3], torch.zeros(3, 5).double())
    assert (x.grad[0] != 0).all()
    assert (x.grad[1, 3] != 0).all()


def test_empty_slots_give_the_experts_no_gradient(gated_mixture: Mixture) -> None:
    layer = gated_mixture(3, capacity_factor=3.0)
    with torch.no_grad():
        layer.gate.weight.zero_()  # the first of equals: expert 0
    layer(torch.randn(4, 5).double()).square().sum().backward()
    for stack in layer.experts.parameters():
        assert stack.grad[0].any()
        assert not stack.grad[1:].any()


def test_balance_loss_and_its_gradient_are_those_of_the_formula(gated_mixture: Mixture) -> None:
    for layer in (gated_mixture(3, 0.3), gated_mixture(3, 100.0, balance_weight=2.0)):
        x = torch.randn(2, 7, 5).double().requires_grad_()
        layer(x)
        actual, expected, sources = balance_loss(layer), balance_by_hand(layer, x), [x, layer.gate.weight]
        check([actual, *gradients(actual, *sources)], [expected, *gradients(expected, *sources)])
        assert actual > layer.settings.balance_weight, "a gate this sure is not balanced"


@pytest.mark.parametrize("num_experts", [2, 3, 8])
def test_balance_loss_of_a_uniform_gate_is_its_weight(gated_mixture: Mixture, num_experts: int) -> None:
    layer = gated_mixture(num_experts, balance_weight=0.7)
    with torch.no_grad():
        layer.gate.weight.zero_()
    layer(torch.randn(9, 5).double())
    assert balance_loss(layer).item() == pytest.approx(0.7, rel=1e-14)


def test_balance_loss_sums_the_latest_forward_of_every_mixture(gated_mixture: Mixture) -> None:
    model = nn.Sequential(gated_mixture(3), nn.Tanh(), gated_mixture(2, balance_weight=2.0, seed=1))
    x, y = torch.randn(2, 7, 5).double(), torch.randn(2, 7, 5).double()
    model(x)
    model(y)
    between = model[1](model[0](y))
    expected = balance_by_hand(model[0], y) + balance_by_hand(model[2], between)
    for _ in range(2):
        torch.testing.assert_close(balance_loss(model), expected, rtol=0, atol=1e-12)
    model.eval()(x)
    torch.testing.assert_close(balance_loss(model), expected, rtol=0, atol=1e-12)


def test_balance_loss_without_gated_mixtures_is_a_float_zero(gated_mixture: Mixture, transformer: Build) -> None:
    for model in (transformer(), upcycle(transformer(), 2), gated_mixture()):
        loss = balance_loss(model)
        assert (loss.item(), loss.dtype, loss.shape) == (0, torch.float32, ())


def test_parts_of_a_step_add_their_own_balance_losses(gated_mixture: Mixture) -> None:
    """As in gradient accumulation, and with a mixture that only the first part runs through."""
    first, second = gated_mixture(3), gated_mixture(2, seed=1)
    model = nn.ModuleList([first, second])
    x, y = torch.randn(7, 5).double(), torch.randn(6, 5).double()
    wanted = balance_by_hand(first, x) + balance_by_hand(second, x) + balance_by_hand(first, y)
    expected = [first.gate.weight.grad, second.gate.weight.grad] = list(
        torch.autograd.grad(wanted, [first.gate.weight, second.gate.weight])
    )
    model.zero_grad()
    first(x), second(x)
    balance_loss(model).item()  # looking at it first changes nothing
    loss = balance_loss(model)
    loss.backward()
    assert balance_loss(model).item() == loss.item()
    assert not balance_loss(model).requires_grad, "the graph is gone; only the number is left"
    first(y)
    balance_loss(model).backward()
    check([first.gate.weight.grad, second.gate.weight.grad], expected)


def test_uniform_experts_and_a_gate_of_zero_are_the_ffn_over_n() -> None:
    torch.manual_seed(0)
    ffn = Mlp(5, 10).double()
    layer, x = GatedFFN(ffn, Gate(4.0), 4), torch.randn(2, 7, 5).double()
    with torch.no_grad():
        layer.gate.weight.zero_()
    for training in (True, False):
        torch.testing.assert_close(layer.train(training)(x), ffn(x) / 4, rtol=0, atol=1e-14)


def test_gate_starts_as_a_vits_linear_layers_do() -> None:
    torch.manual_seed(0)
    layer = GatedFFN(Mlp(500, 4), Gate(), 20)
    weight = layer.gate.weight
    assert weight.shape == (20, 500)
    assert layer.gate.bias is None
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(weight.mean().item()) < 1e-3


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (5,)], ids=str)
def test_no_token_and_a_single_one(gated_mixture: Mixture, shape: tuple[int, ...]) -> None:
    layer, x = gated_mixture(), torch.randn(shape).double().requires_grad_()
    for training in (True, False):
        output = layer.train(training)(x)
        assert output.shape == x.shape
        (output.sum() + balance_loss(layer)).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in (x, *layer.parameters()))


def test_flops_are_those_of_one_ffn_times_the_capacity_factor_in_training(
    gated_mixture: Mixture,
) -> None:
    def flops(module: nn.Module) -> int:
        return flops_of(lambda: module(torch.randn(3, 8, 5).double()))

    layer, gate = gated_mixture(4, capacity_factor=1.5), 2 * 24 * 5 * 4
    one = flops(Mlp(5, 10).double())
    assert flops(layer.train()) == 1.5 * one + gate
    assert flops(layer.eval()) == one + gate


def test_dropout_inside_the_experts_follows_training_and_evaluation() -> None:
    torch.manual_seed(0)
    ffn = nn.Sequential(nn.Linear(5, 10), nn.Dropout(0.5), nn.Linear(10, 5)).double()
    layer, x = GatedFFN(ffn, Gate(), 3), torch.randn(8, 5).double()
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
    assert not any(m.training for m in GatedFFN(ffn.eval(), Gate(), 3).modules())
