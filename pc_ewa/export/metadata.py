"""What an exported file says of itself, so that whoever has it needs nothing else."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pc_ewa.errors import ConfigError
from pc_ewa.models import MODELS
from pc_ewa.models.base import least_points
from pc_ewa.package import version


def describe(model: nn.Module, class_names: Sequence[str] | None, preprocessing: Any) -> dict[str, Any]:
    """Describe an exported model in plain values.

    Returns:
        `pc_ewa`, the version; `model`, its name; `task`, "classify" or "segment"; `class_names`, of the logits, or of
        the categories that a segmenter takes; `preprocessing`, what to do with a cloud before: the graph does none of
        it; `min_points`, the fewest points that the graph takes; for a segmenter also `parts_of`, the parts that each
        category can have, or None for all.

    Raises:
        ConfigError: names that are not one for each class.
    """
    task, known = model.task, getattr(model, "class_names", None)
    class_names = known or () if class_names is None else class_names
    preprocessing = getattr(model, "preprocessing", None) if preprocessing is None else preprocessing
    outputs = int(model.num_categories) if task == "segment" else _num_classes(model)  # type: ignore[arg-type]
    if class_names and len(class_names) != outputs:
        raise ConfigError(f"{len(class_names)} class_names for a model of {outputs}; give one for each")
    name = next((name for name, kind in MODELS.items() if type(model) is kind), type(model).__name__)
    parts = {"parts_of": getattr(model, "parts_of", None)} if task == "segment" else {}
    return {
        "pc_ewa": version(),
        "model": name,
        "task": task,
        "class_names": list(class_names),
        "preprocessing": _plain(preprocessing),
        "min_points": least_points(model),
        **parts,
    }


def _plain(preprocessing: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(preprocessing) and not isinstance(preprocessing, type):
        return dataclasses.asdict(preprocessing)
    return dict(preprocessing or {})


def _num_classes(model: nn.Module) -> int:
    """Return the number of logits of a classifier."""
    with torch.no_grad():
        return int(model(torch.rand(1, least_points(model), 3)).shape[1])
