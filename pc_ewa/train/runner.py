"""A whole run: prepare, train, merge the experts, evaluate, report; into one self-contained folder."""

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

from pc_ewa.config import Experiment, dump
from pc_ewa.errors import ConfigError
from pc_ewa.train.build import Setup, build
from pc_ewa.train.checkpoint import Checkpoints
from pc_ewa.train.distributed import World, is_main_process, join_world
from pc_ewa.train.finish import finish
from pc_ewa.train.loop import resume, train
from pc_ewa.train.memory import reset_peak_memory
from pc_ewa.train.summary import describe_summary
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
        reset_peak_memory(world.device)
        setup = build(experiment, world)
        if check_only:
            return None
        with only_process_in(folder) if world.is_main else nullcontext():
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
def only_process_in(folder: Path, who: str = "another process") -> Iterator[int]:
    """Hold the lock of a folder, free once this process and those that inherit it have ended, however they end.

    Returns:
        The descriptor of the lock, for those that shall inherit it.

    Raises:
        ConfigError: the folder is in use by `who`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder} is in use by {who}; wait for it or choose another output") from None
        yield lock.fileno()


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
        summary = finish(experiment, folder, setup, world, progress, seconds)
        tracker.summary(summary)
        tracker.line("\n" + describe_summary(summary))
    return summary


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
