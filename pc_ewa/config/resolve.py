"""Resolve a YAML file with `key=value` overrides to an experiment that is validated as a whole before the run."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import torch
import yaml
from torch import nn

from pc_ewa.config.sections import Data, Ewa, Experiment, Model
from pc_ewa.data import DATASETS
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import ExpertAverager, upcycle
from pc_ewa.models import MODELS
from pc_ewa.trackers import TRACKERS
from pc_ewa.validation import arguments_of, check_arguments, choose, describe, meant
from pc_ewa.yaml_config import apply_overrides, check_size, read_yaml

# Arguments of models that follow from the data, and are therefore not keys of the config.
DECIDED_BY_DATA = ("num_classes", "num_parts", "num_categories")
# Arguments of EWA that the run passes. `ffn`, the FFNs that experts may replace, is an attribute of the model.
DECIDED_BY_RUN = ("model", "ffn", "total_steps")
# Arguments of datasets and trackers that are not keys of their sections.
DECIDED_BY_SECTION = ("split", "root")
DECIDED_BY_TRACKING = ("run",)


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Read a YAML file, apply `key=value` overrides, validate everything and fill in every default.

    Without `output`, the run folder is `runs/` and the name of the file.

    Raises:
        ConfigError: one line with every problem: dotted key, value, allowed values or the nearest key.

    Example:
        >>> experiment = pc_ewa.config.load_experiment("quickstart", ["train.epochs=3"])
        >>> experiment.train.epochs, experiment.output
        (3, 'runs/quickstart')
    """
    content = read_yaml(path)
    content.setdefault("output", f"runs/{Path(path).stem}")
    return resolve(apply_overrides(content, overrides or []))


def resolve(content: dict[str, Any]) -> Experiment:
    """Validate a config of plain values, and fill in every default, including those of model and dataset.

    Example:
        >>> data, model = {"name": "sweethome3d"}, {"name": "point_mae_classifier"}
        >>> pc_ewa.config.resolve({"output": "runs/a", "data": data, "model": model}).train.batch_size
        32
    """
    check_size(content)
    problems = []
    try:
        experiment = Experiment.model_validate(content)
    except pydantic.ValidationError as error:
        problems.append(describe(error, Experiment))
    known = [*Experiment.model_fields, *TRACKERS]
    unknown = [str(key) for key in content if key not in known]
    problems += [f"unknown key {key!r}; {meant([key], Experiment, known)}" for key in unknown]
    if problems:
        raise ConfigError("; ".join(problems))
    model = experiment.model
    model_class = choose("model.name", model.name, MODELS)
    defaults = getattr(model_class, "official_arguments", {}) if experiment.recipe == "official" else {}
    model_arguments = check_arguments(
        "model", model_class, defaults | model.arguments, skip=DECIDED_BY_DATA, beside=["name"]
    )
    _check_fit(model_class, model_arguments, experiment)
    probe = experiment.probe
    return experiment.model_copy(
        update={
            "task": experiment.task or model_class.task,
            "model": Model(name=model.name, **model_arguments),
            "data": _resolve_data(experiment.data, "data"),
            "ewa": experiment.ewa and _resolve_ewa(experiment.ewa),
            "probe": probe and probe.model_copy(update={"data": _resolve_data(probe.data, "probe.data")}),
            **{name: _resolve_tracker(name, content) for name in TRACKERS},
        }
    )


def largest_need(arguments: Mapping[str, Any]) -> tuple[str, int]:
    """Return the key that decides how many points a cloud must have for a model with these arguments, and the number.

    Example:
        >>> pc_ewa.config.resolve.largest_need({"num_groups": 64, "group_size": 32})
        ('model.num_groups', 64)
    """
    values = {name: arguments.get(name, 0) for name in ("group_size", "num_groups", "levels")}
    needs = {name: max(value) if isinstance(value, tuple) else value for name, value in values.items()}
    name = max(needs, key=needs.__getitem__)
    return f"model.{name}", needs[name]


def _check_fit(model_class: type[Any], arguments: dict[str, Any], experiment: Experiment) -> None:
    """Refuse combinations of keys that would otherwise fail only during the run."""
    probe = experiment.probe
    for where, data in (("data", experiment.data), *([("probe.data", probe.data)] if probe else [])):
        key, needed = largest_need(arguments)
        if needed > data.num_points:
            value = arguments[key.removeprefix("model.")]
            raise ConfigError(f"{key}={value} is above {where}.num_points={data.num_points}; lower it")
    if arguments.get("queue_size", math.inf) < experiment.train.batch_size:
        raise ConfigError(
            f"model.queue_size={arguments['queue_size']} is below train.batch_size={experiment.train.batch_size}, the "
            "keys of one step; raise it"
        )
    if probe and not hasattr(model_class, "features"):
        raise ConfigError(f"probe with model.name={experiment.model.name}, which has no features; set probe=null")


def _resolve_ewa(ewa: Ewa) -> Ewa:
    """Validate the arguments of EWA, and fill in their defaults."""
    arguments = check_arguments("ewa", (upcycle, ExpertAverager), ewa.arguments, skip=DECIDED_BY_RUN)
    # The ranges of values are checked in `ewa/` only. To check them before the run, apply them to one FFN on the meta
    # device, which allocates no memory. `layers` is left out, because it depends on the depth of the real model.
    with torch.device("meta"):
        stand_in = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))})
        try:
            upcycle(stand_in, **arguments_of(upcycle, arguments) | {"layers": "all"})
            ExpertAverager(stand_in, total_steps=1, **arguments_of(ExpertAverager, arguments))
        # The message begins with the name of the argument.
        except ValueError as error:
            raise ConfigError(f"ewa.{error}") from None
    return Ewa(**arguments)


def _resolve_tracker(name: str, content: dict[str, Any]) -> dict[str, Any] | None:
    """Validate the section of a tracker, and fill in its defaults. None means that the tracker is off."""
    tracker = TRACKERS[name]
    section = content.get(name, {} if tracker.by_default else None)
    if section is None:
        return None
    if not isinstance(section, dict):
        raise ConfigError(f"{name}={section!r}: should be a section of keys, {{}} for the defaults, or null for none")
    return check_arguments(name, tracker, section, skip=DECIDED_BY_TRACKING)


def _resolve_data(data: Data, where: str) -> Data:
    """Validate the arguments of the dataset, and fill in their defaults."""
    loader = choose(f"{where}.name", data.name, DATASETS).load
    try:
        arguments = check_arguments(where, loader, data.arguments, skip=DECIDED_BY_SECTION, beside=Data.model_fields)
    except ConfigError as error:
        # `data.name=other` keeps the remaining keys of the section, which belong to the dataset of the file.
        if "unknown key" in str(error):
            raise ConfigError(f'{error}; "{where}={{name: {data.name}}}" replaces the whole section') from None
        raise
    return Data(**data.model_dump(include=set(Data.model_fields)), **arguments)


def dump(experiment: Experiment) -> str:
    """Return the resolved experiment as YAML.

    Example:
        >>> text = pc_ewa.config.dump(pc_ewa.config.load_experiment("quickstart"))
        >>> "seed: 0" in text.splitlines()
        True
    """
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
