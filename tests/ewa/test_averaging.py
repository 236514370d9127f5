import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from pc_ewa.ewa import ExpertAverager, ExpertFFN, expert_layers, upcycle

laws = settings(deadline=None, max_examples=40)
Build = Callable[..., nn.Module]
Mixture = Callable[..., ExpertFFN]


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"schedule": "constant", "total_steps": None}, {0: 0.4, 10**6: 0.4}),
        ({"schedule": "constant"}, {0: 0.4, 9: 0.4}),
        ({"schedule": "linear"}, {0: 0.04, 4: 0.2, 9: 0.4, 50: 0.4}),
        ({"schedule": "linear", "ramp": 0.5}, {0: 0.08, 3: 0.32, 4: 0.4, 5: 0.4, 9: 0.4}),
        ({"schedule": "cosine"}, {0: 0.2 * (1 - math.cos(math.pi / 10)), 4: 0.2, 9: 0.4}),
        ({"schedule": "cosine", "ramp": 0.2}, {0: 0.2, 1: 0.4, 9: 0.4}),
        ({"schedule": "constant", "stop": 0.5}, {0: 0.4, 4: 0.4, 5: 0, 9: 0}),
        ({"schedule": "constant", "start": 0.5}, {0: 0, 4: 0, 5: 0.4, 9: 0.4}),
        ({"schedule": "linear", "start": 0.5}, {4: 0, 5: 0.08, 9: 0.4}),
        ({"schedule": "constant", "start": 0.7}, {6: 0, 7: 0.4}),
        ({"schedule": "linear", "start": 0.2, "stop": 0.6, "ramp": 0.5}, {1: 0, 2: 0.2, 3: 0.4, 5: 0.4, 6: 0}),
    ],
    ids=str,
)
def test_share_rate_follows_the_schedule(mixture: Mixture, settings: dict, rates: dict[int, float]) -> None:
    averager = ExpertAverager(mixture(4), 0.4, **{"total_steps": 10, **settings})
    assert {step: averager.share_rate_at(step) for step in rates} == pytest.approx(rates, abs=1e-15)


@laws
@given(st.sampled_from(["linear", "cosine"]), st.floats(0.01, 1), st.floats(0, 0.9), st.integers(1, 50))
def test_ramps_rise_to_the_full_rate_and_never_above(
    mixture: Mixture, schedule: str, ramp: float, start: float, total: int
) -> None:
    averager = ExpertAverager(mixture(2), 0.5, schedule, total, ramp=ramp, start=start)
    rates = [averager.share_rate_at(step) for step in range(total)]
    assert rates == sorted(rates)
    assert rates[-1] in (0, pytest.approx(0.5))  # 0: a start after the last step
    assert all(rate == 0 for step, rate in enumerate(rates) if step < round(start * total))


def test_each_step_uses_the_rate_of_its_own_number(mixture: Mixture) -> None:
    layer = mixture(3)
    averager = ExpertAverager(layer, 0.5, "linear", total_steps=4, stop=0.5)
    for gamma in (0.375, 0.75, 0.0, 0.0):  # β = 0.25, 0.5, then the window is over; γ = 1.5 β
        before = averager.statistics()[""].spread
        averager.step()
        assert averager.statistics()[""].spread == pytest.approx(before * (1 - gamma), rel=1e-12)


