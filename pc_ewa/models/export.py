"""Weights to files that others read: in the layout of the official code, or as safetensors."""

import json
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pc_ewa.ewa import expert_layers, has_gate
from pc_ewa.models.files import STATES, save_atomically, write_whole

WeightsFormat = Literal["official", "safetensors"]

_RESERVED = (*STATES, "config", "class_names", "format")


def save_weights(
    model: nn.Module,
    path: str | Path,
    format: WeightsFormat,
    config: dict[str, Any],
    class_names: list[str],
    extra: dict[str, Any],
) -> None:
    """Write a dense model to a file, whole or not at all; `files.read_content` reads either format alike.

    "official" is a file of `torch.save` with the weights under `base_model`, where the official code looks for them, of
    segmenters under `model_state_dict` too; `torch.load(weights_only=True)` reads it. "safetensors" has the same keys,
    and everything else as JSON in its metadata.

    Args:
        model: any model of ours, without mixtures of experts.
        path: the file; its folder must be there.
        format: "official" or "safetensors".
        config: the experiment that the model comes from.
        class_names: one name for each class.
        extra: what else to keep, by names that are not taken. Like the config, it is kept as JSON keeps it: numbers,
            text, lists and dicts of them.

    Raises:
        ValueError: a model with mixtures, an unknown format, or an `extra` that cannot be kept.
        CheckpointError: the file cannot be written.
    """
    if has_gate(model):
        raise ValueError(
            "the model has gated mixtures of experts, for which neither the official layout nor the code of others has "
            "a place; save_gated() writes it for ours"
        )
    if expert_layers(model):
        raise ValueError(f"the model has {len(expert_layers(model))} mixtures of experts; merge_experts() it first")
    if format not in get_args(WeightsFormat):
        raise ValueError(f"format={format!r}; choose from {', '.join(get_args(WeightsFormat))}")
    about, weights = _as_json(_about(config, class_names, extra)), _weights(model)
    if format == "safetensors":
        _save_safetensors(weights, about, Path(path))
        return
    again = {"model_state_dict": weights} if getattr(model, "task", None) == "segment" else {}
    save_atomically({"base_model": weights, **again, **{k: json.loads(v) for k, v in about.items()}}, Path(path))


def save_gated(
    model: nn.Module, path: str | Path, config: dict[str, Any], class_names: list[str], extra: dict[str, Any]
) -> None:
    """Write a model that keeps its mixtures at inference; only our own code reads it, the weights are under `model`.

    Arguments and errors are those of `save_weights`.
    """
    about = _as_json(_about(config, class_names, extra))
    save_atomically({"model": _weights(model), **{k: json.loads(v) for k, v in about.items()}}, Path(path))


def _about(config: dict[str, Any], class_names: list[str], extra: dict[str, Any]) -> dict[str, Any]:
    taken = [key for key in extra if key in _RESERVED]
    if taken:
        raise ValueError(f"extra has {taken[0]!r}, which has its own meaning in the file; choose another name")
    return {"config": config, "class_names": class_names, **extra}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of each: what is a view into more, or shared, or on a GPU, would be written as that."""
    return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in model.state_dict().items()}


def _save_safetensors(weights: dict[str, Tensor], about: dict[str, str], path: Path) -> None:
    from safetensors.torch import save

    content = save(weights, {"format": "pt", **about})
    write_whole(path, lambda file: file.write(content))


def _as_json(values: dict[str, Any]) -> dict[str, str]:
    texts = {}
    for key, value in values.items():
        try:
            texts[key] = json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{key!r} cannot be kept in a file of weights: {error}") from None
    return texts
