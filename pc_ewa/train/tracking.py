"""What a run tells: lines on the terminal and in log.txt, metrics in metrics.jsonl and in Weights & Biases."""

import json
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError


class Tracker:
    """Writes into the run folder; on every process but the main one it does nothing.

    Args:
        folder: the run folder.
        experiment: what runs; `experiment.wandb.mode` says whether and where W&B is told.
        resumed_step: metrics of later steps, left by a run that was cut off, are dropped.
        active: False on all processes but the main one.

    Raises:
        ConfigError: W&B "online" that cannot be reached.
    """

    def __init__(self, folder: Path, experiment: Experiment, resumed_step: int = 0, active: bool = True) -> None:
        self.folder, self.active = folder, active
        self._metrics = folder / "metrics.jsonl"
        self._wandb: Any = None
        if active:
            keep_metrics_until(self._metrics, resumed_step)
            if experiment.wandb.mode != "disabled":
                self._wandb = _start_wandb(folder, experiment)

    def line(self, text: str) -> None:
        """Print a line, above the progress bar if there is one, and add it to log.txt."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
            with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
                log.write(text + "\n")

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics after `step` optimizer steps."""
        if self.active:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
            if self._wandb:
                self._wandb.log(dict(metrics), step=step)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, whole or not at all, and tell W&B."""
        if self.active:
            write_text(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
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


def keep_metrics_until(path: Path, step: int) -> None:
    """Drop the lines of later steps: the run goes on from `step` and will write them again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # the half line of a kill in mid-write
            continue
    write_text(path, "".join(kept))


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def check_login(experiment: Experiment) -> None:
    """Raise ConfigError for W&B "online" without a login."""
    if experiment.wandb.mode == "online":
        import wandb

        if not wandb.login(prompt=False, verify=False):
            raise ConfigError("wandb.mode=online needs an account: run 'wandb login', or set wandb.mode=offline")


def _start_wandb(folder: Path, experiment: Experiment) -> Any:
    import wandb

    # The id lives in the run folder: a resumed run goes on as the same W&B run.
    id_file = folder / "wandb_id"
    if not id_file.is_file():
        write_text(id_file, uuid.uuid4().hex[:8])
    try:
        return wandb.init(
            project=experiment.wandb.project,
            name=folder.name,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
            mode=experiment.wandb.mode,
            config=experiment.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.errors.Error as error:
        raise ConfigError(f"Weights & Biases: {error}; set wandb.mode=offline or disabled") from None
