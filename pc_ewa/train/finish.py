"""The end of a run: the last and the best state measured on test, before and after merging, and merged files."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pc_ewa.config import Experiment
from pc_ewa.eval import Score
from pc_ewa.ewa import expert_layers, has_gate, merge_experts, routed_experts
from pc_ewa.ewa.find_ffns import find_ffns
from pc_ewa.models.checkpoints.read import read_weights
from pc_ewa.train.batches import ROUTED, stream
from pc_ewa.train.build import Setup
from pc_ewa.train.checkpoint import BEST
from pc_ewa.train.distributed import World
from pc_ewa.train.loop import Progress
from pc_ewa.train.restore import save_merged


def finish(
    experiment: Experiment, folder: Path, setup: Setup, world: World, progress: Progress, seconds: dict[str, float]
) -> dict[str, Any]:
    """Evaluate the last and the best state on test, write the merged models, and return the summary of the run.

    Without a validation part there is no best state, only the last.
    """
    main_metric = setup.objective.main_metric
    model = setup.measured(progress.step)
    at_inference = _at_inference(model)
    summary: dict[str, Any] = {
        "output": str(folder),
        "model": experiment.model.name,
        "main_metric": main_metric,
        "seed": experiment.seed,
        "steps": progress.step,
        "best_step": progress.best_step,
        "val_samples": len(setup.splits.val) if setup.splits.val else 0,
        "val_is_cut_from_train": setup.splits.val_is_cut,
        f"val_{main_metric}": progress.last_val,
        f"val_{main_metric}_best": progress.best_val,
        "test_samples": len(setup.splits.test),
        "mixtures": len(expert_layers(model)),
        "gated": has_gate(model),
        "average": experiment.average.kind if experiment.average else None,
        "params_training": _count(model),
        "params_merged": _count(at_inference),
        "ffns_training": _ffns(model),
        "ffns_merged": _ffns(at_inference),
        "peak_memory": progress.peak_memory,
    }
    last = _measure(model, "last", experiment, folder, setup, world, seconds)
    summary |= last
    if progress.best_step == progress.step:
        _measured_already(folder, world)
        summary |= {f"{name}_best": figure for name, figure in last.items()}
    elif progress.best_step is not None:
        model = copy.deepcopy(setup.model)
        model.load_state_dict(read_weights(folder / "checkpoints" / BEST))  # averaged ones, if there were any yet
        best = _measure(model, "best", experiment, folder, setup, world, seconds)
        summary |= {f"{name}_best": figure for name, figure in best.items()}
    return summary | {"seconds": {stage: round(value, 2) for stage, value in seconds.items()}}


def _measure(
    model: nn.Module,
    which: str,
    experiment: Experiment,
    folder: Path,
    setup: Setup,
    world: World,
    seconds: dict[str, float],
) -> dict[str, float]:
    """Measure a state before and after merging, and write the merged model; one with gates is measured once."""

    def on_test(model: nn.Module) -> Score:
        with timed(seconds, "evaluate"):
            return setup.objective.evaluate(model, setup.splits, "test", world.device)

    def on_test_routed() -> Score:
        torch.manual_seed(stream(experiment.seed, ROUTED, world.rank))
        with routed_experts(model):
            return on_test(model)

    unmerged = None if has_gate(model.eval()) else on_test_routed()
    with timed(seconds, "merge"):
        merged_model = _at_inference(model)
        if world.is_main:
            names, path = list(setup.splits.train.class_names), folder / "checkpoints" / f"merged_{which}.pt"
            save_merged(merged_model, experiment, names, setup.model_arguments, path)
    merged = on_test(merged_model)
    metrics = {f"test_{name}_unmerged": figure for name, figure in (unmerged or merged).metrics().items()}
    metrics |= {f"test_{name}_merged": figure for name, figure in merged.metrics().items()}
    if setup.probe and world.is_main:
        with timed(seconds, "evaluate"):
            svm = setup.probe.measure(merged_model, "test")
        metrics |= {f"test_svm_{name}_merged": figure for name, figure in svm.metrics().items()}
    return metrics


def _measured_already(folder: Path, world: World) -> None:
    """The last state is the best one: its merged file serves as both."""
    if world.is_main:
        best = folder / "checkpoints" / "merged_best.pt"
        best.unlink(missing_ok=True)
        best.write_bytes((folder / "checkpoints" / "merged_last.pt").read_bytes())


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time that the block takes to a stage."""
    began = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began


def _at_inference(model: nn.Module) -> nn.Module:
    """The model as it is used: a merged copy, or itself with its gates."""
    return model if has_gate(model) else merge_experts(copy.deepcopy(model))


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _ffns(model: nn.Module) -> int:
    """How many FFNs a model has, each expert one."""
    try:
        places = len(find_ffns(model))
    except ValueError:  # a model that is no transformer
        return 0
    return places + sum(mixture.num_experts - 1 for mixture in expert_layers(model).values())