@laws
@given(st.integers(2, 5), st.integers(1, 5), st.floats(0, 1))
def test_every_k_steps_equals_k_single_steps_at_a_constant_rate(
    mixture: Mixture, num_experts: int, every: int, part: float
) -> None:
    single, grouped = mixture(num_experts), mixture(num_experts)
    share_rate = part * (num_experts - 1) / num_experts
    each = ExpertAverager(single, share_rate, "constant")
    kth = ExpertAverager(grouped, share_rate, "constant", every=every)
    start = [stack.detach().clone() for stack in grouped.parameters()]
    for step in range(2 * every):
        if step == every - 1:
            assert all(torch.equal(a, b) for a, b in zip(grouped.parameters(), start, strict=True))
        each.step()
        kth.step()
    for a, b in zip(single.parameters(), grouped.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_attached_averager_runs_after_each_step_until_detached(mixture: Mixture) -> None:
    layer = mixture(3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0)
    averager = ExpertAverager(layer, 0.5, "constant")
    assert averager.attach(optimizer) is averager
    layer(torch.randn(7, 5).double()).sum().backward()
    spreads = [averager.statistics()[""].spread]
    for _ in range(2):
        optimizer.step()
        spreads.append(averager.statistics()[""].spread)
    averager.detach()
    optimizer.step()
    assert spreads[1:] == pytest.approx([spreads[0] / 4, spreads[0] / 16])
    assert averager.statistics()[""].spread == spreads[-1]
    assert averager.steps_done == 2


def test_the_step_that_only_makes_an_optimizers_state_averages_nothing(mixture: Mixture) -> None:
    """torch.distributed.checkpoint takes it with a rate of 0 when it loads into an optimizer that has none."""
    layer = mixture(3)
    before = copy.deepcopy(layer.state_dict())
    optimizer = torch.optim.AdamW(layer.parameters(), 0.1)
    averager = ExpertAverager(layer, 0.3, "constant").attach(optimizer)
    get_optimizer_state_dict(layer, optimizer)
    assert len(optimizer.state) == len(before)
    assert averager.steps_done == 0
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    optimizer.step()
    assert averager.steps_done == 1


def test_attaching_twice_is_refused_until_detached(mixture: Mixture) -> None:
    layer = mixture(3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    averager = ExpertAverager(layer, 0.5, "constant")
    averager.detach()  # nothing to detach is no error
    averager.attach(optimizer)
    with pytest.raises(ValueError, match=r"attached to an optimizer already; detach\(\) it first"):
        averager.attach(optimizer)
    averager.detach()
    averager.attach(optimizer)


def test_averaging_leaves_no_trace_in_autograd(mixture: Mixture) -> None:
    layer = mixture(3)
    ExpertAverager(layer, 0.5, "constant").step()
    assert all(stack.is_leaf and stack.requires_grad and stack.grad is None for stack in layer.parameters())


def test_statistics_are_those_of_an_independent_formula(transformer: Build) -> None:
    model = upcycle(transformer(), 3)
    with torch.no_grad():
        for layer in expert_layers(model).values():
            for stack in layer.parameters():
                stack += 0.3 * torch.randn_like(stack)
    averager = ExpertAverager(model, 0.4, "linear", total_steps=10)
    measured = averager.statistics()
    assert list(measured) == ["blocks.1.mlp", "blocks.3.mlp"]
    for name, layer in expert_layers(model).items():
        experts = [
            np.concatenate([stack[i].detach().numpy().ravel() for stack in layer.parameters()]) for i in range(3)
        ]
        mean = sum(experts) / 3
        spread = np.mean([np.linalg.norm(w - mean) / np.linalg.norm(mean) for w in experts])
        pairs = [(experts[i], experts[j]) for i in range(3) for j in range(i)]
        cosine = np.mean([a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs])
        assert measured[name] == pytest.approx((spread, cosine, 0.04), rel=1e-12)
    for _ in range(4):
        averager.step()
    assert averager.statistics()["blocks.1.mlp"].share_rate == pytest.approx(0.16)


def test_statistics_of_copies_are_zero_spread_and_cosine_one(transformer: Build) -> None:
    model = upcycle(transformer(), 3)
    for measured in ExpertAverager(model, 0.3, "constant").statistics().values():
        assert (measured.spread, measured.cosine) == pytest.approx((0, 1), abs=1e-12)


def test_one_averager_serves_layers_of_different_sizes(mixture: Mixture) -> None:
    model = nn.Sequential(mixture(2), mixture(5, dim=3))
    averager = ExpertAverager(model, 0.3, "constant")
    before = averager.statistics()
    averager.step()
    after = averager.statistics()
    for name, count in (("0", 2), ("1", 5)):
        assert after[name].spread == pytest.approx(before[name].spread * (1 - 0.3 * count / (count - 1)), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share_rate": 0.8}, r"share_rate=0\.8 with 4 experts.*choose 0 to \(N-1\)/N = 0\.75"),
        ({"share_rate": -0.1}, r"share_rate=-0\.1 with 4 experts.*choose 0 to"),
        ({"share_rate": math.nan}, r"share_rate=nan with 4 experts.*choose 0 to"),
        ({"schedule": "step"}, r"schedule='step'; choose 'constant', 'linear', 'cosine' or 'lr'"),
        (
            {"schedule": "linear", "total_steps": None},
            r"schedule='linear' with start=0\.0, stop=1\.0 needs total_steps",
        ),
        ({"total_steps": None, "stop": 0.5}, r"schedule='constant' with start=0\.0, stop=0\.5 needs total_steps"),
        ({"total_steps": 0}, r"total_steps=0; it must be an integer of at least 1"),
        ({"start": 0.5, "stop": 0.5}, r"start=0\.5, stop=0\.5; they must satisfy 0 <= start < stop <= 1"),
        ({"start": -0.1}, r"start=-0\.1, stop=1\.0; they must satisfy"),
        ({"stop": 1.5}, r"start=0\.0, stop=1\.5; they must satisfy"),
        ({"ramp": 0.0}, r"ramp=0\.0; it must be above 0 and at most 1"),
        ({"ramp": 1.1}, r"ramp=1\.1; it must be above 0 and at most 1"),
        ({"every": 0}, r"every=0; it must be at least 1"),
        ({"schedule": "lr"}, r"alpha=None with schedule='lr'; give the learning rate"),
        ({"schedule": "lr", "alpha": 0.0}, r"alpha=0\.0 with"),
        ({"schedule": "lr", "alpha": math.nan}, r"alpha=nan with"),
        ({"schedule": "lr", "alpha": 1.0, "power": 3}, r"power=3; choose 1 or 2"),
        ({"alpha": 1.0}, r"alpha=1\.0 with schedule='constant'; leave it out, or set schedule='lr'"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(mixture: Mixture, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertAverager(mixture(4), **{"schedule": "constant", "total_steps": 10, **arguments})


def test_share_rate_error_names_the_layer_where_layers_differ(mixture: Mixture) -> None:
    with pytest.raises(ValueError, match=r"share_rate=0\.6 with 2 experts in 1; .* = 0\.5$"):
        ExpertAverager(nn.Sequential(mixture(4), mixture(2)), 0.6, "constant")


@pytest.mark.parametrize("num_experts", range(2, 13))
def test_the_limit_that_the_error_states_is_accepted(mixture: Mixture, num_experts: int) -> None:
    layer = mixture(num_experts)
    with pytest.raises(ValueError, match="choose 0 to") as caught:
        ExpertAverager(layer, 0.99, "constant")
    limit = float(str(caught.value).rpartition("= ")[2])
    averager = ExpertAverager(layer, limit, "constant")
    averager.step()
    assert averager.statistics()[""].spread < 1e-3


def test_a_dense_model_is_refused(transformer: Build) -> None:
    with pytest.raises(ValueError, match=r"Transformer has no mixture of experts to average; upcycle\(\) it first"):
        ExpertAverager(transformer(), 0.3, "constant")


def test_a_copied_model_is_not_averaged_with_the_original(mixture: Mixture) -> None:
    layer = mixture(3)
    twin = copy.deepcopy(layer)
    before = [stack.detach().clone() for stack in twin.parameters()]
    ExpertAverager(layer, 0.5, "constant").step()
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), before, strict=True))


# The schedule that follows the learning rate


@laws
@given(st.integers(2, 6), st.floats(0.05, 1), st.floats(0, 2), st.sampled_from([1, 2]))
def test_coupling_is_a_power_of_the_learning_rate_up_to_its_peak(
    mixture: Mixture, num_experts: int, part: float, lr: float, power: int
) -> None:
    layer = mixture(num_experts)
    share_rate = part * (num_experts - 1) / num_experts
    averager = ExpertAverager(layer, share_rate, "lr", alpha=1.5, power=power)
    before = averager.statistics()[""].spread
    averager.step(lr)
    gamma = min(share_rate * num_experts / (num_experts - 1), (lr / 1.5) ** power)
    after = averager.statistics()[""]
    assert after.spread == pytest.approx(before * (1 - gamma), rel=1e-9, abs=1e-9)
    assert after.share_rate == pytest.approx(gamma * (num_experts - 1) / num_experts)


def test_the_learning_rate_is_that_of_the_attached_optimizers_experts(mixture: Mixture) -> None:
    model = nn.ModuleDict({"mlp": mixture(4), "head": nn.Linear(5, 5).double()})
    stacks = list(model["mlp"].parameters())
    groups = [{"params": stacks[:1], "lr": 0.5}, {"params": stacks[1:], "lr": 0.25}]
    optimizer = torch.optim.SGD([*groups, {"params": model["head"].parameters(), "lr": 9.0}])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 1 / (1 + step)] * 3)
    averager = ExpertAverager(model, 0.75, "lr", alpha=1.0).attach(optimizer)
    for step in range(4):
        before = averager.statistics()["mlp"].spread
        optimizer.step()
        scheduler.step()
        after = averager.statistics()["mlp"]
        assert after.spread == pytest.approx(before * (1 - (0.5 / (1 + step)) ** 2), rel=1e-12)
        assert after.share_rate == pytest.approx(0.75 * (0.5 / (1 + step)) ** 2)
    assert averager.state_dict() == {"steps_done": 4}


def test_following_the_learning_rate_needs_one_and_keeps_to_its_window(mixture: Mixture) -> None:
    averager = ExpertAverager(mixture(4), 0.75, "lr", 10, alpha=1.0, start=0.5)
    averager.step()  # before the window nothing is averaged, at whatever rate
    averager.load_state_dict({"steps_done": 5})
    with pytest.raises(ValueError, match=r"needs the learning rate of the step; attach\(optimizer\), or step\(lr="):
        averager.step()
    assert averager.steps_done == 5
    assert averager.share_rate_at(4, 1.0) == 0
    assert averager.share_rate_at(5, 1.0) == 0.75
