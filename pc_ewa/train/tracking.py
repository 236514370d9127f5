"""`Tracker`: text to the terminal and log.txt, metrics to metrics.jsonl and the trackers that a config switches on."""

import os
import re
import statistics
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

from tqdm import tqdm

from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError, WriteError
from pc_ewa.text import printable
from pc_ewa.trackers import TRACKERS, Backend, TrackedRun
from pc_ewa.train.run_folder import RunFolder

_LAYER = re.compile(r"ewa/(.*)/(spread|cosine)$")


class Tracker:
    """Logging of a run: text, metrics and trackers. On all processes but the main one it does nothing.

    Logging never ends a run. A tracker that fails causes one warning and is dropped. Lines and metrics that cannot be
    written, as on a full disk, cause one warning and are written as soon as there is space.

    Args:
        folder: the run folder.
        experiment: the run; its sections switch on TRACKERS.
        resumed_step: metrics of later steps, left by an interrupted run, are dropped.
        active: False on all processes but the main one.
        steps_per_epoch: adds "epoch" to all metrics. None leaves it out.

    Raises:
        ConfigError: W&B "online" that cannot be reached.
    """

    def __init__(
        self,
        folder: RunFolder,
        experiment: Experiment,
        resumed_step: int = 0,
        active: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        self.folder, self.active, self.steps_per_epoch = folder, active, steps_per_epoch
        self._backends: list[Backend] = []
        self._unwritten: list[Callable[[], None]] = []
        if active:
            folder.forget_metrics_after(resumed_step)
            identity = partial(folder.tracker_id, new=uuid.uuid4().hex[:8])
            run = TrackedRun(folder.path, identity, experiment.model_dump(mode="json"), resumed_step)
            for kind, settings in _wanted(experiment):
                self._start(kind, run, settings)

    @property
    def is_watched(self) -> bool:
        """True while at least one tracker is active."""
        return bool(self._backends)

    def line(self, text: str) -> None:
        """Print a line above the progress bar and add it to log.txt. Control characters in it are escaped."""
        if self.active:
            text = "\n".join(printable(line, None) for line in text.split("\n"))
            _print(text)
            self._write(partial(self.folder.log, text))

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics after `step` optimizer steps."""
        if self.active:
            epoch = {"epoch": step / self.steps_per_epoch} if self.steps_per_epoch else {}
            self._write(partial(self.folder.record, step, epoch | dict(metrics)))
            shown = epoch | with_short_names(metrics)
            self.tell(lambda backend: backend.metrics(step, shown))

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json atomically, and pass the summary to the trackers.

        Raises:
            WriteError: the file cannot be written.
        """
        if self.active:
            self.folder.write_summary(summary)
            self.tell(lambda backend: backend.summary(summary))

    def tell(self, tell: Callable[[Backend], object]) -> None:
        """Call `tell` with every tracker. A tracker that raises causes one warning and is dropped."""
        for backend in tuple(self._backends):
            try:
                tell(backend)
            except Exception as error:  # of any kind: an error of a tracker must not end the training
                self._backends.remove(backend)
                self.line(f"warning: {backend.title} failed ({_reason(error)}); training goes on without it")

    @contextmanager
    def harmless(self, what: str) -> Iterator[None]:
        """Turn any exception in the block into a one-line warning."""
        try:
            yield
        except Exception as error:
            self.line(f"warning: no {what} ({_reason(error)}); nothing of the run is lost")

    def __enter__(self) -> "Tracker":
        """Return the tracker. Files are opened for each line, so that a kill loses nothing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the trackers, as failed if the run failed, and print their last lines."""
        said: list[str] = []
        self.tell(lambda backend: said.extend(backend.close(failed=kind is not None)))
        for line in said:
            self.line(line)

    def _start(self, kind: type[Backend], run: TrackedRun, settings: Mapping[str, Any]) -> None:
        try:
            self._backends.append(kind(run, **settings))
        except (ConfigError, ModuleNotFoundError):
            raise
        except Exception as error:  # such as a full disk
            self.line(f"warning: {kind.title} cannot start ({_reason(error)}); training goes on without it")

    def _write(self, write: Callable[[], None]) -> None:
        """Write all pending lines in order. Lines that cannot be written wait for the next call."""
        waited = bool(self._unwritten)
        self._unwritten.append(write)
        try:
            while self._unwritten:
                self._unwritten[0]()
                self._unwritten.pop(0)
        except WriteError as error:
            if not waited:
                _print(f"warning: {error}; training goes on, and it is written once it can be")


def check_trackers(experiment: Experiment) -> None:
    """Check that the trackers of an experiment can start, as far as that is possible beforehand.

    Raises:
        ConfigError: a value that a tracker refuses, or W&B "online" without a login.
        ModuleNotFoundError: a tracker that is not installed.
    """
    for _ in _wanted(experiment):
        pass


def _wanted(experiment: Experiment) -> Iterator[tuple[type[Backend], dict[str, Any]]]:
    """Yield the trackers that the sections of an experiment switch on, with their settings."""
    for name, settings in experiment.trackers.items():
        if TRACKERS[name].wanted(**settings):
            yield TRACKERS[name], settings


def with_short_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """Shorten the names of per-layer metrics so that trackers group them, and add their means over the layers.

    Names stay long if two short ones would be equal.

    Example:
        >>> with_short_names({"ewa/blocks.blocks.3.mlp/spread": 0.5})
        {'spread/blocks.3': 0.5, 'spread/mean': 0.5}
    """
    found = {key: match for key in metrics if (match := _LAYER.match(key))}
    short = {match[1]: _short(match[1]) for match in found.values()}
    if len({*short.values()}) < len(short):
        short = {layer: layer for layer in short}
    named = {key: value for key, value in metrics.items() if key not in found}
    for kind in ("spread", "cosine"):
        layers = {f"{kind}/{short[match[1]]}": metrics[key] for key, match in found.items() if match[2] == kind}
        named |= layers | ({f"{kind}/mean": statistics.fmean(layers.values())} if layers else {})
    return named


def _short(layer: str) -> str:
    """Shorten the name of a layer to its numbers, each with the word before it."""
    return ".".join(re.findall(r"[^.]+\.\d+", layer)) or layer


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:200]


def _print(text: str) -> None:
    """Print, and discard all further output if stdout is a closed pipe or terminal."""
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except OSError:
        # Redirected as a descriptor: Python flushes stdout at exit and would fail there again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
