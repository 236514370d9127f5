"""Writing of exported files: ONNX, with 8-bit weights too, and .pt2 of torch.export. Each is checked beforehand."""

import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pc_ewa.errors import CheckpointError, ConfigError
from pc_ewa.eval import Score
from pc_ewa.export.check import KINDS, TOLERANCE, largest_difference
from pc_ewa.export.metadata import describe
from pc_ewa.export.runtime import DESCRIPTION, OnnxModel, OpenVinoModel, ProgramModel
from pc_ewa.export.trace import exporting, input_names, output_name, quiet, ready, trace
from pc_ewa.files import write_whole
from pc_ewa.models.base import least_points
from pc_ewa.package import missing_package, version_of

ENDINGS = (".onnx", ".pt2")

# Nodes whose weights become 8-bit integers. Their inputs are quantised at run time, by the largest value of all clouds
# of a call. That can cost accuracy, so it has to be measured, one cloud a call.
_QUANTIZED = ["MatMul", "Gemm"]


def check_path(path: str | Path, *endings: str) -> Path:
    """Check the path of a file to write, and return it.

    Raises:
        ConfigError: the path has another ending, is a folder, or its folder does not exist.
    """
    path, endings = Path(path), endings or ENDINGS
    if path.suffix not in endings:
        raise ConfigError(f"{path} does not end in {' or '.join(endings)}; name it after the format that you want")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder; create it or choose another place")
    return path


def export(model: nn.Module, path: str | Path, **about: Any) -> dict[str, float]:
    """Write a model to .onnx or .pt2, by the ending of the path.

    `about` are the keyword arguments of `export_onnx`, and the result is the same.

    Raises:
        ConfigError: the path has another ending, the model is neither a classifier nor a segmenter, or there is not one
            name for each class.
        CheckpointError: the model has mixtures of experts, or the file does not compute the same as the model.

    Example:
        >>> from pc_ewa.export import export
        >>> export(pc_ewa.load_model("furniture"), "furniture.pt2")  # doctest: +SKIP
        {'torch 2.13.0': 0.0}
    """
    path = check_path(path)
    write = export_onnx if path.suffix == ".onnx" else export_program
    return write(model, path, **about)


def load_exported(path: str | Path) -> OnnxModel | ProgramModel:
    """Load an exported file by its ending. The result is called like the network.

    Raises:
        ConfigError: the path has another ending.
        CheckpointError: the file cannot be loaded.

    Example:
        >>> from pc_ewa.export import load_exported
        >>> load_exported("furniture.onnx")(torch.rand(1, 1024, 3)).shape  # doctest: +SKIP
        torch.Size([1, 18])
    """
    return OnnxModel(path) if check_path(path).suffix == ".onnx" else ProgramModel(path)


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Any = None,
) -> dict[str, float]:
    """Write a model as ONNX: from clouds, of any batch and number of points, to scores. Grouping is in the graph.

    The graph is the forward pass of the model. It maps `points` (B, N, 3) float32, and for segmenters `categories` (B,)
    int64, to `logits` (B, classes) or `log_probabilities` (B, N, parts). The caller has to normalise and sample the
    clouds. The metadata has the preprocessing, as JSON by key (see `pc_ewa.export.metadata.describe`).

    Before anything is written, the graph is compared with PyTorch in onnxruntime, and in OpenVINO if it is installed.
    The clouds for it include ties, duplicates and large offsets from the origin. The model refuses NaN and infinity;
    the graph returns meaningless numbers for them.

    Args:
        model: a classifier or segmenter without experts. It is not changed.
        path: the file to write.
        class_names: names of the logits, or of the categories that a segmenter takes. None uses those of the model.
        preprocessing: preprocessing of clouds, as a mapping or a `Preprocessing`. None uses that of the model.

    Returns:
        The largest difference from PyTorch, by the name of the runtime. It is relative to the largest score if that is
        above 1.

    Raises:
        ConfigError: the path has another ending, the model is neither a classifier nor a segmenter, or there is not one
            name for each class.
        CheckpointError: the model has mixtures of experts, or the file does not compute the same as the model.
        MissingPackageError: the extra `export` is not installed.

    Example:
        >>> from pc_ewa.export import export_onnx
        >>> export_onnx(pc_ewa.load_model("furniture"), "furniture.onnx")  # doctest: +SKIP
        {'onnxruntime 1.32.0': 3.3e-07}
    """
    path = check_path(path, ".onnx")
    _need_onnx()
    model = ready(model)
    metadata = describe(model, class_names, preprocessing)
    content = _onnx(model, trace(model), metadata)
    found = {f"onnxruntime {version_of('onnxruntime')}": _compare(model, OnnxModel(content), metadata)}
    if version_of("openvino"):
        found[f"OpenVINO {version_of('openvino')}"] = _compare(model, OpenVinoModel(content), metadata)
    _refuse_differences(found)
    write_whole(path, lambda file: file.write(content))
    return found


