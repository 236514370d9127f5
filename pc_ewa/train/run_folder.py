"""A run on disk: the one module that knows the names of its files."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import yaml

from pc_ewa.config import Experiment, dump
from pc_ewa.errors import CheckpointError, ConfigError
from pc_ewa.files import append_text, lock_folder, write_text, write_whole
from pc_ewa.models.checkpoints.read import read_checkpoint
from pc_ewa.models.checkpoints.write import save_atomically
from pc_ewa.trackers import TRACKERS
from pc_ewa.yaml_config import parse_yaml

# Keys of a config that may change when a run resumes: they do not touch what is computed, checkpoints are whole however
# a model was sharded, and a folder may be moved.
_FREE = ("output", "train.sharding", *TRACKERS)
# Keys of summaries and results that earlier versions wrote under other names.
_RENAMED = {
    "headline": "main_metric",
    "val_shapes": "val_samples",
    "test_shapes": "test_samples",
    "shapes_per_second": "samples_per_second",
}


class RunFolder:
    """The folder of a run: config.yaml, environment.json, log.txt, metrics.jsonl, checkpoints/, summary.json.

    Nothing is written before it is asked for. Whatever is written is whole or not there, but for log.txt and
    metrics.jsonl, which grow by lines.

    Args:
        path: the folder; it need not exist.
        keep: how many of the newest checkpoints to keep, besides the best.

    Example:
        >>> RunFolder("runs/quickstart").merged("last").as_posix()
        'runs/quickstart/checkpoints/merged_last.pt'
    """

    def __init__(self, path: str | Path, keep: int = 2) -> None:
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep)

    # Before a run

    def check(self, experiment: Experiment) -> None:
        """Raise ConfigError if the folder cannot be written, or holds a run with other settings.

        A finished run is only read.
        """
        if not os.path.isfile(self._summary):  # False for names that the system refuses, too
            self._check_writable()
        if not self.is_begun:
            return
        there, asked = _flat(self.config()), _flat(yaml.safe_load(dump(experiment)))
        different = [key for key in sorted({*there, *asked}) if there.get(key) != asked.get(key)]
        different = [key for key in different if not any(f"{key}.".startswith(f"{free}.") for free in _FREE)]
        if different:
            changes = ", ".join(f"{k}={there.get(k)} there, {asked.get(k)} asked" for k in different[:3])
            remedy = "choose another output or delete it"
            if self.is_finished and {"train.epochs", "train.steps"} & {*different}:
                remedy = f"to train on from its weights choose another output, and --from {self.merged('last')}"
            raise ConfigError(f"{self.path} holds a run with other settings ({changes}); {remedy}")

    def lock(self, owner: str = "another process") -> AbstractContextManager[int]:
        """Hold the lock of the folder, see `lock_folder`."""
        return lock_folder(self.path, owner)

    def tidy(self) -> None:
        """Remove what a kill in mid-write left, and checkpoints beyond the newest few."""
        for path in self.path.glob(".*.tmp"):
            if path.is_file():
                path.unlink()
        self.checkpoints.tidy()

    def begin(self, experiment: Experiment, environment: Mapping[str, Any]) -> None:
        """Write the resolved config and what the run runs on."""
        write_text(self.config_path, dump(experiment))
        write_text(self.path / "environment.json", _json(environment))

    @property
    def is_begun(self) -> bool:
        """True once a run has begun here."""
        return self.config_path.is_file()

    def config(self) -> dict[str, Any]:
        """Read the resolved config of the run, as plain values; a damaged file from its newest checkpoint.

        Raises:
            ConfigError: it is absent or damaged, and there is no checkpoint.
        """
        try:
            content = parse_yaml(self.config_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict):
            content = (self.checkpoints.newest() or {}).get("config")
        if not isinstance(content, dict):
            raise ConfigError(f"{self.config_path} is damaged; choose another output or delete the folder")
        return content

    # While it runs

    def log(self, text: str) -> None:
        """Add a line to log.txt."""
        append_text(self.path / "log.txt", text + "\n")

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics after `step` optimizer steps to metrics.jsonl."""
        append_text(self._metrics, json.dumps({"step": step, **metrics}) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl; each line has its "step". Lines that a crash tore are left out."""
        if not self._metrics.is_file():
            return []
        lines = self._metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        contents = (_parsed(line) for line in lines)
        return [
            with_current_keys(content)
            for content in contents
            if isinstance(content, dict) and isinstance(content.get("step"), int)
        ]

    def forget_metrics_after(self, step: int) -> None:
        """Drop the metrics of later steps: the run goes on from `step` and will record them again."""
        if self._metrics.is_file():
            kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
            write_text(self._metrics, "".join(kept))

    def tracker_id(self, new: str) -> str:
        """Return the id of the run with its tracker; the first call decides, so that a resumed run goes on as the same.

        Args:
            new: the id of a run that has none yet.
        """
        path = self.path / "wandb_id"
        known = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
        if not known:
            write_text(path, new)
        return known or new

    # Once it is finished

    @property
    def is_finished(self) -> bool:
        """True once the run has come to its end."""
        return self._summary.is_file()

    @property
    def finished_at(self) -> float:
        """When the run came to its end, in seconds since the epoch."""
        return self._summary.stat().st_mtime

    def summary(self) -> dict[str, Any] | None:
        """Read the summary of a finished run, with the keys of today; None for one that is not finished.

        Raises:
            CheckpointError: a damaged file.
        """
        if not self.is_finished:
            return None
        content = _parsed(self._summary.read_text(encoding="utf-8", errors="replace"))
        if isinstance(content, dict):
            content = with_current_keys(content)
        if not isinstance(content, dict) or not isinstance(content.get("main_metric"), str):
            raise CheckpointError(f"{self._summary} is damaged; delete it, and the same command makes it again")
        return content | {"output": str(self.path)}  # the folder may have been moved

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary: the run is finished."""
        write_text(self._summary, _json(summary))

    def merged(self, which: Literal["last", "best"]) -> Path:
        """Return where the merged model of the last or the best step is."""
        return self.checkpoints.folder / f"merged_{which}.pt"

    def copy_merged(self, source: Literal["last", "best"], target: Literal["last", "best"]) -> None:
        """Let one merged file serve as both, where the last step is the best."""
        content = self.merged(source).read_bytes()
        write_whole(self.merged(target), lambda file: file.write(content))

    @property
    def config_path(self) -> Path:
        """Path of the resolved config."""
        return self.path / "config.yaml"

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _summary(self) -> Path:
        return self.path / "summary.json"

    def _check_writable(self) -> None:
        inside = self.checkpoints.folder
        try:
            nearest = next(path for path in (inside, *inside.resolve().parents) if path.exists())
            if not nearest.is_dir():
                raise ConfigError(f"output={self.path}: {nearest} is a file; choose another output")
            probe = nearest / f".pc-ewa-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = error.strerror
            raise ConfigError(f"output={self.path} cannot be written: {reason}; choose another output") from None


class Checkpoints:
    """The checkpoints of a run: step-N.pt (the newest `keep`), last.pt (the newest of them) and best.pt."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.last, self.best = folder / "last.pt", folder / "best.pt"

    def save(self, content: Mapping[str, Any], step: int, best: bool) -> None:
        """Save the state after `step` optimizer steps; `best` also marks it the best by validation."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The step comes last: a run resumes from there, so what a kill cuts off before it is done again, all of it.
        paths = [self.last, self.folder / f"step-{step:08d}.pt"]
        if best:
            paths.insert(0, self.best)
        first, *others = paths
        save_atomically(content, first)
        for path in others:
            self._link(path, first)
        self.tidy()

    def tidy(self) -> None:
        """Remove checkpoints beyond the newest few, and what a kill in mid-write left."""
        for path in (*self.folder.glob(".*.tmp"), *self._steps()[: -self.keep]):
            if path.is_file():
                path.unlink()

    def newest(self) -> dict[str, Any] | None:
        """Read the newest checkpoint, or None when there is none yet.

        Raises:
            CheckpointError: it is damaged; the message names the one before it to go on from.
        """
        steps = self._steps()
        if not steps:
            return None
        try:
            return read_checkpoint(steps[-1])
        except CheckpointError as error:
            older = next((step for step in reversed(steps[:-1]) if _is_whole(step)), None)
            rescue = f"delete it to go on from {older.name}" if older else "delete the run folder to start anew"
            raise CheckpointError(f"{error}; {rescue}") from None

    def _link(self, path: Path, first: Path) -> None:
        # A hard link costs no space and outlives the pruning of the step it points to.
        temporary = self.folder / f".{path.name}.{os.getpid()}.tmp"
        try:
            os.link(first, temporary)
        except OSError:  # a file system without hard links
            save_atomically(read_checkpoint(first), temporary)
        temporary.replace(path)

    def _steps(self) -> list[Path]:
        found = (p for p in self.folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8,}\.pt", p.name))
        return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except CheckpointError:
        return False
    return True


def with_current_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary or results of a comparison with the keys of today, whichever version wrote it."""
    return {_RENAMED.get(key, key): value for key, value in content.items()}


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
