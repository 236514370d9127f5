"""What each of two processes does with experts: data parallel and sharded training, merging, checkpoints."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from two_processes import CAN_SHARD

from pc_ewa.ewa import (
    ExpertAverager,
    dense_state_dict,
    expert_layers,
    expert_shard_placement,
    merge_experts,
    upcycle,
    whole_copy,
)
from pc_ewa.models.transformer import Block, Mlp

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


def raised(function: Callable[..., Any], *arguments: Any) -> str:
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return "nothing"


def merging_a_sharded_model(rank: int) -> dict[str, Any]:
    model = build_with_all_sorts()
    shard_experts(model)
    fully_shard(model)
    errors = [raised(merge_experts, model), raised(next(iter(expert_layers(model).values())).fuse)]
    dense = nn.Sequential(Mlp(8, 16), Mlp(8, 16))
    errors.append(raised(upcycle, fully_shard(dense)))
    torch.manual_seed(0)
    x = torch.randn(4, 5, 3, dtype=torch.double)
    with torch.no_grad():
        model.eval()(x)  # which may leave whole parameters in place
    copied = whole_copy(model)
    assert copied[-1].weight is copied[0].weight
    classes = [type(module).__name__ for module in copied.modules()]
    outputs = model(x), copied(x), merge_experts(copied)(x)
    return {"errors": errors, "dense": dense_state_dict(model), "outputs": outputs, "classes": classes}


def build_with_all_sorts() -> nn.Module:
    """Tied weights, a buffer, a hook of the host's own, and a way from a module to its host."""
    model = build()
    model.append(nn.BatchNorm1d(5).double()).append(nn.Linear(8, 3, bias=False).double())
    model.append(nn.Linear(3, 8, bias=False).double())
    model[-1].weight = model[0].weight
    model.register_forward_hook(lambda module, inputs, output: output + 1)
    model[1].mlp.__dict__["host"] = model[1]
    return model


def statistics_of_a_sharded_model(rank: int) -> dict[str, Any]:
    model = build()
    averager = ExpertAverager(model, 0.5, "constant")
    before = averager.statistics()
    shard_experts(model)  # without the model each of them is a root, which keeps whole weights after a forward
    with torch.no_grad():
        half_loss(model, 0, rank)
    averager.step()
    after = averager.statistics()
    whole = whole_copy(model)
    copies = build()
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "parts"))
    for layer in expert_layers(copies).values():
        fully_shard(layer, mesh=mesh, shard_placement_fn=expert_shard_placement)
    return {
        "before": before,
        "after": after,
        "whole": ExpertAverager(whole, 0.5, "constant").statistics(),
        "copies": ExpertAverager(copies, 0.5, "constant").statistics(),
    }


def added_to_in_place(rank: int) -> dict[str, Any]:
    """A host that adds to the output of its FFN in place, which takes FSDP2's hooks off a view."""

    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = Mlp(8, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.mlp(x)
            y += x
            return y

    gradients = []
    for sharded in (False, True):
        torch.manual_seed(0)
        model = upcycle(nn.Sequential(Host(), Host()).double(), 2, "all", init="independent")
        if sharded:
            shard_experts(model)
            fully_shard(model)
        torch.manual_seed(1)
        model(torch.randn(4, 5, 8, dtype=torch.double)).square().mean().backward()
        gradients.append([p.grad.full_tensor() if sharded else p.grad for p in model.parameters()])
    return {"gradients": gradients}


def checkpoints_of_a_sharded_model(rank: int, folder: str) -> dict[str, Any]:
    """Two steps, a checkpoint of parts and one that is gathered, and two more steps from each."""
    model, optimizer, averager = sharded_and_set_up()
    train_steps(model, optimizer, averager, rank, 0, 2)
    state = state_of(model, optimizer, averager)
    checkpoint.save(state, checkpoint_id=f"{folder}/parts")
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = {
        "model": get_model_state_dict(model, options=whole),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=whole),
    }
    train_steps(model, optimizer, averager, rank, 2, STEPS)
    expected = unsharded(model)

    model, optimizer, averager = sharded_and_set_up()
    state = state_of(model, optimizer, averager)
    checkpoint.load(state, checkpoint_id=f"{folder}/parts")
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    averager.load_state_dict(state["averager"])
    train_steps(model, optimizer, averager, rank, 2, STEPS)
    from_parts = unsharded(model)

    model, optimizer, averager = sharded_and_set_up()
    one = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, gathered["model"], options=one)
    set_optimizer_state_dict(model, optimizer, gathered["optimizer"], options=one)
    averager.load_state_dict({"steps_done": 2})
    train_steps(model, optimizer, averager, rank, 2, STEPS)
    same_keys = rank or list(gathered["model"]) == list(build().state_dict())
    return {"expected": expected, "parts": from_parts, "gathered": unsharded(model), "same_keys": same_keys}


def sharded_and_set_up() -> tuple[nn.Module, torch.optim.Optimizer, ExpertAverager]:
    model = build()
    shard_experts(model)
    fully_shard(model)
    return model, *optimizer_and_averager(model)


def train_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, averager: ExpertAverager, rank: int, start: int, end: int
) -> None:
    for step in range(start, end):
        optimizer.zero_grad()
        half_loss(model, step, rank).backward()
        optimizer.step()
        averager.step()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, averager: ExpertAverager) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "averager": averager.state_dict(),
    }


def sharded_too_late(rank: int) -> dict[str, Any]:
    """The optimizer holds what the model had before fully_shard."""
    model = build()
    optimizer, averager = optimizer_and_averager(model)
    early = build()
    early_optimizer, early_averager = optimizer_and_averager(early)
    early_averager.attach(early_optimizer)
    for each in (model, early):
        shard_experts(each)
    return {"errors": [raised(averager.attach, optimizer), raised(early_optimizer.step)]}


def sharded_model_trained(rank: int) -> dict[str, Any]:
    model = build()
    shard_experts(model)
    fully_shard(model)
    weights, communicated = train_in_parallel(model, rank)
    return {"weights": weights, "communicated": communicated}


def experts_sharded_on_axis_0(rank: int) -> dict[str, Any]:
    model = build()
    fully_shard(model)
    averager = ExpertAverager(model, 0.5, "constant")
    attach = partial(averager.attach, torch.optim.SGD(model.parameters(), 0.1))
    return {"errors": [raised(averager.step), raised(averager.statistics), raised(attach)]}


SCENARIOS: list[Callable[[int], dict[str, Any]]] = [
    data_parallel,
    sharded_experts_averaged_once,
    sharded_model_trained,
    experts_sharded_on_axis_0,
    merging_a_sharded_model,
    statistics_of_a_sharded_model,
    added_to_in_place,
    sharded_too_late,
]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = {scenario.__name__: scenario(rank) for scenario in (SCENARIOS if CAN_SHARD else [data_parallel])}
    if CAN_SHARD:
        results["checkpoints"] = checkpoints_of_a_sharded_model(rank, folder)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
