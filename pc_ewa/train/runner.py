"""A whole run: prepare, train, merge the experts, evaluate, report; into one self-contained folder."""

import copy
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from pc_ewa.config import Experiment, dump
from pc_ewa.errors import ConfigError
from pc_ewa.ewa import expert_layers, merge_experts, routed_experts
from pc_ewa.ewa.conversion import find_ffns
from pc_ewa.models.official import read_checkpoint
from pc_ewa.train.batches import ROUTED, stream
from pc_ewa.train.build import Setup, build
from pc_ewa.train.checkpoint import BEST, Checkpoints
from pc_ewa.train.distributed import World, is_main_process, join_world
from pc_ewa.train.loop import Progress, resume, train
from pc_ewa.train.report import describe_summary
from pc_ewa.train.restore import save_merged
from pc_ewa.train.tracking import Tracker, check_login, write_text

# Keys that may change when a run resumes: they do not touch what is computed.
_FREE = ("wandb",)


def run(experiment: Experiment, check_only: bool = False) -> dict[str, Any] | None:
    """Run an experiment to its end, or go on with it where it stopped.

    Args:
        experiment: what to run.
        check_only: stop once everything is built and found in order; nothing is written.

    Returns:
        The summary, as in summary.json; None when checking only or when a signal stopped the run.

    Raises:
        Error: a problem the user can solve, found before training where that is possible.
    """
    folder = Path(experiment.output)
    check_folder(folder, experiment)
    finished = folder / "summary.json"
    if finished.is_file() and not check_only:
        summary: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
        if is_main_process():
            print(f"{folder} is finished; to train anew choose another output=... or delete the folder\n")
            print(describe_summary(summary))
        return summary
    check_login(experiment)
    with join_world(experiment.device) as world:
        began = time.perf_counter()
        setup = build(experiment, world)
        if check_only:
            return None
        with _only_process_in(folder) if world.is_main else nullcontext():
            return _run(experiment, folder, setup, world, began)


def check_folder(folder: Path, experiment: Experiment) -> None:
    """Raise ConfigError if the run folder cannot be written or holds a run with another config."""
    _check_writable(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        return
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"{config} is damaged; choose another output or delete the folder")
    there, asked = _flat(content), _flat(yaml.safe_load(dump(experiment)))
    different = [key for key in sorted({*there, *asked}) if there.get(key) != asked.get(key)]
    different = [key for key in different if not key.startswith(_FREE)]
    if different:
        changes = ", ".join(f"{k}={there.get(k)} there, {asked.get(k)} asked" for k in different[:3])
        raise ConfigError(f"{folder} holds a run with other settings ({changes}); choose another output or delete it")


@contextmanager
def _only_process_in(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock, which a process loses when it ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder} is in use by another process; wait for it or choose another output") from None
        yield


def _run(experiment: Experiment, folder: Path, setup: Setup, world: World, began: float) -> dict[str, Any] | None:
    checkpoints = Checkpoints(folder / "checkpoints", experiment.train.keep)
    progress = resume(setup, checkpoints)
    if world.is_main:
        checkpoints.tidy()
        write_text(folder / "config.yaml", dump(experiment))
        write_text(folder / "environment.json", json.dumps(_environment(world), indent=2) + "\n")
    with Tracker(folder, experiment, progress.step, active=world.is_main) as tracker:
        for note in (f"run: {folder}", *setup.notes):
            tracker.line(note)
        if progress.step:
            tracker.line(f"resuming after step {progress.step}")
        seconds = {"setup": time.perf_counter() - began}
        if not train(setup, experiment, world, progress, checkpoints, tracker):
            return None
        seconds["train"] = progress.seconds
        summary = _finish(experiment, folder, setup, world, progress, seconds)
        tracker.summary(summary)
        tracker.line("\n" + describe_summary(summary))
    return summary


def _finish(
    experiment: Experiment, folder: Path, setup: Setup, world: World, progress: Progress, seconds: dict[str, float]
) -> dict[str, Any]:
    """Evaluate the last and the best state on test, before and after merging, and write the merged models."""
    model, mixtures = setup.model, expert_layers(setup.model)
    summary: dict[str, Any] = {
        "output": str(folder),
        "seed": experiment.seed,
        "steps": progress.step,
        "best_step": progress.best_step,
        "val_shapes": len(setup.splits.val),
        "val_is_cut_from_train": setup.splits.val_is_cut,
        "val_accuracy": progress.last_val,
        "val_accuracy_best": progress.best_val,
        "mixtures": len(mixtures),
        "params_training": _count(model),
    }
    for which, suffix in (("last", ""), ("best", "_best")):
        if which == "best":
            model = copy.deepcopy(setup.model)
            model.load_state_dict(read_checkpoint(folder / "checkpoints" / BEST)["model"])
        with _timed(seconds, "evaluate"), routed_experts(model.eval()):
            torch.manual_seed(stream(experiment.seed, ROUTED, world.rank))
            unmerged = setup.task.evaluate(model, setup.splits.test, world.device)
        with _timed(seconds, "merge"):
            merged_model = merge_experts(copy.deepcopy(model))
            if world.is_main:
                names = list(setup.splits.train.class_names)
                save_merged(merged_model, experiment, names, folder / "checkpoints" / f"merged_{which}.pt")
        with _timed(seconds, "evaluate"):
            merged = setup.task.evaluate(merged_model, setup.splits.test, world.device)
        summary |= {
            f"test_accuracy_unmerged{suffix}": unmerged.overall,
            f"test_accuracy_merged{suffix}": merged.overall,
            f"test_mean_class_accuracy_merged{suffix}": merged.mean_class,
            f"test_correct_unmerged{suffix}": unmerged.correct,
            f"test_correct_merged{suffix}": merged.correct,
            f"test_standard_error{suffix}": merged.standard_error,
        }
    ffns = len(find_ffns(merged_model))
    return summary | {
        "test_shapes": merged.shapes,
        "params_merged": _count(merged_model),
        "ffns_training": ffns + sum(mixture.num_experts - 1 for mixture in mixtures.values()),
        "ffns_merged": ffns,
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
    }


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time that the block takes to a stage."""
    began = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _environment(world: World) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "command": sys.argv,
    }


def _check_writable(folder: Path) -> None:
    inside = folder / "checkpoints"
    try:
        nearest = next(path for path in (inside, *inside.resolve().parents) if path.exists())
        if not nearest.is_dir():
            raise ConfigError(f"output={folder}: {nearest} is a file; choose another output")
        probe = nearest / f".pc-ewa-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"output={folder} cannot be written: {error.strerror}; choose another output") from None


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
