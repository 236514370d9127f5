"""Read checkpoint files of torch and safetensors, without running code from them."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pc_ewa.errors import CheckpointError

# The key of the weights: in our checkpoints, the official ones, official part segmentation, files of others.
_STATES = ("model", "base_model", "model_state_dict", "state_dict")
# A run reports its averaged weights, so they are read before the live ones beside them.
STATES = ("averaged", *_STATES)


def read_content(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of torch or safetensors, whatever its layout.

    Returns:
        The weights under `base_model`, and the rest of the file under its own keys: our files have `config` and
        `class_names`, among others.

    Raises:
        CheckpointError: the file is missing, damaged, without weights, or holds objects that could run code.
    """
    path = Path(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    state = next((content[key] for key in STATES if isinstance(content.get(key), dict)), content)
    weights = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"{path} holds no weights; expected a state_dict, alone or under {', '.join(_STATES)}")
    rest = {key: value for key, value in content.items() if key not in STATES and key not in weights}
    return {**rest, "base_model": weights}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state_dict in a checkpoint file, whatever its layout. Errors are those of `read_content`."""
    weights: dict[str, Tensor] = read_content(path)["base_model"]
    return weights


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a dict written by `torch.save`, with `weights_only=True`, to the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, not a dict, or holds objects that could run code.
    """
    path = Path(path)
    _check_is_file(path)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about pickles that torch refuses anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything in torch's unpickler
        refused = re.search(r"GLOBAL (\w+(\.\w+)+)", str(error))
        problem = "is damaged or not a file of torch.save"
        if refused:
            problem = f"holds {refused[1]}; only plain weights are read, since other objects can run code"
        elif isinstance(error, RuntimeError | OSError):
            problem += ": " + str(error).partition("\n")[0][:160]
        raise CheckpointError(f"{path} {problem}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dict of weights")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Return the weights under `base_model`, and the metadata. Ours are JSON; those of others may be any text."""
    from safetensors import SafetensorError, safe_open

    _check_is_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from None
    return {key: _plain(text) for key, text in metadata.items() if key not in ("format", *STATES)} | {
        "base_model": weights
    }


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; check the path of the checkpoint")


def _numpy_scalars() -> list[Any]:
    """List the numpy types in the official files' metrics: plain numbers, under both names of numpy's module."""
    scalar, _ = np.float64().__reduce__()
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]
