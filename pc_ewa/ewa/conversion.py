"""Dense model <-> mixtures of experts, in place: upcycles some of its FFNs, merges them back."""

import logging
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from pc_ewa.ewa.experts import ExpertFFN, Mixture, PartitionScope
from pc_ewa.ewa.find_ffns import FFNChoice, Layers, find_ffns, select_layers
from pc_ewa.ewa.gated import CANNOT_MERGE, Gate, GatedFFN, has_gate
from pc_ewa.ewa.sharding import is_sharded, whole_copy
from pc_ewa.ewa.sites import check_not_shared, ffn_at, replace_ffn, restore_ffn
from pc_ewa.ewa.stacks import Init, merge_stack

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

# torch's fused inference kernels read linear1.weight themselves: off while a mixture stands in its place.
_FAST_PATHS: dict[str, Any] = {"activation_relu_or_gelu": 0, "use_nested_tensor": False}
_FAST_PATHS_BEFORE = "_fast_paths_before_upcycle"


def upcycle(
    model: Model,
    num_experts: int = 4,
    layers: Layers = "every-2",
    init: Init = "copy",
    partition: PartitionScope = "batch",
    ffn: FFNChoice | None = None,
    gate: Gate | None = None,
) -> Model:
    """Replace some FFNs of a transformer by mixtures of experts, in place.

    Build the optimizer afterwards: it has to hold the experts' parameters.

    Args:
        model: any module whose FFNs are found by structure, or chosen by `ffn`.
        num_experts: experts of each mixture, at least 2.
        layers: which FFNs, counted in the order of `model.named_modules()`: "all"; "every-k" (the k-th, 2k-th, ...);
            "last-n"; or indices.
        init: "copy" or "independent", see `Mixture`.
        partition: deal the tokens of the whole "batch" together, or of each "sample" apart.
        ffn: for models whose FFNs are not found: a name, a pattern such as "blocks.*.ffn", a list of them, a class, or
            a predicate on (name, module). The modules must map (..., C) to (..., C) token by token; each is tried on
            random tokens. A model that should not be upcycled everywhere (a decoder that is thrown away, a frozen
            copy) says so itself, in an attribute `expert_ffns` of the same kind.
        gate: make them naive top-1 mixtures with a learned gate (`GatedFFN`), which stay mixtures at inference. Add
            `balance_loss(model)` to the loss.

    Returns:
        The model itself.

    Raises:
        ValueError: no FFN found, a named module that is not an FFN, FFNs that share parameters, a selection that is
            empty or out of range, a model that has mixtures already or is sharded, or a partition by "sample" with a
            gate.
    """
    if has_gate(model):
        raise ValueError("the model has gated mixtures of experts already; start from a dense model")
    if expert_layers(model):
        raise ValueError("the model has mixtures of experts already; merge_experts() it before upcycling again")
    if is_sharded(model):
        raise ValueError("the model is sharded over processes; upcycle() it before fully_shard()")
    if not isinstance(gate, Gate | None):
        raise ValueError(f"gate={gate!r}; give a Gate(), with capacity_factor and balance_weight, or None")
    if gate and partition != "batch":
        raise ValueError(
            f"partition={partition!r} with a gate, which deals the tokens by content; leave one of them out"
        )
    sites = find_ffns(model, ffn)
    chosen = [sites[i] for i in select_layers(layers, len(sites))]
    check_not_shared(model, chosen)
    mixtures = [
        GatedFFN(ffn_at(site), gate, num_experts, init)
        if gate
        else ExpertFFN(ffn_at(site), num_experts, init, partition)
        for site in chosen
    ]
    for site, mixture in zip(chosen, mixtures, strict=True):
        replace_ffn(site, mixture)
    _leave_fast_paths(model)
    names = ", ".join(site.name for site in chosen)
    log.info("upcycled %d of %d FFNs into mixtures of %d experts: %s", len(chosen), len(sites), num_experts, names)
    return model


def merge_experts(model: Model) -> Model:
    """Replace every mixture by one FFN, the mean of its experts, in place: the original classes and keys again.

    A model without mixtures stays as it is. Returns the model itself. To train it further, build a new optimizer: the
    old one holds the experts.

    Raises:
        ValueError: a gated or a sharded mixture (see `whole_copy`), or the model is itself an `ExpertFFN`; call its
            `fuse()`.
    """
    if isinstance(model, ExpertFFN):
        raise ValueError("the model is itself one mixture; ffn = model.fuse() gives its merged FFN")
    mixtures = _ungated(model)
    if mixtures and is_sharded(model):
        raise ValueError(
            f"the {type(model).__name__} is sharded over processes, of which none has all of its weights; on all of "
            "them, merge_experts(whole_copy(model)), or dense_state_dict(model)"
        )
    for name, mixture in mixtures.items():
        host_name, _, slot = name.rpartition(".")
        restore_ffn(model.get_submodule(host_name), slot, mixture.fuse())
        mixture.merged = True
    for module in model.modules():
        for flag, value in module.__dict__.pop(_FAST_PATHS_BEFORE, {}).items():
            setattr(module, flag, value)
    return model


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The merged weights under the host's own keys; the model goes on training as it is.

    If it is sharded over processes, all of them call it together, and each gets the whole weights.

    Raises:
        ValueError: a gated mixture, or the model is itself an `ExpertFFN`.
    """
    _ungated(model)  # before anything is gathered
    return merge_experts(whole_copy(model)).state_dict()


def merged_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under its name in the merged model, those of mixtures by the mean of their experts.

    Only for mixtures that stand where one module was, as in all models here.

    Raises:
        ValueError: a gated mixture.
    """
    mixtures = tuple(f"{name}.experts." for name in _ungated(model))
    for name, parameter in model.named_parameters():
        mixture = next((prefix for prefix in mixtures if name.startswith(prefix)), None)
        if mixture is None:
            yield name, parameter
        else:
            yield name.replace(mixture, mixture.removesuffix("experts."), 1), merge_stack(parameter)


def expert_layers(model: nn.Module) -> dict[str, Mixture]:
    """Every mixture of the model by its dotted name, gated ones too."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Mixture)}


def _ungated(model: nn.Module) -> dict[str, ExpertFFN]:
    """Every mixture by its dotted name; raise ValueError if one is gated."""
    mixtures = {}
    for name, mixture in expert_layers(model).items():
        if not isinstance(mixture, ExpertFFN):
            raise ValueError(CANNOT_MERGE.format(name or f"a {type(mixture).__name__}"))
        mixtures[name] = mixture
    return mixtures


def _leave_fast_paths(model: nn.Module) -> None:
    for module in model.modules():
        off = {k: v for k, v in _FAST_PATHS.items() if k in module.__dict__ and expert_layers(module)}
        if off:
            module.__dict__[_FAST_PATHS_BEFORE] = {flag: module.__dict__[flag] for flag in off}
            module.__dict__.update(off)
