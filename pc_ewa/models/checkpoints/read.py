"""Read checkpoint files of torch and safetensors, without running code from them."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pc_ewa.errors import CheckpointError
from pc_ewa.models.checkpoints.archive import check_archive, check_tensors

# The key of the weights in our checkpoints, official ones, official part segmentation, and files of other projects.
_STATES = ("model", "base_model", "model_state_dict", "state_dict")
# The metrics of a run are those of its averaged weights, so they take precedence over the live ones in the same file.
STATES = ("averaged", *_STATES)
_EXPORTED = (".onnx", ".pt2")
DIGEST = "pc_ewa_digest"  # the key of metadata in our safetensors files


def read_content(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of torch or safetensors, whatever its layout.

    Returns:
        The weights under `base_model`, and the rest of the file under its own keys: our files have `config` and
        `class_names`, among others.

    Raises:
        CheckpointError: the file is missing, damaged, without weights, or holds objects that could run code.
    """
    path = Path(path)
    if path.suffix in _EXPORTED and path.is_file():
        raise CheckpointError(
            f"{path} is an exported file for other runtimes; give the checkpoint or run that it was made from"
        )
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
    check_archive(path)
    try:
        with torch.serialization.safe_globals(_numpy_types()), warnings.catch_warnings():
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
    check_tensors(path, content)
    return content


def check_finite(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Check that weights hold no NaN or inf.

    Raises:
        CheckpointError: one holds NaN or inf; the message has its key.
    """
    for key, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            problem = "its training diverged, or the file is damaged; choose another checkpoint"
            raise CheckpointError(f"{path}: {key} holds NaN or inf: {problem}")


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Return the weights under `base_model`, and the metadata. Our metadata are JSON; other files have any text."""
    from safetensors import SafetensorError, safe_open

    _check_is_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (`file` is not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from None
    if metadata.get(DIGEST, digest := weights_digest(weights, metadata)) != digest:
        raise CheckpointError(f"{path} is damaged: its content differs from what was written; get a fresh copy")
    return {key: _plain(text) for key, text in metadata.items() if key not in ("format", DIGEST, *STATES)} | {
        "base_model": weights
    }


def weights_digest(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the digest of the content, which our safetensors files keep under `DIGEST`. The format has no CRC."""
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(metadata.keys() - {DIGEST}):
        digest.update(repr((key, metadata[key])).encode())
    for key in sorted(weights):
        value = weights[key].contiguous()
        digest.update(repr((key, value.dtype, tuple(value.shape))).encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(
            f"{path} is not a file but a folder; name one in it, in a run checkpoints/last.pt or "
            "checkpoints/merged_last.pt"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; check the path of the checkpoint")


def _numpy_types() -> list[Any]:
    """List the functions and types that torch may call to read numbers, texts and arrays of numpy."""
    # numpy 2 renamed numpy.core to numpy._core, and a pickle has the name of the version that wrote it.
    scalar, reconstruct = np.float64().__reduce__()[0], np.zeros(1).__reduce__()[0]
    names = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in ((scalar, "scalar"), (reconstruct, "_reconstruct"))
    ]
    # Every plain kind of array. Arrays of objects are left out, because their elements could be anything.
    kinds = {type(np.dtype(kind)) for kind in np.typecodes["All"].replace("O", "").replace("V", "")}
    # pickle writes an empty text as a call of bytes(). The stand-in takes no argument, so that bytes(10**9) is refused.
    empty = (_no_bytes, "builtins.bytes")
    return [*names, empty, np.ndarray, np.dtype, *kinds]


def _no_bytes() -> bytes:
    return b""
