"""Exported files as models: what evaluates a network evaluates them too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from pc_ewa.errors import CheckpointError
from pc_ewa.export.trace import quiet

DESCRIPTION = "pc_ewa.json"  # the metadata in a .pt2


class OnnxModel(nn.Module):
    """An ONNX file in onnxruntime, on the CPU; called like the network it was exported from.

    Args:
        source: the path of the file, or its content.
        threads: threads for one call; None for torch's number.

    Raises:
        CheckpointError: a file that onnxruntime cannot load.

    Example:
        >>> model = OnnxModel("chairs.onnx")  # doctest: +SKIP
        >>> model(torch.rand(1, 1024, 3)).argmax(dim=1)  # doctest: +SKIP
    """

    def __init__(self, source: str | Path | bytes, threads: int | None = None) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # Threads that spin while they wait take the cores of whoever is next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors
        try:
            content = source if isinstance(source, bytes) else str(source)
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes have no public base
            name = "the exported model" if isinstance(source, bytes) else source
            raise CheckpointError(f"onnxruntime cannot load {name}: {' '.join(str(error).split())[:200]}") from None

    @property
    def metadata(self) -> dict[str, Any]:
        """What the file says of itself, see `pc_ewa.export.metadata`; of files of others, text."""
        return {key: _plain(value) for key, value in self.session.get_modelmeta().custom_metadata_map.items()}

    def forward(self, *tensors: Tensor) -> Tensor:
        """Map clouds (B, N, 3), and categories (B,) for a segmenter, to scores."""
        names = [node.name for node in self.session.get_inputs()]
        return torch.from_numpy(self.session.run(None, dict(zip(names, map(array, tensors), strict=True)))[0])


class OpenVinoModel(nn.Module):
    """The same in OpenVINO; `precision` is "f32", or "bf16" on CPUs that have it.

    Raises:
        CheckpointError: a file that OpenVINO cannot load.
    """

    def __init__(self, source: bytes | str | Path, precision: str = "f32", threads: int | None = None) -> None:
        super().__init__()
        import io

        import openvino

        core = openvino.Core()
        threads = threads or torch.get_num_threads()
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        try:
            model = core.read_model(io.BytesIO(source) if isinstance(source, bytes) else str(source))
            self.compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            name = "the exported model" if isinstance(source, bytes) else source
            raise CheckpointError(f"OpenVINO cannot load {name}: {' '.join(str(error).split())[:200]}") from None

    def forward(self, *tensors: Tensor) -> Tensor:
        """Map clouds (B, N, 3), and categories (B,) for a segmenter, to scores."""
        return torch.from_numpy(np.array(self.compiled(list(map(array, tensors)))[0]))


def openvino_precisions() -> set[str]:
    """Return the precisions that OpenVINO has on this CPU, if it is installed; others it replaces without a word."""
    try:
        import openvino
    except ModuleNotFoundError:
        return set()
    found = set(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return {name for name, capability in (("f32", "FP32"), ("bf16", "BF16")) if capability in found}


class ProgramModel(nn.Module):
    """A .pt2 file of torch.export, or the program itself; called like the network it was exported from.

    Load only files that you or people you trust have made: what torch runs is in the file.

    Raises:
        CheckpointError: a file that torch cannot load.
    """

    def __init__(self, source: str | Path | ExportedProgram) -> None:
        super().__init__()
        extra = {DESCRIPTION: ""}
        if not isinstance(source, ExportedProgram):
            try:
                with quiet():
                    source = torch.export.load(source, extra_files=extra)
            except Exception as error:  # it promises none
                reason = " ".join(str(error).split())[:200]
                raise CheckpointError(f"torch.export cannot load {source}: {reason}") from None
        self.metadata: dict[str, Any] = json.loads(extra[DESCRIPTION] or "{}")
        # Not a part of this module: it refuses to change its mode.
        self._run: Callable[..., Tensor] = source.module().forward

    def forward(self, *tensors: Tensor) -> Tensor:
        """Map clouds (B, N, 3), and categories (B,) for a segmenter, to scores."""
        return self._run(*tensors)


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def array(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as runtimes take it."""
    return tensor.detach().cpu().contiguous().numpy()
