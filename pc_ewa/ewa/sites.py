"""Sites: where the FFNs of a model are, and how they are taken out of their hosts and put back in."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn


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
        super().__init__(*(_as_module(get_part(host, part)) for part in parts))
        self.parts = parts


class Function(nn.Module):
    """An activation that its host holds as a plain function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(x)


class Rate(nn.Dropout):
    """A dropout that its host holds as a plain number, its rate."""


def site_of(model: nn.Module, name: str) -> Site:
    """Return the site of the module of that dotted name."""
    parent, _, slot = name.rpartition(".")
    return Site(name, model.get_submodule(parent), (slot,))


def ffn_at(site: Site) -> nn.Module:
    """Return the FFN of a site as one module."""
    if len(site.parts) > 1:
        return SplitFFN(site.host, site.parts).train(site.host.training)
    return site.host.get_submodule(site.parts[0])


def replace_ffn(site: Site, mixture: nn.Module) -> None:
    """Put a mixture in the place of the FFN: where its first part is; the other parts then do nothing."""
    put_part(site.host, site.parts[0], mixture)
    for part in site.parts[1:]:
        put_part(site.host, part, 0.0 if _is_rate(get_part(site.host, part)) else nn.Identity())


def restore_ffn(host: nn.Module, slot: str, ffn: nn.Module) -> None:
    """Put an FFN back in the place of its mixture, part by part if it is a `SplitFFN`."""
    if not isinstance(ffn, SplitFFN):
        put_part(host, slot, ffn)
        return
    for part, module in zip(ffn.parts, ffn, strict=True):
        plain = module.function if isinstance(module, Function) else module.p if isinstance(module, Rate) else module
        put_part(host, part, plain)


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


def get_part(host: nn.Module, path: str) -> Any:
    """Return what is at the dotted `path` of the host, None if nothing is."""
    value: Any = host
    for step in path.split("."):
        value = getattr(value, step, None)
    return value


def put_part(host: nn.Module, path: str, value: object) -> None:
    """Put a module, a function or a number in the place of what is at the dotted `path` of the host."""
    parent, _, slot = path.rpartition(".")
    owner = host.get_submodule(parent)
    if not isinstance(value, nn.Module) or slot not in owner._modules:
        delattr(owner, slot)  # a function and a module cannot take each other's place
    setattr(owner, slot, value)


def _as_module(part: Any) -> nn.Module:
    if isinstance(part, nn.Module):
        return part
    return Rate(part) if _is_rate(part) else Function(part)


def _is_rate(part: object) -> bool:
    return isinstance(part, int | float)
