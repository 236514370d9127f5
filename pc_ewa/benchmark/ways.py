"""The ways to run a trained model: PyTorch in several modes, and its exported files in their runtimes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pc_ewa.export import OnnxModel, OpenVinoModel, openvino_precisions

EAGER, EAGER_BF16 = "PyTorch, eager", "PyTorch, eager, bf16"
OPENVINO, OPENVINO_BF16 = "OpenVINO", "OpenVINO, bf16"


class Files(NamedTuple):
    """The exported files of a model."""

    exact: Path
    int8: Path


# Each function returns a model from the network, its files and a number of threads. The first way is the baseline.
WAYS: dict[str, Callable[[nn.Module, Files, int], nn.Module]] = {
    EAGER: lambda model, files, threads: model,
    EAGER_BF16: lambda model, files, threads: Autocast(model),
    "PyTorch, compiled": lambda model, files, threads: compiled(model),
    "onnxruntime": lambda model, files, threads: OnnxModel(files.exact, threads),
    "onnxruntime, int8": lambda model, files, threads: OnnxModel(files.int8, threads),
    OPENVINO: lambda model, files, threads: OpenVinoModel(files.exact, "f32", threads),
    OPENVINO_BF16: lambda model, files, threads: OpenVinoModel(files.exact, "bf16", threads),
}


class Autocast(nn.Module):
    """A model in bf16 autocast with float32 outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> Tensor:
        """Call the model."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(*tensors).float()


def compiled(model: nn.Module) -> nn.Module:
    """Compile a model from scratch."""
    # inductor generates code for the current number of threads. Reset, or it would reuse that of another number.
    torch.compiler.reset()
    result: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return result


def cannot_run() -> set[str]:
    """Return the ways that need a missing package, or bf16 on a CPU that would emulate it."""
    precisions, missing = openvino_precisions(), set()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # without AVX-512 it is several times slower than fp32
        missing.add(EAGER_BF16)
    return missing | {way for way, kind in ((OPENVINO, "f32"), (OPENVINO_BF16, "bf16")) if kind not in precisions}
