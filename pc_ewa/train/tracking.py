"""Logging: text to the terminal and log.txt, metrics to metrics.jsonl and Weights & Biases; means and peak memory."""

import os
import resource
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError, WriteError
from pc_ewa.text import printable
from pc_ewa.train.run_folder import RunFolder


class Tracker:
    """Writes into the run folder; on every process but the main one it does nothing.

    What observes a run never ends it. W&B that fails is told once, and left out from then on. Lines and metrics that
    cannot be written, on a full disk, are told of once and written as soon as there is space.

    Args:
        folder: the run folder.
        experiment: the run; `experiment.wandb.mode` decides whether and where W&B records it.
        resumed_step: metrics of later steps, left by a run that was cut off, are dropped.
        active: False on all processes but the main one.

    Raises:
        ConfigError: W&B "online" that cannot be reached.
    """

    def __init__(self, folder: RunFolder, experiment: Experiment, resumed_step: int = 0, active: bool = True) -> None:
        self.folder, self.active = folder, active
        self._wandb: Any = None
        self._unwritten: list[Callable[[], None]] = []
        if active:
            folder.forget_metrics_after(resumed_step)
            if experiment.wandb.mode != "disabled":
                self._wandb = self._started(experiment)

    def _started(self, experiment: Experiment) -> Any:
        try:
            return _start_wandb(self.folder, experiment)
        except OSError as error:  # such as a full disk
            self.line(f"warning: Weights & Biases cannot start ({error.strerror}); training goes on without it")
            return None

    def line(self, text: str) -> None:
        """Print a line, above the progress bar if there is one, and add it to log.txt; names of files come clean."""
        if self.active:
            text = "\n".join(printable(line, None) for line in text.split("\n"))
            _print(text)
            self._write(partial(self.folder.log, text))

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics after `step` optimizer steps."""
        if self.active:
            self._write(partial(self.folder.record, step, metrics))
            self._tell_wandb(lambda wandb: wandb.log(dict(metrics), step=step))

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, whole or not at all, and tell W&B.

        Raises:
            WriteError: the file cannot be written.
        """
        if self.active:
            self.folder.write_summary(summary)
            self._tell_wandb(lambda wandb: wandb.summary.update(dict(summary)))

    def __enter__(self) -> "Tracker":
        """Nothing to open: files are opened a line at a time, so that a kill loses nothing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the W&B run, as failed if it failed."""
        self._tell_wandb(lambda wandb: wandb.finish(exit_code=0 if kind is None else 1))

    def _write(self, write: Callable[[], None]) -> None:
        """Write what is due, in its order; what cannot be written waits for the next call."""
        waited = bool(self._unwritten)
        self._unwritten.append(write)
        try:
            while self._unwritten:
                self._unwritten[0]()
                self._unwritten.pop(0)
        except WriteError as error:
            if not waited:
                _print(f"warning: {error}; training goes on, and it is written once it can be")

    def _tell_wandb(self, tell: Callable[[Any], object]) -> None:
        if self._wandb is None:
            return
        try:
            tell(self._wandb)
        except Exception as error:  # whatever it is, training is worth more
            self._wandb = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.line(f"warning: Weights & Biases failed ({reason}); training goes on without it")


def _print(text: str) -> None:
    """Print; where stdout is a closed pipe or a terminal that is gone, nothing more is written there."""
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_login(experiment: Experiment) -> None:
    """Raise ConfigError for W&B "online" without a login."""
    if experiment.wandb.mode == "online":
        import wandb

        if not wandb.login(prompt=False, verify=False):
            raise ConfigError("wandb.mode=online needs an account: run 'wandb login', or set wandb.mode=offline")


def _start_wandb(folder: RunFolder, experiment: Experiment) -> Any:
    import wandb

    try:
        return wandb.init(
            project=experiment.wandb.project,
            name=folder.path.name,
            id=folder.tracker_id(new=uuid.uuid4().hex[:8]),
            resume="allow",
            dir=str(folder.path),
            mode=experiment.wandb.mode,
            config=experiment.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.errors.Error as error:
        raise ConfigError(f"Weights & Biases: {error}; set wandb.mode=offline or disabled") from None


class Meter:
    """Means of metrics since they were last asked for, and samples per second; adds without waiting for the GPU.

    Args:
        state: of the meter of a run that goes on, from `state`; None starts from nothing.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {"sums": {}, "count": 0}
        self._sums: dict[str, Tensor] = dict(state["sums"])
        self._count: int = state["count"]
        self._timed, self._began = 0, time.perf_counter()

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the metrics of a step."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)).to(value.device) + value
        self._count += 1
        self._timed += 1

    @staticmethod
    def knows(state: object) -> bool:
        """Return True for what `state` returns."""
        return (
            isinstance(state, dict)
            and state.keys() == {"sums", "count"}
            and isinstance(state["count"], int)
            and isinstance(state["sums"], dict)
            and all(isinstance(total, Tensor) and total.dim() == 0 for total in state["sums"].values())
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that the first means after a resume are those of the undisturbed run."""
        return {"sums": dict(self._sums), "count": self._count}

    def means(self, batch_size: int) -> dict[str, float]:
        """Return the means of the steps added, of `batch_size` samples each, and start again."""
        seconds = time.perf_counter() - self._began
        means = {name: (total / self._count).item() for name, total in self._sums.items()}
        means["samples_per_second"] = self._timed * batch_size / seconds
        self._sums, self._count = {}, 0
        self._timed, self._began = 0, time.perf_counter()
        return means


def reset_peak_memory(device: torch.device) -> None:
    """Count from here on, where counting can start again: on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes of tensors on the GPU; without one, of the whole process (maximum resident set), torch itself included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