def export_program(
    model: nn.Module,
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Any = None,
) -> dict[str, float]:
    """Write a model as a .pt2 of torch.export, which torch runs without pc-ewa: `torch.export.load(path).module()`.

    Inputs, scores, arguments and checks are those of `export_onnx`. The metadata is in the extra file "pc_ewa.json".

    Example:
        >>> from pc_ewa.export import export_program
        >>> export_program(pc_ewa.load_model("furniture"), "furniture.pt2")  # doctest: +SKIP
        {'torch 2.13.0': 0.0}
    """
    path = check_path(path, ".pt2")
    model = ready(model)
    metadata = describe(model, class_names, preprocessing)
    program = trace(model)
    found = {f"torch {torch.__version__}": _compare(model, ProgramModel(program), metadata)}
    _refuse_differences(found)
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={DESCRIPTION: json.dumps(metadata)})
    write_whole(path, lambda file: file.write(buffer.getbuffer()))
    return found


class Quantized(NamedTuple):
    """Scores of a model with its exact weights and with 8-bit weights."""

    exact: Score
    int8: Score


def quantize(
    source: str | Path, path: str | Path, measure: Callable[[nn.Module], Score] | None = None
) -> Quantized | None:
    """Write an ONNX file with 8-bit weights, a quarter of the size (dynamic quantisation of the linear layers).

    The outputs of the model change, and its accuracy may change. Give the file one cloud a call: in a batch each answer
    depends on the other clouds, because they share the scale of the 8-bit activations. `OnnxModel` does so.

    Args:
        source: a file of `export_onnx`.
        path: the file to write.
        measure: a function that returns the score of a model, such as
            `lambda model: evaluate_classifier(model, clouds, settings)`. It is called on both models, and their metrics
            are added to the metadata under "float32" and "int8". None measures nothing.

    Returns:
        The two scores, or None without `measure`.

    Raises:
        CheckpointError: onnxruntime cannot load the source.

    Example:
        >>> from pc_ewa.export import quantize
        >>> quantize("furniture.onnx", "small.onnx")  # doctest: +SKIP
    """
    path = check_path(path, ".onnx")
    _need_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    metadata = OnnxModel(source).metadata | {"int8": True}  # first, because it refuses other files with a clear message
    with tempfile.TemporaryDirectory() as folder, quiet():
        small = Path(folder) / "small.onnx"
        quantize_dynamic(source, small, weight_type=QuantType.QInt8, op_types_to_quantize=_QUANTIZED)
        proto = onnx.load(small)
    _set_metadata(proto, metadata)
    scores = None
    if measure:
        scores = Quantized(measure(OnnxModel(source)), measure(OnnxModel(proto.SerializeToString())))
        metrics = {"float32": scores.exact.metrics(), "int8": scores.int8.metrics()}
        _set_metadata(proto, metadata | {"metrics": metrics})
    write_whole(path, lambda file: file.write(proto.SerializeToString()))
    return scores


def _onnx(model: nn.Module, program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """Return a traced model as the bytes of an ONNX file."""
    names = {"input_names": list(input_names(model)), "output_names": [output_name(model)]}
    with exporting("translate"):
        exported = torch.onnx.export(program, dynamo=True, verbose=False, **names)  # type: ignore[arg-type]
    assert exported is not None
    proto = exported.model_proto
    _set_metadata(proto, metadata)
    return proto.SerializeToString()


def _set_metadata(proto: Any, metadata: Mapping[str, Any]) -> None:
    """Write metadata into an onnx.ModelProto, each value as JSON."""
    import onnx

    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in metadata.items()})


def _compare(model: nn.Module, exported: nn.Module, metadata: Mapping[str, Any]) -> float:
    """Return the largest difference from PyTorch on clouds of every kind, in batches and alone."""
    # A cloud alone with one point more than the others: the graph must not have fixed the batch or number of points.
    count = max(least_points(model), metadata["preprocessing"].get("num_points", 0))
    generator = torch.Generator().manual_seed(0)
    clouds: list[Tensor] = [draw(2, count, generator) for draw in KINDS.values()]
    return largest_difference(model, exported, [*clouds, KINDS["random"](1, count + 1, generator)])


def _refuse_differences(found: Mapping[str, float]) -> None:
    for name, difference in found.items():
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"the exported model differs from PyTorch by {difference:.1e} in {name}, more than {TOLERANCE:g}: "
                "nothing is written; try another version of it, or report this with `pc-ewa info`"
            )


def _need_onnx() -> None:
    """Raise MissingPackageError with the extra to install, before any work."""
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ModuleNotFoundError as error:
        raise missing_package(error, "export to ONNX", "export") or error from None
    del onnx, onnxruntime, onnxscript
