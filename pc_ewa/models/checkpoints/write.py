"""Write weights in the layout of the official code or as safetensors. A file is written completely or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pc_ewa.ewa import expert_layers, has_gate
from pc_ewa.files import write_whole
from pc_ewa.models.checkpoints.read import DIGEST, STATES, check_finite, weights_digest

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
    """Write a dense model to a file. `read_content` reads both formats.

    "official" is a file of `torch.save` with the weights under `base_model`, where the official code expects them, and
    for segmenters also under `model_state_dict`. `torch.load(weights_only=True)` reads it. "safetensors" has the same
    keys, and everything else as JSON in its metadata.

    Args:
        model: a model without mixtures of experts.
        path: the file; its folder must exist.
        format: "official" or "safetensors".
        config: the experiment that the model comes from.
        class_names: one name for each class.
        extra: further content under other keys. Like the config, it is kept as JSON: numbers, text, lists and dicts.

    Raises:
        ValueError: a model with mixtures, an unknown format, or an `extra` that is not JSON or takes a reserved key.
        CheckpointError: weights that hold NaN or inf.
        WriteError: the file cannot be written.
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
    check_finite(weights, path)
    if format == "safetensors":
        _save_safetensors(weights, about, Path(path))
        return
    again = {"model_state_dict": weights} if getattr(model, "task", None) == "segment" else {}
    save_atomically({"base_model": weights, **again, **{k: json.loads(v) for k, v in about.items()}}, Path(path))


def save_gated(
    model: nn.Module, path: str | Path, config: dict[str, Any], class_names: list[str], extra: dict[str, Any]
) -> None:
    """Write a model that keeps its mixtures at inference, with the weights under `model`. Only our code reads it.

    Arguments and errors are those of `save_weights`.
    """
    about, weights = _as_json(_about(config, class_names, extra)), _weights(model)
    check_finite(weights, path)
    save_atomically({"model": weights, **{k: json.loads(v) for k, v in about.items()}}, Path(path))


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write a dict by `torch.save`, whole or not at all.

    Raises:
        WriteError: the file cannot be written.
    """
    write_whole(path, lambda file: torch.save(dict(content), file))


def _about(config: dict[str, Any], class_names: list[str], extra: dict[str, Any]) -> dict[str, Any]:
    taken = [key for key in extra if key in _RESERVED]
    if taken:
        raise ValueError(f"extra has {taken[0]!r}, which is reserved in the file; choose another name")
    return {"config": config, "class_names": class_names, **extra}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Copy every tensor to separate memory on the CPU."""
    # Otherwise torch.save would write the whole storage of a view and the device of a GPU tensor, and safetensors would
    # refuse weights that share memory.
    return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in model.state_dict().items()}


def _save_safetensors(weights: dict[str, Tensor], about: dict[str, str], path: Path) -> None:
    from safetensors.torch import save

    metadata = {"format": "pt", **about}
    content = save(weights, metadata | {DIGEST: weights_digest(weights, metadata)})
    write_whole(path, lambda file: file.write(content))


def _as_json(values: dict[str, Any]) -> dict[str, str]:
    texts = {}
    for key, value in values.items():
        try:
            texts[key] = json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{key!r} cannot be kept in a file of weights: {error}") from None
    return texts
