"""Checkpoint files of torch and safetensors: read without running code from them, written whole or not at all."""

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from pc_ewa.errors import CheckpointError

# Where files keep their weights: ours while training, the official ones, those of part segmentation, and others'.
_STATES = ("model", "base_model", "model_state_dict", "state_dict")
# Averaged weights are what a run reports, and come before the live ones beside them.
STATES = ("averaged", *_STATES)


def read_content(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of any layout, of torch or safetensors, as one kind of dict.

    Returns:
        The weights under `base_model`, and what else the file holds under its own names: of our files, among others,
        `config` and `class_names`.

    Raises:
        CheckpointError: no such file, a damaged one, one of objects that could run code, or one without weights.
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
    """Read the state_dict in a checkpoint file, whatever its layout; errors as in `read_content`."""
    weights: dict[str, Tensor] = read_content(path)["base_model"]
    return weights


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `torch.save` wrote as a dict, with `weights_only=True` and on the CPU."""
    path = Path(path)
    _check_is_file(path)
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


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write a dict by `torch.save`, whole or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    write_whole(path, lambda file: torch.save(dict(content), file))


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write beside the file, flush to disk, then rename: a crash leaves the old file or the new one, whole.

    Raises:
        CheckpointError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError about positions
        reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
        raise CheckpointError(f"cannot write {path}: {reason}; free some space or choose another output") from None
    finally:
        temporary.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Return the weights under `base_model`, and the metadata; ours are JSON, others' may be any text."""
    from safetensors import SafetensorError, safe_open

    _check_is_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
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
        raise CheckpointError(f"{path} is no file; check the path of the checkpoint")


def _numpy_scalars() -> list[Any]:
    """What the official files' numpy metrics are made of: numbers, which run no code; both of their module's names."""
    scalar, _ = np.float64().__reduce__()
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]
