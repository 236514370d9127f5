"""Tracing of a model to a graph of torch's ops, from (points, categories) to scores, for any batch and cloud size."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pc_ewa.errors import CheckpointError, ConfigError
from pc_ewa.ewa import expert_layers, has_gate
from pc_ewa.export.lowering import Lowering
from pc_ewa.models.base import least_points
from pc_ewa.package import version_of

TASKS = ("classify", "segment")


def ready(model: nn.Module) -> nn.Module:
    """Return a copy of a model that is ready for export: on the CPU, in float32, in evaluation mode.

    Raises:
        CheckpointError: the model has mixtures of experts.
        ConfigError: the model is neither a classifier nor a segmenter.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if has_gate(model):
        raise CheckpointError(
            "its mixtures are gated: each token needs its expert at inference too, which no exported file supports; "
            "train without ewa.gate and merge with `pc-ewa merge CHECKPOINT -o merged.pt`, then export that"
        )
    mixtures = len(expert_layers(model))
    if mixtures:
        raise CheckpointError(
            f"it has {mixtures} mixtures of experts; merge them first with `pc-ewa merge CHECKPOINT -o merged.pt` or "
            "pc_ewa.merge_experts(model), then export the merged model"
        )
    task = getattr(model, "task", None)
    if task not in TASKS:
        does = f"is built to {task}" if task else "is not a model of pc_ewa"
        raise ConfigError(f"{type(model).__name__} {does}; export takes classifiers and segmenters")
    return copy.deepcopy(model).to("cpu", torch.float32).eval()


def inputs(model: nn.Module, points: Tensor) -> tuple[Tensor, ...]:
    """Return the inputs of a model for clouds (B, N, 3). A segmenter also gets categories, one after another."""
    if model.task != "segment":
        return (points,)
    return points, torch.arange(len(points)) % int(model.num_categories)  # type: ignore[arg-type]


def input_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the inputs."""
    return ("points", "categories") if model.task == "segment" else ("points",)


def output_name(model: nn.Module) -> str:
    """Return the name of the output."""
    return "log_probabilities" if model.task == "segment" else "logits"


def trace(model: nn.Module) -> ExportedProgram:
    """Trace a model that is `ready`. The graph has none of our ops, and takes any batch and number of points."""
    # Sizes of the example must not be 0 or 1, which torch.export specialises, nor the minimum, which a branch on the
    # number of points could specialise.
    batch, least = Dim("batch", min=1), least_points(model)
    points = torch.rand(2, least + 3, 3, generator=torch.Generator().manual_seed(0))
    shapes = {"points": {0: batch, 1: Dim("num_points", min=least)}, "categories": {0: batch}}
    dynamic = {name: shapes[name] for name in input_names(model)}
    with exporting("trace"), torch.no_grad(), Lowering():
        return torch.export.export(model, inputs(model, points), dynamic_shapes=dynamic, strict=False)


@contextmanager
def exporting(step: str) -> Iterator[None]:
    """Run a step of torch's exporter in a `with` block, and convert its errors to one line with the versions.

    Raises:
        CheckpointError: the exporter fails.
    """
    try:
        with quiet():
            yield
    except Exception as error:  # the exporter documents no exceptions
        found = f"torch {torch.__version__}, onnxscript {version_of('onnxscript')}"
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{found} cannot {step} the model: {type(error).__name__}: {reason}; torch 2.13 with onnxscript 0.7.2 can"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress log messages and warnings of the exporters, which do not help a user, in a `with` block."""
    root = logging.getLogger()
    disabled, handlers = root.manager.disable, list(root.handlers)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        # Some exporters call logging.warning, which adds a handler to the root logger. Every later message of a program
        # would then be printed twice.
        root.handlers[:] = handlers
