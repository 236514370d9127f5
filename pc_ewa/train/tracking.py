"""Logging: text to the terminal and log.txt, metrics to metrics.jsonl and Weights & Biases; means and peak memory."""

import resource
import sys
import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError
from pc_ewa.train.run_folder import RunFolder


class Tracker:
    """Writes into the run folder; on every process but the main one it does nothing.

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
        if active:
            folder.forget_metrics_after(resumed_step)
            if experiment.wandb.mode != "disabled":
                self._wandb = _start_wandb(folder, experiment)

    def line(self, text: str) -> None:
        """Print a line, above the progress bar if there is one, and add it to log.txt."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
            self.folder.log(text)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics after `step` optimizer steps."""
        if self.active:
            self.folder.record(step, metrics)
            if self._wandb:
                self._wandb.log(dict(metrics), step=step)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, whole or not at all, and tell W&B."""
        if self.active:
            self.folder.write_summary(summary)
            if self._wandb:
                self._wandb.summary.update(dict(summary))

    def __enter__(self) -> "Tracker":
        """Nothing to open: files are opened a line at a time, so that a kill loses nothing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the W&B run, as failed if it failed."""
        if self._wandb:
            self._wandb.finish(exit_code=0 if kind is None else 1)


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
    """Means of metrics since they were last asked for, and samples per second; adds without waiting for the GPU."""

    def __init__(self) -> None:
        self._reset()

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the metrics of a step."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._count += 1

    def means(self, batch_size: int) -> dict[str, float]:
        """Return the means of the steps added, of `batch_size` samples each, and start again."""
        seconds = time.perf_counter() - self._began
        means = {name: (total / self._count).item() for name, total in self._sums.items()}
        means["samples_per_second"] = self._count * batch_size / seconds
        self._reset()
        return means

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count, self._began = 0, time.perf_counter()


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
