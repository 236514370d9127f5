"""Sites of FFNs in a model: removing an FFN from its host module and putting it back."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn


class Site(NamedTuple):
    """The place of an FFN: its dotted name in the model, the module that holds it (the host), and its parts there.

    `parts` are the dotted names of the parts in the host, in the order of computation. Most FFNs are one part.
    """

    name: str
    host: nn.Module
    parts: tuple[str, ...]


class SplitFFN(nn.Sequential):
    """An FFN assembled from parts that its host holds side by side, such as linear1 and linear2."""

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
    """Return the site of the module with a dotted name."""
    parent, _, slot = name.rpartition(".")
    return Site(name, model.get_submodule(parent), (slot,))


def ffn_at(site: Site) -> nn.Module:
    """Return the FFN of a site as one module."""
    if len(site.parts) > 1:
        return SplitFFN(site.host, site.parts).train(site.host.training)
    return site.host.get_submodule(site.parts[0])


def replace_ffn(site: Site, mixture: nn.Module) -> None:
    """Replace the FFN by a mixture. It takes the place of the first part, and the other parts become identities."""
    # The host still calls all parts in order, as in linear2(dropout(activation(linear1(x)))).
    put_part(site.host, site.parts[0], mixture)
    for part in site.parts[1:]:
        put_part(site.host, part, 0.0 if _is_rate(get_part(site.host, part)) else nn.Identity())


def restore_ffn(host: nn.Module, slot: str, ffn: nn.Module) -> None:
    """Put an FFN back in place of its mixture, part by part if it is a `SplitFFN`."""
    if not isinstance(ffn, SplitFFN):
        put_part(host, slot, ffn)
        return
    for part, module in zip(ffn.parts, ffn, strict=True):
        plain = module.function if isinstance(module, Function) else module.p if isinstance(module, Rate) else module
        put_part(host, part, plain)


def check_not_shared(model: nn.Module, sites: list[Site]) -> None:
    """Raise ValueError if an FFN, or a parameter of one, is registered in two places.

    A mixture in one place would leave the other unchanged. The two would train separately, and the merged model would
    compute another function.
    """
    places: dict[int, list[str]] = {}
    # Read `_modules` and `_parameters`: named_parameters() lists a shared parameter once, under its first name.
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
    """Return the attribute at the dotted `path` of the host. None means that there is none."""
    value: Any = host
    for step in path.split("."):
        value = getattr(value, step, None)
    return value


def put_part(host: nn.Module, path: str, value: object) -> None:
    """Replace the attribute at the dotted `path` of the host by a module, a function or a number."""
    parent, _, slot = path.rpartition(".")
    owner = host.get_submodule(parent)
    if not isinstance(value, nn.Module) or slot not in owner._modules:
        delattr(owner, slot)  # first, because nn.Module refuses to put a function or a number over a child module
    setattr(owner, slot, value)


def _as_module(part: Any) -> nn.Module:
    if isinstance(part, nn.Module):
        return part
    return Rate(part) if _is_rate(part) else Function(part)


def _is_rate(part: object) -> bool:
    return isinstance(part, int | float)
