"""Dense model <-> mixtures of experts, in place: finds the FFNs, upcycles some of them, merges them back."""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn

from pc_ewa.ewa.experts import ExpertFFN, Init, PartitionScope, merge_stack

Layers = str | Sequence[int]
FFNChoice = str | Sequence[str] | Callable[[str, nn.Module], bool]

LOOKED_FOR = (
    "a module of two nn.Linear layers (C -> H -> C) and nothing else with parameters (ours, timm Mlp, torchvision "
    "MLPBlock, transformers ViTMLP), linear1 and linear2 (torch.nn.TransformerEncoderLayer), or intermediate and "
    "output.dense (older transformers)"
)
# Hosts that keep the parts of their FFN side by side, in the order in which they compute.
_SPLIT_LAYOUTS = (("linear1", "activation", "dropout", "linear2"), ("intermediate", "output.dense"))
# torch's fused inference kernels read linear1.weight themselves: off while a mixture stands in its place.
_FAST_PATHS: dict[str, Any] = {"activation_relu_or_gelu": 0, "use_nested_tensor": False}
_FAST_PATHS_BEFORE = "_fast_paths_before_upcycle"


class _Site(NamedTuple):
    """Where an FFN is: the module that holds it, and its parts there (dotted, in order of computation)."""

    host: nn.Module
    parts: tuple[str, ...]


class _SplitFFN(nn.Sequential):
    """An FFN put together from the parts of a host that keeps them side by side."""

    def __init__(self, host: nn.Module, parts: tuple[str, ...]) -> None:
        found = [_get(host, part) for part in parts]
        super().__init__(*(part if isinstance(part, nn.Module) else _Function(part) for part in found))
        self.parts = parts


class _Function(nn.Module):
    """An activation that its host holds as a plain function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def upcycle(
    model: nn.Module,
    num_experts: int = 4,
    layers: Layers = "every-2",
    init: Init = "copy",
    partition: PartitionScope = "batch",
    ffn: FFNChoice | None = None,
) -> nn.Module:
    """Replace some FFNs of a transformer by mixtures of experts, in place.

    Build the optimizer afterwards: it has to hold the experts' parameters.

    Args:
        model: any module whose FFNs are found by structure, or chosen by `ffn`.
        num_experts: experts of each mixture, at least 2.
        layers: which FFNs, counted in the order of `model.named_modules()`: "all"; "every-k" (the k-th, 2k-th, ...);
            "last-n"; or indices.
        init: "copy" or "independent", see `ExpertFFN`.
        partition: deal the tokens of the whole "batch" together, or of each "sample" apart.
        ffn: for models whose FFNs are not found: a name, a pattern such as "blocks.*.ffn", a list of them, or a
            predicate on (name, module). The modules must map (..., C) to (..., C) token by token. A model that should
            not be upcycled everywhere (a decoder that is thrown away, a frozen copy) says so itself, in an attribute
            `expert_ffns` of the same kind.

    Returns:
        The model itself.

    Raises:
        ValueError: no FFN found, a selection that is empty or out of range, or a model that has mixtures already.
    """
    if expert_layers(model):
        raise ValueError("the model has mixtures of experts already; merge_experts() it before upcycling again")
    sites = find_ffns(model, ffn)
    chosen = [sites[i] for i in select_layers(layers, len(sites))]
    _check_not_shared(model, chosen)
    mixtures = [ExpertFFN(_ffn_at(site), num_experts, init, partition) for site in chosen]
    for site, mixture in zip(chosen, mixtures, strict=True):
        _put(site.host, site.parts[0], mixture)
        for part in site.parts[1:]:
            _put(site.host, part, nn.Identity())
    _leave_fast_paths(model)
    return model


def merge_experts(model: nn.Module) -> nn.Module:
    """Replace every mixture by one FFN, the mean of its experts, in place: the original classes and keys again.

    A model without mixtures stays as it is. Returns the model itself.

    Raises:
        ValueError: the model is itself an `ExpertFFN`; call its `fuse()`.
    """
    if isinstance(model, ExpertFFN):
        raise ValueError("the model is itself one mixture; ffn = model.fuse() gives its merged FFN")
    _check_whole(model)
    for name, mixture in expert_layers(model).items():
        host_name, _, slot = name.rpartition(".")
        host, fused = model.get_submodule(host_name), mixture.fuse()
        if isinstance(fused, _SplitFFN):
            for part, module in zip(fused.parts, fused, strict=True):
                _put(host, part, module.function if isinstance(module, _Function) else module)
        else:
            _put(host, slot, fused)
    for module in model.modules():
        for flag, value in module.__dict__.pop(_FAST_PATHS_BEFORE, {}).items():
            setattr(module, flag, value)
    return model


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The merged weights under the host's own keys; the model goes on training as it is."""
    _check_whole(model)
    return merge_experts(copy.deepcopy(model)).state_dict()


def merged_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under its name in the merged model, those of mixtures by the mean of their experts.

    Only for mixtures that stand where one module was, as in all models here.
    """
    mixtures = tuple(f"{name}.experts." for name in expert_layers(model))
    for name, parameter in model.named_parameters():
        mixture = next((prefix for prefix in mixtures if name.startswith(prefix)), None)
        if mixture is None:
            yield name, parameter
        else:
            yield name.replace(mixture, mixture.removesuffix("experts."), 1), merge_stack(parameter)


def expert_layers(model: nn.Module) -> dict[str, ExpertFFN]:
    """Every mixture of the model by its dotted name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ExpertFFN)}


