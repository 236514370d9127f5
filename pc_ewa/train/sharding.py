"""FSDP2 in a run: shard a model over the processes, and gather its states whole for checkpoints."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pc_ewa.errors import ConfigError
from pc_ewa.ewa import expert_layers, expert_shard_placement
from pc_ewa.ewa.sharding import is_sharded, shard_axis
from pc_ewa.models.transformer import Block
from pc_ewa.train.distributed import World

State = dict[str, Any]


def check_sharding(model: nn.Module, world: World) -> None:
    """Raise ConfigError if this torch, or these processes, cannot shard the model."""
    if world.device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise ConfigError(
            f"train.sharding=fsdp with device=cpu: torch {torch.__version__} shards on GPUs alone; use a newer torch, "
            "or train.sharding=none"
        )
    for name, layer in expert_layers(model).items():
        for key, stack in layer.named_parameters():
            if shard_axis(tuple(stack.shape), world.size) is None:
                raise ConfigError(
                    f"train.sharding=fsdp over {world.size} processes: they divide no axis of {name}.{key} "
                    f"{tuple(stack.shape)} but that of the experts; take another number of processes, or "
                    "train.sharding=none"
                )


def shard(model: nn.Module, world: World) -> None:
    """Shard a model over all processes, in place: experts, blocks, then the rest. Create the optimizer afterwards.

    Parameters move to the device module by module, so that the whole model need not fit there.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Newer torch warns about module outputs that are views, because an in-place change of one would break the backward
    # hooks. No objective changes outputs in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    # Given explicitly: the default mesh takes GPUs wherever there are any, even for a run with device=cpu.
    mesh = init_device_mesh(world.device.type, (world.size,))
    # Inner modules first: fully_shard() of an outer module takes the parameters that are not sharded yet.
    for layer in expert_layers(model).values():
        fully_shard(layer, mesh=mesh, shard_placement_fn=expert_shard_placement)
    for module in list(model.modules()):
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    # By default a root stays unsharded after a forward pass. Code that changes parameters after a forward without a
    # backward, such as the averager after an evaluation, would then change the unsharded copy.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, a collective. Any other tensor is returned as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_state(state: State, world: World) -> State:
    """Gather a state_dict that may be sharded. A collective, after which only the main process has the tensors.

    Gathered tensors are on the CPU. A state that is not sharded is returned as it is.
    """
    if not any(hasattr(leaf, "full_tensor") for leaf in tree_leaves(state)):
        return state

    def gather(value: Any) -> Any:
        if not hasattr(value, "full_tensor"):
            return value
        gathered = whole(value)
        return gathered.cpu() if world.is_main else None

    gathered: State = tree_map(gather, state)
    if hasattr(state, "_metadata"):  # the versions of the modules, which torch keeps beside the weights
        gathered._metadata = state._metadata  # type: ignore[attr-defined]
    return gathered


def load_model(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a whole state_dict into a model that may be sharded. Raises the errors of `load_state_dict`."""
    if is_sharded(model):
        own = model.state_dict()
        state = {key: _sharded_like(own.get(key), value) for key, value in state.items()}
    model.load_state_dict(state)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a whole state_dict into an optimizer with parameters that may be sharded. Errors: see `load_state_dict`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(hasattr(parameter, "placements") for parameter in parameters):
        of_each = {
            index: {key: _sharded_like(parameters[index], value) for key, value in values.items()}
            for index, values in state["state"].items()
            if index < len(parameters)  # load_state_dict() raises for surplus entries
        }
        state = {**state, "state": of_each}
    optimizer.load_state_dict(dict(state))


def _sharded_like(own: Any, value: Any) -> Any:
    """Return this process's shard of a whole tensor, split as `own` is. Other values are returned as they are."""
    if not hasattr(own, "placements") or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = own.device_mesh
    whole = DTensor.from_local(value.to(own.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=own.placements)  # from Replicate each process slices locally, without traffic
