"""The golden tests of experts weights averaging; 5 and 6 are in test_golden_dealing.py, 8 in test_processes.py."""

import copy
from collections.abc import Callable

import pytest
import torch
from golden import close, experts_2_to_6, laws, spread_out, stacks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pc_ewa.ewa import ExpertAverager, ExpertFFN, dense_state_dict, merge_experts, upcycle
from pc_ewa.models.transformer import Mlp

Build = Callable[..., nn.Module]


# 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("num_experts", [2, 4, 5])
def test_golden_1_oracle_full_averaging_trains_like_the_dense_model(
    transformer: Build, num_experts: int, momentum: float
) -> None:
    dense = transformer()
    mixed = upcycle(copy.deepcopy(dense), num_experts)
    start = dense_state_dict(mixed)
    dense_optimizer = torch.optim.SGD(dense.parameters(), lr=0.1, momentum=momentum)
    # Each expert sees 1/N of the tokens, so the mean of the experts' gradients is 1/N of the dense gradient.
    experts = list(stacks(mixed))
    others = [p for p in mixed.parameters() if all(p is not expert for expert in experts)]
    groups = [{"params": experts, "lr": 0.1 * num_experts}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=momentum)
    ExpertAverager(mixed, (num_experts - 1) / num_experts, "constant").attach(optimizer)
    for _ in range(20):
        x, target = torch.randn(3, 7, 3).double(), torch.randn(3, 7, 8).double()
        losses = []
        for model, update in ((dense, dense_optimizer), (mixed, optimizer)):
            update.zero_grad()
            loss = (model(x) - target).square().mean()
            loss.backward()
            update.step()
            losses.append(loss.detach())
        close(losses[1], losses[0])
    trained = dense_state_dict(mixed)
    for name, weight in dense.state_dict().items():
        close(trained[name], weight)
        assert (weight - start[name]).abs().max() > 1e-4, f"{name} was not trained"


# 2


@pytest.mark.parametrize("num_experts", [2, 3, 4])
def test_golden_2_identical_experts_compute_the_dense_ffn_and_its_gradient(num_experts: int) -> None:
    torch.manual_seed(0)
    ffn = Mlp(5, 10).double()
    layer = ExpertFFN(ffn, num_experts)
    x, weight = torch.randn(2, 12, 5).double().requires_grad_(), torch.randn(2, 12, 5).double()
    expected, actual = ffn(x), layer(x)
    close(actual, expected)
    (expected_x,) = torch.autograd.grad((expected * weight).sum(), x, retain_graph=True)
    (expected * weight).sum().backward(inputs=list(ffn.parameters()))
    (actual * weight).sum().backward()
    close(x.grad, expected_x)
    for name, parameter in ffn.named_parameters():
        gradient = layer.experts.get_parameter(name).grad
        close(gradient.sum(0), parameter.grad)
        assert all(part.abs().sum() > 0 for part in gradient), f"an expert had no part in {name}"


# 3


def equation_6(stack: Tensor, share_rate: float) -> Tensor:
    """Eq. 6 as it is written, expert by expert, each from the weights before the step."""
    count = len(stack)
    new = []
    for i in range(count):
        own = (1 - share_rate) * stack[i]
        for j in range(count):
            if j != i:
                own = own + share_rate / (count - 1) * stack[j]
        new.append(own)
    return torch.stack(new)


@laws
@given(experts_2_to_6, st.floats(0, 1), st.integers(0, 2**31))
def test_golden_3_averaging_is_equation_6_keeps_the_mean_and_shrinks_deviations(
    mixture: Build, num_experts: int, part: float, seed: int
) -> None:
    layer = mixture(num_experts, seed=seed)
    share_rate = part * (num_experts - 1) / num_experts
    before = [stack.detach().clone() for stack in layer.parameters()]
    ExpertAverager(layer, share_rate, "constant").step()
    kept = 1 - share_rate * num_experts / (num_experts - 1)
    for old, new in zip(before, layer.parameters(), strict=True):
        close(new, equation_6(old, share_rate), atol=1e-14)
        close(new.mean(0), old.mean(0), atol=1e-14)
        close(new - new.mean(0), kept * (old - old.mean(0)), atol=1e-14)


