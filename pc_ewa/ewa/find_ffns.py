"""Finds the FFNs of a transformer by structure or by name, and takes them out of their hosts and back in."""

import difflib
import logging
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn

from pc_ewa.ewa.probe import MIN_FEATURES, why_not_tokenwise

log = logging.getLogger(__name__)

Layers = str | Sequence[int]
FFNChoice = str | Sequence[str] | type[nn.Module] | Callable[[str, nn.Module], bool]

LOOKED_FOR = (
    "a module of two nn.Linear layers (C -> H -> C) and nothing else with parameters (ours, timm Mlp, torchvision "
    "MLPBlock, transformers ViTMLP), linear1 and linear2 (torch.nn.TransformerEncoderLayer), or intermediate and "
    "output.dense (older transformers)"
)
# Hosts that keep the parts of their FFN side by side, in the order in which they compute.
_SPLIT_LAYOUTS = (("linear1", "activation", "dropout", "linear2"), ("intermediate", "output.dense"))
# Wrappers hold on to the parameters that they found, or hide what the model says of its FFNs.
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel", "OptimizedModule")


class Site(NamedTuple):
    """Where an FFN is: its dotted name in the model, the module that holds it, and the names of its pieces there.

    The pieces are dotted too, and in the order in which they compute; most FFNs are one piece.
    """

    name: str
    host: nn.Module
    parts: tuple[str, ...]


class SplitFFN(nn.Sequential):
    """An FFN put together from the parts of a host that keeps them side by side."""

    def __init__(self, host: nn.Module, parts: tuple[str, ...]) -> None:
        found = [get_part(host, part) for part in parts]
        super().__init__(*(part if isinstance(part, nn.Module) else Function(part) for part in found))
        self.parts = parts


