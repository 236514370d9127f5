"""Conversion of a dense model to mixtures of experts and back, in place."""

import logging
import warnings
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

# In evaluation nn.TransformerEncoderLayer calls a fused kernel that reads linear1.weight itself (torch 2.6 to 2.13).
# It would bypass a mixture in the place of linear1, or fail on it. These values of its attributes disable the kernel.
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

    Build the optimizer afterwards, because it has to hold the parameters of the experts.

    Args:
        model: any module whose FFNs are found by structure, or chosen by `ffn`.
        num_experts: experts of each mixture, at least 2.
        layers: the FFNs to replace, counted in the order of `model.named_modules()`: "all"; "every-k" (the k-th, 2k-th,
            ...); "last-n"; or indices.
        init: "copy" or "independent", see `Mixture`.
        partition: route the tokens of the whole "batch" together, or those of each "sample" separately.
        ffn: for models whose FFNs are not found: a name, a pattern such as "blocks.*.ffn", a list of them, a class, or
            a predicate on (name, module). The modules must map (..., C) to (..., C) token by token; each is tested on
            random tokens. If None, the attribute `expert_ffns` of the model is used, which has the same form. Set it
            on a model that should not be upcycled everywhere (a decoder that is thrown away, a frozen copy).
        gate: settings for naive top-1 mixtures with a learned gate (`GatedFFN`), which stay mixtures at inference. Add
            `balance_loss(model)` to the loss.

    Returns:
        The model itself.

    Raises:
        ValueError: no FFN found, a named module that is not an FFN, FFNs that share parameters, a selection that is
            empty or out of range, a model that has mixtures already or is sharded, or a partition by "sample" with a
            gate.

    Example:
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 32), 4, enable_nested_tensor=False)
        >>> list(pc_ewa.ewa.expert_layers(pc_ewa.upcycle(model, num_experts=4)))  # every second of 4 FFNs
        ['layers.1.linear1', 'layers.3.linear1']
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
            f"partition={partition!r} with a gate, which routes the tokens by content; leave one of them out"
        )
    sites = find_ffns(model, ffn)
    chosen = [sites[i] for i in select_layers(layers, len(sites))]
    check_not_shared(model, chosen)
    # All mixtures are built before the first FFN is replaced: an error in one leaves the model as it was.
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
    """Replace every mixture by one FFN, the mean of its experts, in place.

    The model then has its original classes and keys again. A model without mixtures stays as it is. To train the merged
    model further, build a new optimizer, because the old one holds the experts.

    Returns:
        The model itself.

    Warns if experts were trained in this process without an averager.

    Raises:
        ValueError: a gated or a sharded mixture (see `whole_copy`), or the model is itself an `ExpertFFN`; call its
            `fuse()`.

    Example:
        >>> model = nn.TransformerEncoderLayer(8, 2, 32)
        >>> before = model.state_dict()
        >>> merged = pc_ewa.merge_experts(pc_ewa.upcycle(model, layers="all")).state_dict()
        >>> all(torch.equal(merged[key], before[key]) for key in before)  # copies that were not trained
        True
    """
    if isinstance(model, ExpertFFN):
        raise ValueError("the model is itself one mixture; ffn = model.fuse() returns its merged FFN")
    mixtures = _ungated(model)
    if apart := [name for name, mixture in mixtures.items() if _never_averaged(mixture)]:
        warnings.warn(
            f"{len(apart)} of {len(mixtures)} mixtures were trained here without averaging, such as {apart[0]}; was "
            "ExpertAverager(...).attach(optimizer) left out? The mean of experts so far apart is another function",
            stacklevel=2,
        )
    if mixtures and is_sharded(model):
        raise ValueError(
            f"the {type(model).__name__} is sharded over processes, and none of them has all of its weights; call "
            "merge_experts(whole_copy(model)) or dense_state_dict(model) on all of them"
        )
    for name, mixture in mixtures.items():
        host_name, _, slot = name.rpartition(".")
        restore_ffn(model.get_submodule(host_name), slot, mixture.fuse())
        mixture.merged = True
    for module in model.modules():
        for flag, value in module.__dict__.pop(_FAST_PATHS_BEFORE, {}).items():
            setattr(module, flag, value)
    return model


def _never_averaged(mixture: Mixture) -> bool:
    """Return True if the experts of a mixture were trained in this process and no averager has seen them."""
    # Gradients stay after the last step of a usual loop; a model that was loaded has none.
    trained = any(parameter.grad is not None for parameter in mixture.experts.parameters())
    return trained and not mixture.averaged


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the merged weights under the keys of the dense model. The model keeps its mixtures and can train on.

    If the model is sharded, all processes must call it together, and each gets the full weights.

    Raises:
        ValueError: a gated mixture, or the model is itself an `ExpertFFN`.

    Example:
        >>> model = pc_ewa.upcycle(nn.TransformerEncoderLayer(8, 2, 32), layers="all")
        >>> pc_ewa.dense_state_dict(model).keys() == nn.TransformerEncoderLayer(8, 2, 32).state_dict().keys()
        True
    """
    _ungated(model)  # raises before whole_copy gathers anything over processes
    return merge_experts(whole_copy(model)).state_dict()


def merged_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter under its name in the merged model. For a mixture it is the mean of the experts.

    It works only for mixtures that replace a single module, as in all models here.

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
    """Return every mixture of the model by its dotted name, gated ones included.

    Example:
        >>> model = pc_ewa.upcycle(nn.TransformerEncoderLayer(8, 2, 32), layers="all")
        >>> list(pc_ewa.ewa.expert_layers(model))
        ['linear1']
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, Mixture)}


def _ungated(model: nn.Module) -> dict[str, ExpertFFN]:
    """Return every mixture by its dotted name. Raise ValueError if one is gated."""
    mixtures = {}
    for name, mixture in expert_layers(model).items():
        if not isinstance(mixture, ExpertFFN):
            raise ValueError(CANNOT_MERGE.format(name or f"a {type(mixture).__name__}"))
        mixtures[name] = mixture
    return mixtures


def _leave_fast_paths(model: nn.Module) -> None:
    # The former values are kept in the module itself, so that a pickled or copied model can be merged too.
    for module in model.modules():
        off = {k: v for k, v in _FAST_PATHS.items() if k in module.__dict__ and expert_layers(module)}
        if off:
            module.__dict__[_FAST_PATHS_BEFORE] = {flag: module.__dict__[flag] for flag in off}
            module.__dict__.update(off)
