"""Metadata of an exported file, from which a user can run it without other information."""

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
    """Return the metadata of a model in plain values.

    Returns:
        A dict of `pc_ewa`, the version; `model`, the name of the model; `task`, "classify" or "segment"; `class_names`,
        the names of the logits, or of the categories that a segmenter takes; `preprocessing`, the preprocessing of a
        cloud, which is not in the graph; and `min_points`, the fewest points that the graph takes. A segmenter also has
        `parts_of`, the parts that each category can have, or None for all.

    Raises:
        ConfigError: there is not one name for each class.
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
    # By a forward pass, because a user's model need not have an attribute for it.
    with torch.no_grad():
        return int(model(torch.rand(1, least_points(model), 3)).shape[1])
