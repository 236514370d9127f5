"""Export of trained models for other runtimes: ONNX (onnxruntime, OpenVINO, browsers) and .pt2 of torch.export."""

from pc_ewa.export.runtime import OnnxModel, OpenVinoModel, ProgramModel, openvino_precisions
from pc_ewa.export.write import export, export_onnx, export_program, load_exported, quantize

__all__ = [
    "export",
    "export_onnx",
    "export_program",
    "load_exported",
    "quantize",
    "OnnxModel",
    "OpenVinoModel",
    "ProgramModel",
    "openvino_precisions",
]
