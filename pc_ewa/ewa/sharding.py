"""Models that FSDP2 shards over processes: where their experts are split, and a whole copy of them."""

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
    """`shard_placement_fn` for FSDP2: splits stacks of experts on another axis than theirs; averaging stays local.

    That is axis 1, or the first after it that the processes divide, as FSDP2 demands. Shard every mixture with it
    first, and then the model as usual:

        for layer in expert_layers(model).values():
            fully_shard(layer, shard_placement_fn=expert_shard_placement)
        fully_shard(model)
    """
    from torch.distributed.tensor import Shard  # half a second to import, and few need it

    return Shard(shard_axis(tuple(parameter.shape), dist.get_world_size() if dist.is_initialized() else 1) or 1)


def shard_axis(shape: tuple[int, ...], processes: int) -> int | None:
    """Return the axis on which a stack of experts is split over so many processes, None if no axis can be."""
    return next((axis for axis in range(1, len(shape)) if shape[axis] % processes == 0), None)


def is_sharded(model: nn.Module) -> bool:
    """Return True if FSDP2 shards the model, or if it holds DTensors for another reason, such as tensor parallelism."""
    # A forward pass without a backward may have left whole parameters in place: modules of FSDP2 tell by `reshard`.
    by_fsdp = any(hasattr(module, "reshard") for module in model.modules())
    return by_fsdp or any(hasattr(parameter, "placements") for parameter in model.parameters())


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a DTensor that this process holds, sharing its memory; any other tensor as it is."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def local_stack(stack: Tensor, num_experts: int) -> Tensor:
    """Return what this process holds of a stack (N, ...): a part of every expert.

    Raises:
        ValueError: a part of some experts only, which cannot be averaged here.
    """
    if any(placement.is_shard(0) for placement in getattr(stack, "placements", ())):
        raise ValueError(SHARDED_ON_AXIS_0)
    local = local_part(stack)
    if local.shape[:1] != (num_experts,):
        raise ValueError(
            f"experts in a parameter of shape {tuple(local.shape)}, no stack of {num_experts}: something has flattened "
            "or emptied them, as FSDP1 and ZeRO-3 do; shard with torch.distributed.fsdp.fully_shard"
        )
    return local


@torch.no_grad()
def whole_copy(model: Model) -> Model:
    """Copy a model, with the whole of each parameter that is sharded over processes; it is sharded no more.

    All processes call it together, and each gets the copy. A model that is not sharded is copied as it is.

        merged = merge_experts(whole_copy(model))
    """
    if not is_sharded(model):
        return copy.deepcopy(model)
    from torch.distributed.fsdp import FSDPModule

    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.reshard()  # what a forward pass left in place may be of before the latest step
    memo: dict[int, Any] = {id(parameter): _whole(parameter) for parameter in model.parameters()}
    # FSDP2 refuses deepcopy of its modules, which are the host's with another class and hooks. Without these, a memo
    # of copies that are yet empty lets them refer to each other.
    memo |= {id(module): object.__new__(_class_before(type(module), FSDPModule)) for module in sharded}
    for module in sharded:
        memo[id(module)].__dict__.update(copy.deepcopy(_own(module), memo))
    whole = copy.deepcopy(model, memo)
    for part in whole.modules():
        for mark in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            part.__dict__.pop(mark, None)
    return whole


def _whole(parameter: nn.Parameter) -> nn.Parameter:
    data = parameter.detach()
    # Gathered, it may be a view of memory that others use.
    whole = data.full_tensor() if hasattr(data, "full_tensor") else data
    return nn.Parameter(whole.clone(), parameter.requires_grad)


def _class_before(sharded: type, added: type) -> type:
    """Return the class that a module had before FSDP2 gave it one of its own."""
    return next(each for each in sharded.__mro__ if issubclass(each, nn.Module) and not issubclass(each, added))


def _own(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module without what torch.distributed added: states, and hooks among the others."""
    own = {key: value for key, value in module.__dict__.items() if not key.startswith("__composable_api")}
    hooks = {key: value for key, value in own.items() if "hooks" in key and isinstance(value, dict)}
    return own | {
        key: type(value)((number, hook) for number, hook in value.items() if not _is_of_torch(hook))
        for key, value in hooks.items()
    }


def _is_of_torch(hook: object) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith("torch.distributed")
