"""Exported files as modules, which can be evaluated like the network."""

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
    """An ONNX file in onnxruntime, on the CPU. It is called like the network that it was exported from.

    A file with 8-bit weights gets its clouds one by one, so that no answer depends on the other clouds of a batch.

    Args:
        source: the path of the file, or its content.
        threads: number of threads for one call. None uses the number of torch.

    Raises:
        CheckpointError: onnxruntime cannot load the file.

    Example:
        >>> model = OnnxModel("chairs.onnx")  # doctest: +SKIP
        >>> model(torch.rand(1, 1024, 3)).argmax(dim=1)  # doctest: +SKIP
    """

    def __init__(self, source: str | Path | bytes, threads: int | None = None) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # By default idle threads spin for a while, and take the cores from torch when both run in turn.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors only
        try:
            content = source if isinstance(source, bytes) else str(source)
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the exceptions of onnxruntime have no public base class
            name = "the exported model" if isinstance(source, bytes) else source
            raise CheckpointError(f"onnxruntime cannot load {name}: {' '.join(str(error).split())[:200]}") from None
        # 8-bit activations have one scale for the whole input of a layer: an outlier among the clouds of a batch would
        # round all others more coarsely.
        self.one_by_one = bool(self.metadata.get("int8"))

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the file, see `pc_ewa.export.metadata`. Values that are not JSON are returned as text."""
        return {key: _plain(value) for key, value in self.session.get_modelmeta().custom_metadata_map.items()}

    def forward(self, *tensors: Tensor) -> Tensor:
        """Map clouds (B, N, 3), and categories (B,) for a segmenter, to scores."""
        if self.one_by_one and len(tensors[0]) > 1:
            return torch.cat([self._run(*(tensor[i : i + 1] for tensor in tensors)) for i in range(len(tensors[0]))])
        return self._run(*tensors)

    def _run(self, *tensors: Tensor) -> Tensor:
        names = [node.name for node in self.session.get_inputs()]
        return torch.from_numpy(self.session.run(None, dict(zip(names, map(array, tensors), strict=True)))[0])


class OpenVinoModel(nn.Module):
    """An ONNX file in OpenVINO, on the CPU. It is called like the network that it was exported from.

    Args:
        source: the path of the file, or its content.
        precision: "f32", or "bf16" on CPUs that have it (`openvino_precisions`).
        threads: number of threads for one call. None uses the number of torch.

    Raises:
        CheckpointError: OpenVINO cannot load the file.

    Example:
        >>> model = OpenVinoModel("chairs.onnx", precision="bf16")  # doctest: +SKIP
        >>> model(torch.rand(1, 1024, 3)).argmax(dim=1)  # doctest: +SKIP
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
    """Return the precisions that OpenVINO has on this CPU. The set is empty if OpenVINO is not installed.

    Example:
        >>> from pc_ewa.export import openvino_precisions
        >>> openvino_precisions() <= {"f32", "bf16"}
        True
    """
    # OpenVINO replaces a precision that the CPU does not have, without a warning. So callers must check first.
    try:
        import openvino
    except ModuleNotFoundError:
        return set()
    found = set(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return {name for name, capability in (("f32", "FP32"), ("bf16", "BF16")) if capability in found}


class ProgramModel(nn.Module):
    """A .pt2 file of torch.export, or the program itself. It is called like the network that it was exported from.

    Load only files from sources that you trust, because torch runs the program in the file.

    Raises:
        CheckpointError: torch cannot load the file.

    Example:
        >>> model = ProgramModel("chairs.pt2")  # doctest: +SKIP
        >>> model(torch.rand(1, 1024, 3)).argmax(dim=1)  # doctest: +SKIP
    """

    def __init__(self, source: str | Path | ExportedProgram) -> None:
        super().__init__()
        extra = {DESCRIPTION: ""}
        if not isinstance(source, ExportedProgram):
            try:
                with quiet():
                    source = torch.export.load(source, extra_files=extra)
            except Exception as error:  # torch.export.load documents no exceptions
                reason = " ".join(str(error).split())[:200]
                raise CheckpointError(f"torch.export cannot load {source}: {reason}") from None
        self.metadata: dict[str, Any] = json.loads(extra[DESCRIPTION] or "{}")
        # A bound method, so that the exported module is not a child of this one: it raises on train() and eval().
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
    """Return a tensor as a contiguous array, the input of the runtimes."""
    return tensor.detach().cpu().contiguous().numpy()
