"""Keyword arguments checked against the signature they are meant for, so that a default is written only once."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from pc_ewa.errors import ConfigError

if TYPE_CHECKING:
    import pydantic

T = TypeVar("T")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Say what was probably meant: "; did you mean 'x'?", or what there is."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(allowed)}"


def choose(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """Look a name up in a registry; an unknown one is a ConfigError that names the nearest."""
    if name not in registry:
        raise ConfigError(f"unknown {kind} {name!r}; {nearest(name, registry)}")
    return registry[name]


def check_arguments(
    where: str,
    function: Callable[..., object],
    values: Mapping[str, Any],
    skip: Iterable[str] = (),
    beside: Iterable[str] = (),
) -> dict[str, Any]:
    """Check keyword arguments of a function or class by its annotations, and fill in its defaults.

    Args:
        where: how messages name the place, such as "model".
        function: the callable; `skip` are those of its parameters that the caller gives otherwise.
        values: the keyword arguments.
        skip: parameters left out of the check and of the result.
        beside: other keys that the place knows, for what an unknown one may have meant.

    Raises:
        ConfigError: unknown, missing or wrongly typed arguments, all in one line.
    """
    import pydantic  # a quarter of a second, for those who build a model

    target = function.__init__ if inspect.isclass(function) else function
    hints = get_type_hints(target)
    skipped = {"self", *skip}
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if name not in skipped and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (hints[name], default)
    model = pydantic.create_model(where, __config__=pydantic.ConfigDict(extra="forbid", strict=False), **fields)
    try:
        checked = model(**values)
    except pydantic.ValidationError as error:
        raise ConfigError(describe(error, model, where, beside)) from None
    return {name: getattr(checked, name) for name in fields}


def describe(
    error: "pydantic.ValidationError",
    model: "type[pydantic.BaseModel]",
    where: str = "",
    beside: Iterable[str] = (),
) -> str:
    """Put every problem of a validation into one line: dotted key, value, what is allowed."""
    return "; ".join(_describe(problem, model, where, beside) for problem in error.errors())


def _describe(problem: Any, model: "type[pydantic.BaseModel]", where: str, beside: Iterable[str]) -> str:
    steps = [str(step) for step in problem["loc"]]
    key = ".".join([*([where] if where else []), *steps])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {nearest(steps[-1], [*_fields_at(model, steps[:-1]), *beside])}"
    if problem["type"] == "missing":
        return f"{key!r} is missing; set it"
    if problem["type"] == "model_type":
        return (
            f"{key}={problem['input']!r}: should be a section of keys, such as {key}.{_fields_at(model, steps)[0]}=..."
        )
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else str(message)
    return f"{key}={problem['input']!r}: {message}"


def _fields_at(model: "type[pydantic.BaseModel]", steps: list[str]) -> list[str]:
    """Names of the keys of the section that `steps` lead to."""
    for step in steps:
        annotation = model.model_fields[step].annotation
        candidates = (annotation, *getattr(annotation, "__args__", ()))
        model = next(c for c in candidates if hasattr(c, "model_fields"))
    return list(model.model_fields)
