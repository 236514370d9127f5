"""Golden test 8: two processes train the model that one process trains, and averaging needs no communication."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from pc_ewa.ewa import (
    ExpertAverager,
    dense_state_dict,
    expert_layers,
    expert_shard_placement,
    merge_experts,
    upcycle,
)
from pc_ewa.models.transformer import Block

STEPS = 4
State = dict[str, Tensor]


def build() -> nn.Module:
    """Experts that differ from the start, and more tokens than they divide."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), *(Block(8, 2, 2.0, 0.0) for _ in range(2)), nn.LayerNorm(8)).double()
    return upcycle(model, 3, "all", init="independent")


def half_loss(model: nn.Module, step: int, rank: int) -> Tensor:
    """Loss of one half of the batch of a step, dealt to the experts by a seed of its own."""
    generator = torch.Generator().manual_seed(100 + 2 * step + rank)
    x, target = (torch.randn(4, 5, size, generator=generator, dtype=torch.double) for size in (3, 8))
    torch.manual_seed(200 + 2 * step + rank)
    return (model(x) - target).square().mean()


def optimizer_and_averager(model: nn.Module) -> tuple[torch.optim.Optimizer, ExpertAverager]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return optimizer, ExpertAverager(model, 0.5, "linear", total_steps=STEPS)


def train_alone() -> State:
    model = build()
    optimizer, averager = optimizer_and_averager(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        for half in range(2):
            (half_loss(model, step, half) / 2).backward()
        optimizer.step()
        averager.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


# In each of the two processes


def train_in_parallel(model: nn.Module, rank: int) -> tuple[State, int]:
    """Train; return all weights, unsharded, and how often the averaging communicated."""
    optimizer, averager = optimizer_and_averager(model)
    communicated = 0
    for step in range(STEPS):
        optimizer.zero_grad()
        half_loss(model, step, rank).backward()
        optimizer.step()
        with CommDebugMode() as communication:
            averager.step()
        communicated += communication.get_total_counts()
    return unsharded(model), communicated


def unsharded(model: nn.Module) -> State:
    return {
        name.removeprefix("module."): (p.full_tensor() if isinstance(p, DTensor) else p).detach()
        for name, p in model.named_parameters()
    }


def shard_experts(model: nn.Module) -> None:
    for layer in expert_layers(model).values():
        fully_shard(layer, shard_placement_fn=expert_shard_placement)


def data_parallel(rank: int) -> dict[str, Any]:
    with CommDebugMode() as control:
        dist.all_reduce(torch.ones(1))
    weights, communicated = train_in_parallel(DistributedDataParallel(build()), rank)
    others = [torch.empty_like(w) for w in weights.values()]
    for other, weight in zip(others, weights.values(), strict=True):
        dist.broadcast(other.copy_(weight), src=0)
    same = all(torch.equal(a, b) for a, b in zip(others, weights.values(), strict=True))
    return {"weights": weights, "communicated": communicated, "same": same, "control": control.get_total_counts()}


def sharded_experts_averaged_once(rank: int) -> dict[str, Any]:
    model = build()
    averager = ExpertAverager(model, 0.5, "constant")  # built before the model is sharded, on purpose
    shard_experts(model)
    local = [stack.to_local().shape for layer in expert_layers(model).values() for stack in layer.parameters()]
    with CommDebugMode() as communication:
        averager.step()
    return {"weights": unsharded(model), "communicated": communication.get_total_counts(), "local": local}


def merging_a_sharded_model(rank: int) -> dict[str, Any]:
    model = build()
    shard_experts(model)
    errors = []
    for merge in (merge_experts, dense_state_dict):
        try:
            merge(model)
        except ValueError as error:
            errors.append(str(error))
    return {"errors": errors}


def sharded_model_trained(rank: int) -> dict[str, Any]:
    model = build()
    shard_experts(model)
    fully_shard(model)
    weights, communicated = train_in_parallel(model, rank)
    return {"weights": weights, "communicated": communicated}


def experts_sharded_on_axis_0(rank: int) -> dict[str, Any]:
    model = build()
    fully_shard(model)
    try:
        ExpertAverager(model, 0.5, "constant").step()
    except ValueError as error:
        return {"error": str(error)}
    return {"error": "none"}


SCENARIOS: list[Callable[[int], dict[str, Any]]] = [
    data_parallel,
    sharded_experts_averaged_once,
    sharded_model_trained,
    experts_sharded_on_axis_0,
    merging_a_sharded_model,
]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = {scenario.__name__: scenario(rank) for scenario in SCENARIOS}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


# In the test process


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each of two processes found; all scenarios in one start, which is most of the time."""
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))  # where the new processes import this file from
        spawn(importlib.import_module(Path(__file__).stem).work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def check_weights(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=0, atol=1e-12, msg=lambda text, name=name: name + text)


def test_golden_8_two_processes_train_what_one_trains_on_the_whole_batch(results: list) -> None:
    expected = train_alone()
    start = dict(build().named_parameters())
    assert all((weight - start[name]).abs().max() > 1e-3 for name, weight in expected.items() if "qkv" not in name)
    for rank in range(2):
        check_weights(results[rank]["data_parallel"]["weights"], expected)
        assert results[rank]["data_parallel"]["same"], "all ranks must hold bit-equal weights"


def test_golden_8_averaging_needs_no_communication_under_ddp(results: list) -> None:
    for result in results:
        assert result["data_parallel"]["control"] == 1, "the counter must count"
        assert result["data_parallel"]["communicated"] == 0


def test_golden_8_averaging_of_sharded_experts_is_local_and_exact(results: list) -> None:
    model = build()
    full = [stack.shape for layer in expert_layers(model).values() for stack in layer.parameters()]
    ExpertAverager(model, 0.5, "constant").step()
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for result in results:
        scenario = result["sharded_experts_averaged_once"]
        check_weights(scenario["weights"], expected)
        assert scenario["communicated"] == 0
        assert scenario["local"] == [(shape[0], shape[1] // 2, *shape[2:]) for shape in full]


def test_golden_8_fully_sharded_model_trains_what_one_process_trains(results: list) -> None:
    expected = train_alone()
    for result in results:
        check_weights(result["sharded_model_trained"]["weights"], expected)
        assert result["sharded_model_trained"]["communicated"] == 0


def test_merging_a_sharded_model_says_what_to_do(results: list) -> None:
    for result in results:
        errors = result["merging_a_sharded_model"]["errors"]
        assert len(errors) == 2
        assert all("is sharded over processes; load the full state_dict into a whole model" in e for e in errors)


def test_golden_8_experts_sharded_on_axis_0_are_refused(results: list) -> None:
    for result in results:
        assert result["experts_sharded_on_axis_0"]["error"] == (
            "experts sharded on axis 0; pass shard_placement_fn=expert_shard_placement to fully_shard"
        )
