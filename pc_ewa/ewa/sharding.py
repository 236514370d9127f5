"""Models that FSDP2 shards over processes: the axis on which experts are split, and an unsharded copy."""

import copy
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import Shard

Model = TypeVar("Model", bound=nn.Module)

SHARDED_ON_AXIS_0 = "experts sharded on axis 0; pass shard_placement_fn=expert_shard_placement to fully_shard"


def expert_shard_placement(parameter: nn.Parameter) -> "Shard":
    """Return the placement of a stack of experts for FSDP2, as its `shard_placement_fn`.

    It splits the stack on axis 1, or on the first axis after it that the number of processes divides, as FSDP2
    requires. The expert axis 0 stays whole on every process, so that averaging needs no communication. Shard every
    mixture with it first, and then the model as usual:

        for layer in expert_layers(model).values():
            fully_shard(layer, shard_placement_fn=expert_shard_placement)
        fully_shard(model)

    Example:
        >>> stack = nn.Parameter(torch.rand(4, 32, 8))  # (experts, out, in)
        >>> pc_ewa.ewa.expert_shard_placement(stack)
        Shard(dim=1)
    """
    from torch.distributed.tensor import Shard  # takes half a second to import, and few callers need it

    return Shard(shard_axis(tuple(parameter.shape), dist.get_world_size() if dist.is_initialized() else 1) or 1)


def shard_axis(shape: tuple[int, ...], processes: int) -> int | None:
    """Return the axis on which a stack of experts is split over `processes`. None means that no axis can be split."""
    return next((axis for axis in range(1, len(shape)) if shape[axis] % processes == 0), None)


def is_sharded(model: nn.Module) -> bool:
    """Return True if FSDP2 shards the model, or if it holds DTensors for another reason, such as tensor parallelism."""
    # After a forward without a backward FSDP2 leaves unsharded parameters in its modules, so these parameters alone do
    # not show it. Its modules always have the method `reshard`.
    by_fsdp = any(hasattr(module, "reshard") for module in model.modules())
    return by_fsdp or any(hasattr(parameter, "placements") for parameter in model.parameters())


def local_part(tensor: Tensor) -> Tensor:
    """Return the local part of a DTensor, which shares its memory. Any other tensor is returned as it is."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def local_stack(stack: Tensor, num_experts: int) -> Tensor:
    """Return the local part of a stack (N, ...), which has a part of every expert.

    Raises:
        ValueError: this process holds only some of the experts, so that it cannot average them.
    """
    if any(placement.is_shard(0) for placement in getattr(stack, "placements", ())):
        raise ValueError(SHARDED_ON_AXIS_0)
    local = local_part(stack)
    if local.shape[:1] != (num_experts,):
        raise ValueError(
            f"experts in a parameter of shape {tuple(local.shape)}, not a stack of {num_experts}: it was flattened or "
            "emptied, as FSDP1 and ZeRO-3 do; shard with torch.distributed.fsdp.fully_shard"
        )
    return local


@torch.no_grad()
def whole_copy(model: Model) -> Model:
    """Copy a model and gather each parameter that is sharded over processes. The copy is not sharded.

    All processes must call it together, and each gets the copy. A model that is not sharded is simply copied.

    Example:
        >>> model = pc_ewa.upcycle(nn.TransformerEncoderLayer(8, 2, 32), layers="all")
        >>> merged = pc_ewa.merge_experts(pc_ewa.ewa.whole_copy(model))
        >>> len(pc_ewa.ewa.expert_layers(model)), len(pc_ewa.ewa.expert_layers(merged))
        (1, 0)
    """
    if not is_sharded(model):
        return copy.deepcopy(model)
    from torch.distributed.fsdp import FSDPModule

    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.reshard()  # unsharded parameters that a forward left in place may be older than the latest step
    # Entries of deepcopy's memo are taken as copies that exist already: gathered parameters for sharded ones.
    memo: dict[int, Any] = {id(parameter): _whole(parameter) for parameter in model.parameters()}
    # FSDP2 makes a module an instance of a subclass that refuses deepcopy (torch 2.6 to 2.13). So the copy is made as
    # an empty object of the class before, and filled afterwards without FSDP2's hooks. All empty copies are in the memo
    # before the first is filled, because modules may refer to each other.
    memo |= {id(module): object.__new__(_class_before(type(module), FSDPModule)) for module in sharded}
    for module in sharded:
        memo[id(module)].__dict__.update(copy.deepcopy(_own(module), memo))
    whole = copy.deepcopy(model, memo)
    for part in whole.modules():
        # Marks that would make torch treat the copy as sharded.
        for mark in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            part.__dict__.pop(mark, None)
    return whole


def _whole(parameter: nn.Parameter) -> nn.Parameter:
    data = parameter.detach()
    # A clone, because full_tensor() can return a view of the parameter itself, on one process for example.
    whole = data.full_tensor() if hasattr(data, "full_tensor") else data
    return nn.Parameter(whole.clone(), parameter.requires_grad)


def _class_before(sharded: type, added: type) -> type:
    """Return the class that a module had before FSDP2 replaced it by a subclass."""
    return next(each for each in sharded.__mro__ if issubclass(each, nn.Module) and not issubclass(each, added))


def _own(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module without the states and hooks that torch.distributed has added."""
    own = {key: value for key, value in module.__dict__.items() if not key.startswith("__composable_api")}
    hooks = {key: value for key, value in own.items() if "hooks" in key and isinstance(value, dict)}
    return own | {
        key: type(value)((number, hook) for number, hook in value.items() if not _is_of_torch(hook))
        for key, value in hooks.items()
    }


def _is_of_torch(hook: object) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith("torch.distributed")
