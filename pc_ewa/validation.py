"""Validation of keyword arguments against the signature of a function, so that a default is written only once."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pc_ewa.errors import ConfigError

if TYPE_CHECKING:
    import pydantic

T = TypeVar("T")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return a hint with the allowed word that is nearest to `name`, or with all allowed words."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    if not allowed:
        return "there are none to choose from"
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(allowed)}"


def choose(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """Look a name up in a registry.

    Raises:
        ConfigError: an unknown name; the message suggests the nearest one.
    """
    if name not in registry:
        raise ConfigError(f"unknown {kind} {name!r}; {nearest(name, registry)}")
    return registry[name]


def check_arguments(
    where: str,
    function: Callable[..., object] | Sequence[Callable[..., object]],
    values: Mapping[str, Any],
    skip: Iterable[str] = (),
    beside: Iterable[str] = (),
) -> dict[str, Any]:
    """Validate keyword arguments by the annotations of a function or class, and fill in the defaults.

    A parameter that takes a dataclass also accepts a mapping of its fields, which is validated in the same way.

    Args:
        where: name of the section in messages, such as "model".
        function: the callable, or several callables among which the arguments are divided (see `arguments_of`).
        values: the keyword arguments.
        skip: parameters that are neither checked nor returned, because the caller passes them separately.
        beside: other valid keys of the section, for suggestions in messages.

    Returns:
        A value for every parameter except `skip`.

    Raises:
        ConfigError: unknown, missing or wrongly typed arguments, all in one line.
    """
    # Imported here because it takes a quarter of a second, which `pc-ewa --help` need not wait for.
    import pydantic

    fields, model = _fields(function, skip), arguments_model(where, function, skip)
    values = {name: _built(f"{where}.{name}", fields.get(name, (None,))[0], value) for name, value in values.items()}
    try:
        checked = model(**values)
    except pydantic.ValidationError as error:
        raise ConfigError(describe(error, model, where, beside)) from None
    return {name: getattr(checked, name) for name in fields}


def arguments_model(
    name: str, function: Callable[..., object] | Sequence[Callable[..., object]], skip: Iterable[str] = ()
) -> "type[pydantic.BaseModel]":
    """Build the pydantic model that `check_arguments` validates with: a field for each keyword argument.

    It refuses unknown names, NaN, infinity, and true or false for a number.
    """
    import pydantic

    fields: Any = _fields(function, skip)
    return pydantic.create_model(
        name,
        __config__=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False),
        __validators__={"switch": pydantic.field_validator("*", mode="wrap")(refuse_switch)},
        **fields,
    )


def arguments_of(function: Callable[..., object], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the subset of values that are arguments of this function."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in parameters}


def _fields(function: Callable[..., object] | Sequence[Callable[..., object]], skip: Iterable[str]) -> dict[str, Any]:
    """Return the annotation and the default of every parameter. A default of `...` means that it is required."""
    fields: dict[str, Any] = {}
    skipped = {"self", *skip}
    for each in [function] if callable(function) else function:
        target = each.__init__ if inspect.isclass(each) else each
        hints = get_type_hints(target)
        for name, parameter in inspect.signature(target).parameters.items():
            if name not in skipped and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
    return fields


def _built(where: str, annotation: Any, value: Any) -> Any:
    """Build the dataclass of a parameter from a mapping of its fields. Other values are returned unchanged."""
    kind: Any = next((c for c in (annotation, *get_args(annotation)) if dataclasses.is_dataclass(c)), None)
    if kind is None or not isinstance(value, Mapping):
        return value
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{where}.{key}={value[key]}: keys are text; choose from {_names(kind)}")
    try:
        return kind(**check_arguments(where, kind, value))
    except ValueError as error:  # the message begins with the field
        raise ConfigError(f"{where}.{error}") from None


def refuse_switch(value: Any, handler: Callable[[Any], Any]) -> Any:
    """Validate as pydantic does, but refuse true and false for a number."""
    # bool is a subclass of int, so pydantic converts true to 1 for an int or a float.
    from pydantic_core import PydanticCustomError

    checked = handler(value)
    if isinstance(value, bool) and not isinstance(checked, bool):
        raise PydanticCustomError("switch", "should be a number, not a switch")
    return checked


def describe(
    error: "pydantic.ValidationError",
    model: "type[pydantic.BaseModel]",
    where: str = "",
    beside: Iterable[str] = (),
) -> str:
    """Return one line with every problem of a validation: dotted key, value, allowed values."""
    lines: dict[str, str] = {}
    for problem in error.errors():
        key, line = _describe(problem, model, where, beside)
        # A union reports one problem per member type. The first message suffices.
        lines.setdefault(key, line)
    return "; ".join(lines.values())


def _describe(problem: Any, model: "type[pydantic.BaseModel]", where: str, beside: Iterable[str]) -> tuple[str, str]:
    """Return the dotted key of a problem and its message."""
    steps = [where] if where else []
    section: type[pydantic.BaseModel] | None = model
    annotation: Any = None
    for step in problem["loc"]:
        # Below a plain value, a text in the location is not a key but the member type of a union that failed.
        if section is None and isinstance(step, str):
            return ".".join(steps), f"{'.'.join(steps)}={problem['input']!r}: should be {_allowed(annotation)}"
        steps.append(str(step))
        if section and step in section.model_fields:
            annotation = section.model_fields[step].annotation
            section = next((c for c in (annotation, *get_args(annotation)) if hasattr(c, "model_fields")), None)
    key = ".".join(steps)
    if section and problem["type"] == "extra_forbidden":
        return key, f"unknown key {key!r}; {meant(steps, section, beside)}"
    if problem["type"] == "missing":
        return key, f"{key!r} is missing; set it"
    if problem["type"] in ("model_type", "dataclass_type"):
        none = ", or null for none" if type(None) in get_args(annotation) else ""
        return key, f"{key}={problem['input']!r}: should be a section of keys{_example(key, annotation)}{none}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    # YAML has lists, but no tuples.
    message = message.replace("a valid tuple", "a list, as in [a, b]")
    # A validator of a section raised it, whose message begins with the key inside the section.
    if problem["type"] == "value_error":
        return key, f"{key}.{message}".removeprefix(".")
    return key, f"{key}={problem['input']!r}: {message}"


def meant(steps: Sequence[str], section: "type[pydantic.BaseModel]", beside: Iterable[str]) -> str:
    """Return a hint for an unknown key: the section that has a key of this name, or the nearest key."""
    for name, field in section.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if steps[-1] in getattr(kind, "model_fields", ()):
                return f"did you mean {'.'.join([*steps[:-1], name, steps[-1]])!r}?"
    return nearest(steps[-1], [*section.model_fields, *beside])


def _allowed(annotation: Any) -> str:
    """Describe a union that has choices by its values, as in "true, false or freely"; another one by its types."""
    kinds = get_args(annotation)
    if not any(get_origin(kind) is Literal for kind in kinds):
        return str(annotation)
    choices = {bool: ("true", "false"), type(None): ("null",)}
    words = [str(word) for kind in kinds for word in choices.get(kind) or get_args(kind) or (kind.__name__,)]
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _names(kind: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(kind))


def _example(key: str, annotation: Any) -> str:
    """Return a hint with the first key of the section that the annotation accepts; "" if it has no keys."""
    for kind in (annotation, *get_args(annotation)):
        names = [*getattr(kind, "model_fields", ())]
        if dataclasses.is_dataclass(kind):
            names = [field.name for field in dataclasses.fields(kind)]
        if names:
            return f", such as {key}.{names[0]}=..."
    return ""
