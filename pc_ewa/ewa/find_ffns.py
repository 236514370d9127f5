"""Search for the FFNs of a transformer, by structure or by name."""

import difflib
import logging
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from pc_ewa.ewa.probe import why_not_tokenwise
from pc_ewa.ewa.sites import Site, ffn_at, site_of
from pc_ewa.ewa.structure import LOOKED_FOR, is_built_as_ffn, split_layout, why_no_expert

log = logging.getLogger(__name__)

Layers = str | Sequence[int]
FFNChoice = str | Sequence[str] | type[nn.Module] | Callable[[str, nn.Module], bool]

# A wrapper keeps references to the parameters that it found, or hides the attribute `expert_ffns` of the model.
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel", "OptimizedModule")


def find_ffns(model: nn.Module, ffn: FFNChoice | None = None) -> list[Site]:
    """Find the FFNs of a model, in the order of `named_modules()`. `ffn` is as in `upcycle`.

    Each is tested on random tokens (`why_not_tokenwise`). A module found by structure that does not map token by token,
    such as a token mixer, is left out, and the log names it.

    Raises:
        ValueError: there is no FFN, or a named one does not map token by token.
    """
    if type(model).__name__ in _WRAPPERS:
        raise ValueError(f"the model is wrapped in {type(model).__name__}; upcycle() it first, then wrap it")
    ffn = getattr(model, "expert_ffns", None) if ffn is None else ffn
    return _by_structure(model) if ffn is None else _by_choice(model, ffn)


def _by_choice(model: nn.Module, ffn: FFNChoice) -> list[Site]:
    sites: list[Site] = []
    for name, module in model.named_modules():
        # A pattern or predicate that fits an FFN often fits its children too. named_modules() lists a parent before its
        # children, so it is enough to skip what is inside of the latest site.
        inside = bool(sites) and name.startswith(f"{sites[-1].name}.")
        if name and not inside and _is_chosen(ffn, name, module):
            sites.append(site_of(model, name))
    if not sites:
        raise ValueError(f"{_wanted(ffn)} no module of {type(model).__name__}; {_nearest(model, ffn)}")
    for site in sites:
        module = ffn_at(site)
        reason = why_no_expert("", module) or why_not_tokenwise(module)
        if reason:
            raise ValueError(
                f"{site.name} ({type(module).__name__}) cannot become experts: {reason}; name modules that "
                "map (..., C) to (..., C), or maps (B, C, H, W) to their like, token by token"
            )
    return sites


def _by_structure(model: nn.Module) -> list[Site]:
    kept, left_out = [], []
    for site in _candidates(model):
        ffn = ffn_at(site)
        reason = why_no_expert(site.name, ffn) or why_not_tokenwise(ffn)
        if reason:
            left_out.append(f"{site.name} ({reason})")
            log.info("%s is not taken for an FFN: %s", site.name, reason)
        else:
            kept.append(site)
    if not kept:
        raise ValueError(
            f"{type(model).__name__} has no FFN that upcycle() recognises; looked for {LOOKED_FOR}; "
            "name yours with ffn='pattern', a class or a predicate"
            + (f"; left out: {', '.join(left_out[:3])}" if left_out else "")
        )
    return kept


def _candidates(model: nn.Module) -> list[Site]:
    """List the modules that are built as an FFN, and the modules that hold the layers of one side by side."""
    sites = []
    for name, module in model.named_modules():
        if layout := split_layout(module):
            sites.append(Site(f"{name}.{layout[0]}".lstrip("."), module, layout))
        elif name and is_built_as_ffn(module):
            sites.append(site_of(model, name))
    return sites


def select_layers(layers: Layers, count: int) -> list[int]:
    """Convert "all", "every-k", "last-n" or explicit indices to sorted indices below `count`."""
    if isinstance(layers, str):
        match = re.fullmatch(r"all|(every|last)-([1-9]\d*)", layers)
        if not match:
            raise ValueError(f"layers={layers!r}; choose 'all', 'every-k', 'last-n' or a list of indices")
        number = int(match[2] or 1)
        chosen = (
            list(range(max(0, count - number), count)) if match[1] == "last" else list(range(number - 1, count, number))
        )
        if not chosen or (match[1] == "last" and number > count):
            raise ValueError(f"layers={layers!r} needs more than the {count} FFNs of the model; choose fewer, or 'all'")
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
    """Name the modules, or the classes, that are closest to the choice."""
    modules = [(name, type(module).__name__) for name, module in model.named_modules() if name]
    if isinstance(ffn, type):
        return f"its classes are {', '.join(sorted({kind for _, kind in modules}))}"
    names = [name for name, _ in modules]
    asked = [] if callable(ffn) else _patterns(ffn)
    close = [found for pattern in asked for found in difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)]
    return f"the nearest are {', '.join(dict.fromkeys(close))}" if close else "its names are model.named_modules()"