def find_ffns(model: nn.Module, ffn: FFNChoice | None = None) -> list[_Site]:
    """Find the FFNs of a model, in the order of `named_modules()`; `ffn` as in `upcycle`."""
    ffn = getattr(model, "expert_ffns", None) if ffn is None else ffn
    if ffn is not None:
        sites, last = [], ""
        for name, module in model.named_modules():
            # A pattern or predicate that fits an FFN often fits its parts too: the outermost module is meant.
            if not (last and name.startswith(f"{last}.")) and _chosen(ffn, name, module):
                sites.append(_Site(*_parent(model, name)))
                last = name
        if not sites:
            wanted = f"the predicate {ffn!r} accepted" if callable(ffn) else f"ffn={ffn!r} names"
            raise ValueError(f"{wanted} no module of {type(model).__name__}; its names are model.named_modules()")
        return sites
    sites = []
    for name, module in model.named_modules():
        split = next((layout for layout in _SPLIT_LAYOUTS if _has_split_ffn(module, layout)), None)
        if split:
            sites.append(_Site(module, split))
        elif name and _is_ffn(module):
            sites.append(_Site(*_parent(model, name)))
    if not sites:
        raise ValueError(
            f"{type(model).__name__} has no FFN that upcycle() knows; looked for {LOOKED_FOR}; "
            "name yours with ffn='pattern' or a predicate"
        )
    return sites


def select_layers(layers: Layers, count: int) -> list[int]:
    """Turn "all", "every-k", "last-n" or explicit indices into sorted indices below `count`."""
    if isinstance(layers, str):
        match = re.fullmatch(r"all|(every|last)-([1-9]\d*)", layers)
        if not match:
            raise ValueError(f"layers={layers!r}; choose 'all', 'every-k', 'last-n' or a list of indices")
        number = int(match[2] or 1)
        chosen = (
            list(range(max(0, count - number), count)) if match[1] == "last" else list(range(number - 1, count, number))
        )
        if not chosen or (match[1] == "last" and number > count):
            raise ValueError(f"layers={layers!r} asks for more than the {count} FFNs of the model")
        return chosen
    wrong = [i for i in layers if not 0 <= i < count]
    if wrong or not layers or len(set(layers)) < len(layers):
        raise ValueError(f"layers={list(layers)}; choose one or more different indices from 0 to {count - 1}")
    return sorted(layers)


def _chosen(ffn: FFNChoice, name: str, module: nn.Module) -> bool:
    if not name:
        return False
    if callable(ffn):
        return ffn(name, module)
    return any(fnmatchcase(name, pattern) for pattern in ([ffn] if isinstance(ffn, str) else ffn))


def _is_ffn(module: nn.Module) -> bool:
    children = list(module.children())
    linears = [child for child in children if type(child) is nn.Linear]
    if len(linears) != 2 or any(c not in linears and next(c.parameters(), None) is not None for c in children):
        return False
    if next(module.parameters(recurse=False), None) is not None:
        return False
    # H > C tells an FFN from two projections of an attention; where the names tell, any H will do.
    first, second = linears
    return _returns(first, second) and (hasattr(module, "fc1") or first.out_features > first.in_features)


def _has_split_ffn(module: nn.Module, layout: tuple[str, ...]) -> bool:
    parts = [_get(module, part) for part in layout]
    if any(part is None for part in parts):
        return False
    linears = [m for p in parts if isinstance(p, nn.Module) for m in p.modules() if type(m) is nn.Linear]
    return len(linears) == 2 and _returns(*linears)


def _returns(first: nn.Linear, second: nn.Linear) -> bool:
    """Whether the two map C -> H -> C."""
    return first.in_features == second.out_features and first.out_features == second.in_features


def _check_whole(model: nn.Module) -> None:
    """Raise ValueError if a mixture is sharded over processes (FSDP2), where no process has all of its experts."""
    for name, mixture in expert_layers(model).items():
        if any(hasattr(stack, "placements") for stack in mixture.parameters()):
            raise ValueError(
                f"{name} is sharded over processes; load the full state_dict into a whole model to merge it"
            )


def _check_not_shared(model: nn.Module, sites: list[_Site]) -> None:
    """Raise ValueError if an FFN hangs in two places: a mixture in one of them would leave the other behind."""
    owners: dict[int, set[int]] = {}
    for owner in model.modules():
        for child in owner.children():
            owners.setdefault(id(child), set()).add(id(owner))
    for host, (first, *_) in sites:
        if len(owners.get(id(_get(host, first)), ())) > 1:
            raise ValueError(
                f"{first!r} of a {type(host).__name__} is shared by several modules; choose FFNs that are not"
            )


def _ffn_at(site: _Site) -> nn.Module:
    if len(site.parts) > 1:
        return _SplitFFN(site.host, site.parts).train(site.host.training)
    return site.host.get_submodule(site.parts[0])


def _parent(model: nn.Module, name: str) -> tuple[nn.Module, tuple[str]]:
    parent, _, slot = name.rpartition(".")
    return model.get_submodule(parent), (slot,)


def _get(host: nn.Module, path: str) -> Any:
    value: Any = host
    for step in path.split("."):
        value = getattr(value, step, None)
    return value


def _put(host: nn.Module, path: str, value: object) -> None:
    parent, _, slot = path.rpartition(".")
    owner = host.get_submodule(parent)
    if not isinstance(value, nn.Module) or slot not in owner._modules:
        delattr(owner, slot)  # a function and a module cannot take each other's place
    setattr(owner, slot, value)


def _leave_fast_paths(model: nn.Module) -> None:
    for module in model.modules():
        off = {k: v for k, v in _FAST_PATHS.items() if k in module.__dict__ and expert_layers(module)}
        if off:
            module.__dict__[_FAST_PATHS_BEFORE] = {flag: module.__dict__[flag] for flag in off}
            module.__dict__.update(off)
