"""Costs: FLOPs by hand, turns that rotate, and nothing measured twice."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pc_ewa.compare import Plan, costs
from pc_ewa.compare.sweep import final_runs
from pc_ewa.config import Experiment
from pc_ewa.train.distributed import World, join_world
from pc_ewa.train.restored import at_inference
from pc_ewa.train.setup import Setup, build

Make = Callable[..., Plan]


class Attention(nn.Module):
    """A layer, and fused attention, which the counter of torch does not know on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 24)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.layer(tokens).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(query, key, value)


def test_flops_are_two_for_each_multiply_add() -> None:
    layer = 2 * (5 * 16) * 8 * 24
    attention = 2 * (2 * 5 * 16 * 16 * 8)  # queries with keys, weights with values
    assert costs.count_flops(Attention(), [torch.rand(5, 16, 8)]) == layer + attention


def test_all_take_turns_in_an_order_that_rotates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "MAX_ROUNDS", 6)
    order: list[str] = []

    def side(name: str) -> Callable[[int], float]:
        return lambda part: order.append(name) or part  # type: ignore[func-returns-value]

    rounds = costs.take_turns({name: side(name) for name in "abc"})
    assert ["".join(order[i : i + 3]) for i in range(0, len(order), 3)] == [
        "abc",
        "bca",
        "cab",
        "abc",
        "bca",
        "cab",
        "abc",
    ]
    assert rounds == {name: [(turn + 0.5) / 6 for turn in range(6)] for name in "abc"}  # all over training


def test_experts_cost_parameters_in_training_alone(plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a second call measures nothing; other settings do."""
    monkeypatch.setattr(costs, "SECONDS", 0.0)
    gate = {"title": "naive", "changes": ["ewa.gate.balance_weight=0.01", "ewa.share_rate=0"]}
    ema = {"title": "EMA", "changes": ["ewa=null", "average.kind=ema"]}
    variants = {
        "dense": {"title": "dense", "changes": ["ewa=null"]},
        "ewa": {"title": "EWA"},
        "naive": gate,
        "ema": ema,
    }
    made = plan("sweep=null", variants=variants)
    runs = final_runs(made)
    measured = costs.measure_costs(made, runs, {})
    found = measured["variants"]
    dense, ewa, naive = found["dense"], found["ewa"], found["naive"]
    ffn = 2 * 16 * 64 + 64 + 16
    assert dense["params_training"] == dense["params_inference"] == ewa["params_inference"]
    assert ewa["params_training"] == dense["params_training"] + ffn  # one FFN of two became two experts
    assert naive["params_inference"] == naive["params_training"] > ewa["params_training"]
    assert dense["flops"] == ewa["flops"] == found["ema"]["flops"] > 0
    assert dense["step_ratio"] == 1.0
    assert all(entry[f"{what}_seconds"] > 0 for entry in found.values() for what in ("step", "inference"))

    built: list[object] = []
    build = costs.build
    monkeypatch.setattr(costs, "build", lambda *arguments: built.append(1) or build(*arguments))
    assert costs.measure_costs(made, runs, measured) is measured
    assert built == []
    costs.measure_costs(made, {"dense": runs["dense"]}, measured)
    assert built == [1]


def test_times_are_per_cloud_and_ratios_to_the_baseline(plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of a round lie all over training, where each has its share rate."""
    steps: list[tuple[int, int]] = []
    seconds = {"dense": iter([9.0, 1.0, 2.0, 4.0, 4.0, 4.0]), "ewa": iter([9.0, 4.0, 3.0, 2.0, 10.0, 6.0])}

    def step(setup: Setup, experiment: Experiment, world: World, model: nn.Module, number: int) -> None:
        if setup.averager:
            steps.append((number, setup.averager.steps_done))

    def fake(work: Callable[[], object], world: World) -> float:
        before = len(steps)
        is_step = work() is None
        return next(seconds["ewa" if len(steps) > before else "dense"]) if is_step else 4.0

    monkeypatch.setattr(costs, "MAX_ROUNDS", 5)
    monkeypatch.setattr(costs, "train_step", step)
    monkeypatch.setattr(costs, "_seconds", fake)
    made = plan("sweep=null")
    found = costs.measure_costs(made, final_runs(made), {})["variants"]
    assert steps == [(2, 2), (0, 0), (1, 1), (2, 2), (2, 2), (3, 3)]  # once to warm up; of 4 steps
    assert (found["dense"]["step_seconds"], found["ewa"]["step_seconds"]) == (4.0, 4.0)
    assert found["ewa"]["step_ratio"] == 1.5  # the median of 4, 3/2, 2/4, 10/4 and 6/4
    assert found["ewa"]["inference_seconds"] == 4.0 / 8

    experiment = made.resolve(final_runs(made)["ewa"][0])
    with join_world("cpu") as world:
        model = at_inference(build(experiment, world).model.eval())
    assert found["ewa"]["flops"] == costs.count_flops(model, [torch.rand(1, 48, 3)])
