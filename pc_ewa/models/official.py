"""Checkpoint files of Point-MAE, Point-BERT and ours into a model: key rules, and a report of what matched."""

import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pc_ewa.errors import CheckpointError

# Under these the official pre-training files keep the backbone; the contrastive head in there is no part of it.
_BACKBONE = re.compile(r"^(MAE_encoder|transformer_q)\.(?!cls_head\.)")
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
    # A file of more blocks than the model has fits in all of these, and is another architecture all the same.
    parts = {key.split(".")[0] for key in wanted}
    surplus = [key for key in found if key not in wanted and key not in heads and key.split(".")[0] in parts]
    if misfits or absent or surplus or not fitting:
        problem = _misfit(found, wanted, misfits, absent, surplus)
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {problem}")
    model.load_state_dict(fitting, strict=False)
    missing = tuple(key for key in wanted if key not in fitting)
    return LoadReport(tuple(fitting), missing, tuple(key for key in found if key not in fitting))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state_dict in a checkpoint file, whatever its layout; never runs code from it."""
    path = Path(path)
    content = read_checkpoint(path) if path.suffix != ".safetensors" else _read_safetensors(path)
    state = next((content[key] for key in _STATES if isinstance(content.get(key), dict)), content)
    weights = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"{path} holds no weights; expected a state_dict, alone or under {', '.join(_STATES)}")
    return weights


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `torch.save` wrote as a dict, with `weights_only=True` and on the CPU."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is no file; check the path of the checkpoint")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of pickles that it refuses anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on a damaged file torch lets out whatever its unpickler stumbles over
        refused = re.search(r"GLOBAL (\w+(\.\w+)+)", str(error))
        problem = "is damaged or no file of torch.save"
        if refused:
            problem = f"holds {refused[1]}; only plain weights are read, since other objects can run code"
        elif isinstance(error, RuntimeError | OSError):
            problem += ": " + str(error).partition("\n")[0][:160]
        raise CheckpointError(f"{path} {problem}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dict of weights")
    return content


def backbone_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename official keys to those of the models here: no `module.`, no prefix of the pre-training model."""
    state = {key.replace("module.", "").removeprefix("base_model."): value for key, value in state.items()}
    return {_BACKBONE.sub("", key): value for key, value in state.items()}


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path} is no file; check the path of the checkpoint")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None


def _numpy_scalars() -> list[Any]:
    """What the official files' numpy metrics are made of: numbers, which run no code; both of their module's names."""
    scalar, _ = np.float64().__reduce__()
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]


def _misfit(
    found: dict[str, Tensor], wanted: dict[str, Tensor], misfits: list[str], absent: list[str], surplus: list[str]
) -> str:
    if any(".experts." in key for key in found):
        return "it holds mixtures of experts; merge it first: python tools/merge_experts.py CHECKPOINT -o OUT"
    if any(".experts." in key for key in absent):
        return "the model has mixtures of experts, the file has none; load_pretrained() first, upcycle() then"
    if misfits:
        key = misfits[0]
        here, there = tuple(wanted[key].shape), tuple(found[key].shape)
        return f"{len(misfits)} tensors differ in shape, such as {key}: {there} in the file, {here} in the model"
    if absent:
        return f"{len(absent)} tensors of the backbone are not in it, such as {absent[0]}"
    return f"{len(surplus)} of its tensors have no place in the model, such as {surplus[0]}"
