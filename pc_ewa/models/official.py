"""Checkpoint files of Point-MAE, Point-BERT and ours into a model: key rules, and a report of what matched."""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pc_ewa.errors import CheckpointError

# Prefixes under which the official files keep the backbone; the first that matches is taken off.
_BACKBONES = ("MAE_encoder.", "transformer_q.")
_STATES = ("model", "base_model", "model_state_dict", "state_dict")
_HEADS = ("cls_head", "head")


class LoadReport(NamedTuple):
    """Keys of the model that were loaded and that were missing, and keys of the file that had no place."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        """One line a reader can check a fine-tuning start by."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        for title, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                groups = sorted({key.split(".")[0] for key in keys})
                parts.append(f"{len(keys)} {title} ({', '.join(groups)})")
        return ", ".join(parts)


def load_pretrained(path: str | Path, model: nn.Module) -> LoadReport:
    """Load the weights of a file into a model: official Point-MAE or Point-BERT, ours, or safetensors.

    Heads and tokens that the file lacks keep their initialisation, as fine-tuning wants; a head for another number of
    classes is left out. Nothing is ever unpickled (`weights_only=True`).

    Returns:
        What was loaded, missing and unexpected.

    Raises:
        CheckpointError: no such file, no weights in it, or a backbone that does not fit the model.
    """
    found = backbone_state(read_weights(path))
    wanted = model.state_dict()
    heads = {key for key in found if key.startswith(_HEADS)}
    fitting = {key: value for key, value in found.items() if key in wanted and value.shape == wanted[key].shape}
    misfits = [key for key in found if key in wanted and key not in fitting and key not in heads]
    absent = [key for key in wanted if key not in found and not key.startswith((*_HEADS, "cls_token", "cls_pos"))]
    if misfits or absent or not fitting:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {_misfit(found, wanted, misfits, absent)}")
    model.load_state_dict(fitting, strict=False)
    missing = tuple(key for key in wanted if key not in fitting)
    return LoadReport(tuple(fitting), missing, tuple(key for key in found if key not in fitting))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state_dict in a checkpoint file, whatever its layout; never runs code from it."""
    path = Path(path)
    content = read_checkpoint(path) if path.suffix != ".safetensors" else _read_safetensors(path)
    state = next((content[key] for key in _STATES if isinstance(content.get(key), dict)), content)
    weights = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"{path} holds no weights; expected a state_dict, alone or under {', '.join(_STATES)}")
    return weights


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `torch.save` wrote as a dict, with `weights_only=True` and on the CPU."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is no file; check the path of the checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is damaged or no checkpoint of plain weights: {reason[:160]}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dict of weights")
    return content


def backbone_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename official keys to those of the models here: no `module.`, no prefix of the pre-training model."""
    state = {key.replace("module.", "").removeprefix("base_model."): value for key, value in state.items()}
    for prefix in _BACKBONES:
        if any(key.startswith(prefix) for key in state):
            inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            return {key: value for key, value in inside.items() if not key.startswith("cls_head.")}
    return state


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path} is no file; check the path of the checkpoint")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None


def _misfit(found: dict[str, Tensor], wanted: dict[str, Tensor], misfits: list[str], absent: list[str]) -> str:
    if any(".experts." in key for key in found):
        return "it holds mixtures of experts; merge it first: python tools/merge_experts.py CHECKPOINT -o OUT"
    if misfits:
        key = misfits[0]
        here, there = tuple(wanted[key].shape), tuple(found[key].shape)
        return f"{len(misfits)} tensors differ in shape, such as {key}: {there} in the file, {here} in the model"
    return f"{len(absent)} tensors of the backbone are not in it, such as {absent[0]}"
