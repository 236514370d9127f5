"""JSON Schema of the config of an experiment, for editors, generated from the signatures that also validate it."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pc_ewa.config.resolve import DECIDED_BY_DATA, DECIDED_BY_RUN, DECIDED_BY_SECTION, DECIDED_BY_TRACKING
from pc_ewa.config.sections import Experiment
from pc_ewa.data import DATASETS
from pc_ewa.ewa import ExpertAverager, Gate, upcycle
from pc_ewa.models import MODELS
from pc_ewa.trackers import TRACKERS
from pc_ewa.validation import arguments_model

Schema = dict[str, Any]
Function = Callable[..., object] | Sequence[Callable[..., object]]

# The draft that editors support. pydantic writes draft 2020-12.
DRAFT = "http://json-schema.org/draft-07/schema#"
_REFERENCE = "#/definitions/{model}"


def experiment_schema() -> Schema:
    """Return the JSON Schema of the config of an experiment, with the arguments of each dataset, model and tracker.

    It refuses unknown keys and values of a wrong type. Constraints between keys, such as the number of points that a
    model needs, are checked by `resolve` only.

    Example:
        >>> schema = experiment_schema()
        >>> schema["definitions"]["Train"]["properties"]["epochs"]["default"]
        300
    """
    schema = plain_schema(Experiment)
    # `load_experiment` derives it from the name of the file.
    schema["required"].remove("output")
    schema["additionalProperties"] = False
    known = schema["definitions"]
    _open(known, "Data", {n: arguments_schema(n, d.load, DECIDED_BY_SECTION) for n, d in DATASETS.items()})
    _open(known, "Model", {name: arguments_schema(name, cls, DECIDED_BY_DATA) for name, cls in MODELS.items()})
    ewa = arguments_schema("ewa", (upcycle, ExpertAverager), DECIDED_BY_RUN)
    known |= ewa.pop("definitions")
    known["Gate"]["additionalProperties"] = False
    _describe(known["Gate"], descriptions(Gate))
    known["Ewa"] = {"description": known["Ewa"]["description"]} | ewa
    for name, tracker in TRACKERS.items():
        section = arguments_schema(name, tracker, DECIDED_BY_TRACKING)
        schema["properties"][name] = {
            "anyOf": [section, {"type": "null"}],
            "description": f"{tracker.title}; null switches it off.",
        }
    return schema


def plain_schema(model: Any) -> Schema:
    """Return the schema of a pydantic model in DRAFT, without titles, which repeat the keys."""
    schema: Schema = model.model_json_schema(ref_template=_REFERENCE)
    return {"$schema": DRAFT} | _cleaned({"definitions": schema.pop("$defs", {})} | schema)


def arguments_schema(name: str, function: Function, skip: Iterable[str]) -> Schema:
    """Return the schema of keyword arguments, with their descriptions."""
    schema = plain_schema(arguments_model(name, function, skip))
    del schema["$schema"]
    for each in [function] if callable(function) else function:
        _describe(schema, descriptions(each))
    if not schema["definitions"]:
        del schema["definitions"]
    return schema


def descriptions(function: Any) -> dict[str, str]:
    """Return the description of each argument from a docstring and from the functions and classes that it names.

    Example:
        >>> descriptions(Gate)["balance_weight"]
        'Weight of the load-balance loss.'
    """
    doc = inspect.getdoc(function) or ""
    found = _arguments(doc)
    around = vars(sys.modules[function.__module__])
    for name in re.findall(r"`([\w.]+)`", doc):
        other = around.get(name) or sys.modules.get(name) or getattr(sys.modules["pc_ewa.models"], name, None)
        found = _arguments(inspect.getdoc(other) or "") | found if callable(other) or inspect.ismodule(other) else found
    return found


def _arguments(doc: str) -> dict[str, str]:
    """Read the section `Args:` of a docstring in Google style."""
    section = re.search(r"^Args:\n((?: +.*\n|\n)+)", doc + "\n", re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section[1], re.MULTILINE) if section else []
    return {name: _sentence(" ".join(text.split())) for name, text in entries}


def _sentence(text: str) -> str:
    """Capitalise a text, unless it begins with a sign or an identifier, and end it with a full stop."""
    text = text.rstrip(".") + "."
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+\b(?!_)", text) else text


def _describe(schema: Schema, texts: dict[str, str]) -> None:
    for key, content in schema.get("properties", {}).items():
        if key in texts:
            content.setdefault("description", texts[key])


def _open(definitions: dict[str, Schema], section: str, choices: dict[str, Schema]) -> None:
    """Make the allowed keys of a section depend on its key `name`."""
    base = definitions[section]
    for name, own in choices.items():
        definitions[f"{section}.{name}"] = {
            "description": base["description"],
            "type": "object",
            "properties": base["properties"] | own["properties"],
            "required": [*base["required"], *own.get("required", [])],
            "additionalProperties": False,
        }
    definitions[section] = {
        "description": base["description"],
        "type": "object",
        "properties": {"name": base["properties"]["name"] | {"enum": [*choices]}},
        "required": ["name"],
        # if/then instead of oneOf: editors then report an error for the chosen name, not for every alternative.
        "allOf": [
            {
                "if": {"properties": {"name": {"const": name}}, "required": ["name"]},
                "then": {"$ref": _REFERENCE.format(model=f"{section}.{name}")},
            }
            for name in choices
        ],
    }


def _cleaned(value: Any) -> Any:
    """Drop titles, and write tuples as draft 7 does."""
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if not isinstance(value, dict):
        return value
    # A title of the schema is a text. A config key that is called "title" has a schema, and is kept.
    kept = {key: item for key, item in value.items() if not (key == "title" and isinstance(item, str))}
    if isinstance(kept.get("description"), str):
        kept["description"] = " ".join(kept["description"].split())
    return {{"prefixItems": "items"}.get(key, key): _cleaned(item) for key, item in kept.items()}