class Function(nn.Module):
    """An activation that its host holds as a plain function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(x)


def find_ffns(model: nn.Module, ffn: FFNChoice | None = None) -> list[Site]:
    """Find the FFNs of a model, in the order of `named_modules()`; `ffn` as in `upcycle`.

    Each is tried on random tokens (`why_not_tokenwise`). A module found by structure that does not map token by token,
    such as a token mixer, is left out and logged.

    Raises:
        ValueError: no FFN, or one that was named and does not map token by token.
    """
    if type(model).__name__ in _WRAPPERS:
        raise ValueError(f"the model is wrapped in {type(model).__name__}; upcycle() it first, then wrap it")
    ffn = getattr(model, "expert_ffns", None) if ffn is None else ffn
    return _by_structure(model) if ffn is None else _by_choice(model, ffn)


def _by_choice(model: nn.Module, ffn: FFNChoice) -> list[Site]:
    sites: list[Site] = []
    for name, module in model.named_modules():
        # A pattern or predicate that fits an FFN often fits its parts too: the outermost module is meant.
        inside = bool(sites) and name.startswith(f"{sites[-1].name}.")
        if name and not inside and _is_chosen(ffn, name, module):
            sites.append(_site(model, name))
    if not sites:
        raise ValueError(f"{_wanted(ffn)} no module of {type(model).__name__}; {_nearest(model, ffn)}")
    for site in sites:
        reason = why_not_tokenwise(ffn_at(site))
        if reason:
            raise ValueError(
                f"{site.name} ({type(ffn_at(site)).__name__}) is not an FFN: {reason}; name modules that map (..., C) "
                "to (..., C) token by token"
            )
    return sites


def _by_structure(model: nn.Module) -> list[Site]:
    sites = []
    for name, module in model.named_modules():
        layout = next((layout for layout in _SPLIT_LAYOUTS if _has_split_ffn(module, layout)), None)
        if layout:
            sites.append(Site(f"{name}.{layout[0]}".lstrip("."), module, layout))
        elif name and _is_ffn(module):
            sites.append(_site(model, name))
    kept, left_out = [], []
    for site in sites:
        reason = why_not_tokenwise(ffn_at(site))
        if site.name.rpartition(".")[2] in ("mlp_tokens", "token_mixing", "token_mixer"):
            # As in MLP-Mixer: the module is an MLP, but its host transposes what it gives it.
            reason = "its name says that it mixes tokens"
        if reason:
            left_out.append(f"{site.name} ({reason})")
            log.info("%s is not taken for an FFN: %s", site.name, reason)
        else:
            kept.append(site)
    if not kept:
        raise ValueError(
            f"{type(model).__name__} has no FFN that upcycle() knows; looked for {LOOKED_FOR}; "
            "name yours with ffn='pattern', a class or a predicate"
            + (f"; left out: {', '.join(left_out[:3])}" if left_out else "")
        )
    return kept


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


def _is_chosen(ffn: FFNChoice, name: str, module: nn.Module) -> bool:
    if isinstance(ffn, type):
        return isinstance(module, ffn)
    if callable(ffn):
        return ffn(name, module)
    return any(fnmatchcase(name, pattern) for pattern in _patterns(ffn))


def _patterns(ffn: str | Sequence[str]) -> Sequence[str]:
    return [ffn] if isinstance(ffn, str) else ffn


def _wanted(ffn: FFNChoice) -> str:
    if isinstance(ffn, type):
        return f"ffn={ffn.__name__} is the class of"
    return f"the predicate {ffn!r} accepted" if callable(ffn) else f"ffn={ffn!r} names"


def _nearest(model: nn.Module, ffn: FFNChoice) -> str:
    """Name the modules, or their classes, that come closest to what was asked for."""
    modules = [(name, type(module).__name__) for name, module in model.named_modules() if name]
    if isinstance(ffn, type):
        return f"its classes are {', '.join(sorted({kind for _, kind in modules}))}"
    names = [name for name, _ in modules]
    asked = [] if callable(ffn) else _patterns(ffn)
    close = [found for pattern in asked for found in difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)]
    return f"the nearest are {', '.join(dict.fromkeys(close))}" if close else "its names are model.named_modules()"


def _is_ffn(module: nn.Module) -> bool:
    children = list(module.children())
    linears = [child for child in children if type(child) is nn.Linear]
    if len(linears) != 2 or any(c not in linears and next(c.parameters(), None) is not None for c in children):
        return False
    if next(module.parameters(recurse=False), None) is not None:
        return False
    # H > C tells an FFN from two projections of an attention; where the names tell, any H will do.
    first, second = linears
    wider = hasattr(module, "fc1") or first.out_features > first.in_features
    return _returns(first, second) and wider and first.in_features >= MIN_FEATURES


def _has_split_ffn(module: nn.Module, layout: tuple[str, ...]) -> bool:
    parts = [get_part(module, part) for part in layout]
    if any(part is None for part in parts):
        return False
    linears = [m for p in parts if isinstance(p, nn.Module) for m in p.modules() if type(m) is nn.Linear]
    return len(linears) == 2 and _returns(*linears)


def _returns(first: nn.Linear, second: nn.Linear) -> bool:
    """Return True if the two map C -> H -> C."""
    return first.in_features == second.out_features and first.out_features == second.in_features


def check_not_shared(model: nn.Module, sites: list[Site]) -> None:
    """Raise ValueError if an FFN, or a parameter of one, hangs in two places.

    A mixture in one of them would leave the other behind: they would train apart, and merge into another function.
    """
    places: dict[int, list[str]] = {}
    for name, owner in model.named_modules():
        for slot, part in (*owner._modules.items(), *owner._parameters.items()):
            if part is not None:
                places.setdefault(id(part), []).append(f"{name}.{slot}".lstrip("."))
    for site in sites:
        ffn = ffn_at(site)
        if len(places.get(id(get_part(site.host, site.parts[0])), [])) > 1:
            raise ValueError(f"{site.name} is shared by several modules; choose FFNs that are not")
        for parameter in ffn.parameters():
            names = places.get(id(parameter), [])
            if len(names) > 1:
                raise ValueError(f"{names[0]} and {names[1]} are one parameter (tied); choose FFNs that share none")


def ffn_at(site: Site) -> nn.Module:
    """Return the FFN of a site as one module."""
    if len(site.parts) > 1:
        return SplitFFN(site.host, site.parts).train(site.host.training)
    return site.host.get_submodule(site.parts[0])


def _site(model: nn.Module, name: str) -> Site:
    parent, _, slot = name.rpartition(".")
    return Site(name, model.get_submodule(parent), (slot,))


def get_part(host: nn.Module, path: str) -> Any:
    """Return what is at the dotted `path` of the host, None if nothing is."""
    value: Any = host
    for step in path.split("."):
        value = getattr(value, step, None)
    return value


def put_part(host: nn.Module, path: str, value: object) -> None:
    """Put a module or a function in the place of what is at the dotted `path` of the host."""
    parent, _, slot = path.rpartition(".")
    owner = host.get_submodule(parent)
    if not isinstance(value, nn.Module) or slot not in owner._modules:
        delattr(owner, slot)  # a function and a module cannot take each other's place
    setattr(owner, slot, value)