def test_golden_3_averaging_is_simultaneous_not_sequential(mixture: Build) -> None:
    layer = mixture(3)
    old = layer.experts.fc1.weight.detach().clone()
    sequential = old.clone()
    for i in range(3):
        others = sum(sequential[j] for j in range(3) if j != i)
        sequential[i] = 0.6 * sequential[i] + 0.2 * others
    ExpertAverager(layer, 0.4, "constant").step()
    close(layer.experts.fc1.weight, equation_6(old, 0.4), atol=1e-14)
    assert (layer.experts.fc1.weight - sequential).abs().max() > 0.01


def test_golden_3_averaging_is_in_place_and_leaves_the_optimizer_state(transformer: Build) -> None:
    model = upcycle(transformer(), 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.randn(2, 7, 3).double()).square().mean().backward()
    optimizer.step()
    objects = [(id(p), p.data_ptr()) for p in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    weights = [stack.detach().clone() for stack in stacks(model)]
    ExpertAverager(model, 0.5, "constant").step()
    assert all(not torch.equal(a, b) for a, b in zip(weights, stacks(model), strict=True))
    assert [(id(p), p.data_ptr()) for p in model.parameters()] == objects
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [i for i, _ in objects]
    after = optimizer.state_dict()["state"]
    assert after.keys() == state.keys()
    for index, entries in state.items():
        for name, value in entries.items():
            assert torch.equal(after[index][name], value), f"{name} of parameter {index} changed"


# 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_experts", range(2, 9))
def test_golden_4_merging_what_was_only_upcycled_is_bit_equal(
    transformer: Build, num_experts: int, dtype: torch.dtype
) -> None:
    model = transformer().to(dtype)
    state, layout = copy.deepcopy(model.state_dict()), repr(model)
    classes = [type(module) for module in model.modules()]
    assert merge_experts(upcycle(model, num_experts, "all")) is model
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert repr(model) == layout
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("num_experts", [2, 3, 4, 7])
def test_golden_4_merge_is_the_plain_mean_of_the_experts(transformer: Build, num_experts: int) -> None:
    model = spread_out(upcycle(transformer(), num_experts))
    experts = {name: stack for name, stack in model.named_parameters() if ".experts." in name}
    means = {name.replace(".experts", ""): stack.detach().mean(0) for name, stack in experts.items()}
    x = torch.randn(2, 7, 3).double()
    evaluated = model.eval()(x)
    merge_experts(model)
    assert len(means) == 8
    for name, mean in means.items():
        close(model.get_parameter(name), mean, atol=1e-14)
    assert torch.equal(model(x), evaluated)


# 7


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_golden_7_activation_checkpointing_gives_the_same_gradients(transformer: Build, use_reentrant: bool) -> None:
    model = spread_out(upcycle(transformer(), 3, "all"))
    x = torch.randn(2, 7, 3).double()
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(5)
        model.zero_grad()
        hidden = model.embed(x)
        for block in model.blocks:
            hidden = checkpoint(block, hidden, use_reentrant=use_reentrant) if checkpointed else block(hidden)
        model.norm(hidden).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, atol=1e-11)


# 9


def one_scaled_step(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, x: float) -> None:
    optimizer.zero_grad()
    scaler.scale(model(torch.full((2, 7, 3), x)).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("fused", [True, False], ids=["kernel skips the update", "scaler skips the step"])
def test_golden_9_a_skipped_optimizer_step_skips_the_averaging(transformer: Build, fused: bool) -> None:
    model = spread_out(upcycle(transformer(), 3).float())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    averager = ExpertAverager(model, 0.5, "linear", total_steps=10).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = [p.detach().clone() for p in model.parameters()]
    one_scaled_step(model, optimizer, scaler, float("inf"))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert averager.steps_done == 0
    spread = averager.statistics()["blocks.1.mlp"].spread
    one_scaled_step(model, optimizer, scaler, 1.0)
    assert averager.steps_done == 1
    # γ of the first of ten linear steps at β = 0.5 and N = 3; the optimizer itself moves the experts by 1e-3.
    assert averager.statistics()["blocks.1.mlp"].spread == pytest.approx(spread * (1 - 0.05 * 1.5), rel=0.01)
