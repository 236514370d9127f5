"""A run on disk. No other module contains the names of its files."""

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

# Keys of a config that may change when a run resumes. None of them changes a number: the folder may be moved,
# checkpoints are whole however the model was sharded, and trackers only read.
FREE = ("output", "train.sharding", *TRACKERS)
# Old names of keys in summaries and results, and the current ones.
_RENAMED = {
    "headline": "main_metric",
    "val_shapes": "val_samples",
    "test_shapes": "test_samples",
    "shapes_per_second": "samples_per_second",
}


def checkpoint_of(place: Path, *, merged: bool = True) -> Path:
    """Return the checkpoint of the last step if `place` is the folder of a run; else `place` itself.

    Args:
        place: a run folder, a file, or anything else.
        merged: True for merged_last.pt if there is one, and else last.pt; False the other way round.

    Example:
        >>> checkpoint_of(Path("model.pt")).name
        'model.pt'
    """
    run = RunFolder(place)
    files = [run.merged("last"), run.checkpoints.last]
    return next((file for file in (files if merged else reversed(files)) if os.path.isfile(file)), place)


class RunFolder:
    """The folder of a run: config.yaml, environment.json, log.txt, metrics.jsonl, checkpoints/, summary.json.

    Creating the object writes nothing. Files are written under a temporary name and renamed, so that a kill leaves no
    torn file. The exceptions are log.txt and metrics.jsonl, which grow by lines.

    Args:
        path: the folder; it need not exist.
        keep: number of newest checkpoints to keep, besides the best.

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
        different = [key for key in different if not any(f"{key}.".startswith(f"{free}.") for free in FREE)]
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
        """Remove temporary files of a killed process, and checkpoints beyond the newest `keep`."""
        for path in self.path.glob(".*.tmp"):
            if path.is_file():
                path.unlink()
        self.checkpoints.tidy()

    def begin(self, experiment: Experiment, environment: Mapping[str, Any]) -> None:
        """Write the resolved config and the environment."""
        write_text(self.config_path, dump(experiment))
        write_text(self.path / "environment.json", _json(environment))

    @property
    def is_begun(self) -> bool:
        """True once a run has begun here."""
        return self.config_path.is_file()

    def config(self) -> dict[str, Any]:
        """Read the resolved config of the run, as plain values.

        A damaged file is replaced by the config in the newest checkpoint.

        Raises:
            ConfigError: an absent or damaged file, and no checkpoint.
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
        """Read metrics.jsonl. Each line has a "step". Lines that a crash tore are left out."""
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
        """Drop the metrics of later steps, which the run will record again when it resumes from `step`."""
        if self._metrics.is_file():
            kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
            write_text(self._metrics, "".join(kept))

    def tracker_id(self, new: str) -> str:
        """Return the id of the run for its trackers. The first call stores it, so that a resumed run has the same id.

        Args:
            new: the id to store if the run has none yet.
        """
        path = self.path / "wandb_id"
        known = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
        if not known:
            write_text(path, new)
        return known or new

    # Once it is finished

    @property
    def is_finished(self) -> bool:
        """True once the run has finished."""
        return self._summary.is_file()

    @property
    def finished_at(self) -> float:
        """Time at which the run finished, in seconds since 1970."""
        return self._summary.stat().st_mtime

    def summary(self) -> dict[str, Any] | None:
        """Read the summary of a finished run, with the current keys. Returns None if the run is not finished.

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
        """Write the summary, which marks the run as finished."""
        write_text(self._summary, _json(summary))

    def merged(self, which: Literal["last", "best"]) -> Path:
        """Return the path of the merged model of the last or the best step."""
        return self.checkpoints.folder / f"merged_{which}.pt"

    def copy_merged(self, source: Literal["last", "best"], target: Literal["last", "best"]) -> None:
        """Copy a merged file to the other name, if the last step is the best."""
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
            # The folder itself is not created yet: a check must leave nothing behind.
            nearest = next(path for path in (inside, *inside.resolve().parents) if path.exists())
            if not nearest.is_dir():
                raise ConfigError(f"output={self.path}: {nearest} is a file; choose another output")
            # Writing is the only reliable test: os.access() ignores read-only file systems, ACLs and quotas.
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
        """Save the state after `step` optimizer steps. `best` also saves it as best.pt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # step-N.pt comes last. A run resumes from the newest of these, so if a kill prevents it, the run repeats the
        # steps and writes best.pt and last.pt again.
        paths = [self.last, self.folder / f"step-{step:08d}.pt"]
        if best:
            paths.insert(0, self.best)
        first, *others = paths
        save_atomically(content, first)
        for path in others:
            self._link(path, first)
        self.tidy()

    def tidy(self) -> None:
        """Remove checkpoints beyond the newest `keep`, and temporary files of a killed process."""
        for path in (*self.folder.glob(".*.tmp"), *self._steps()[: -self.keep]):
            if path.is_file():
                path.unlink()

    def newest(self) -> dict[str, Any] | None:
        """Read the newest checkpoint. Returns None if there is none yet.

        Raises:
            CheckpointError: a damaged file; the message names the newest whole one before it.
        """
        steps = self._steps()
        if not steps:
            return None
        try:
            return read_checkpoint(steps[-1])
        except CheckpointError as error:
            older = next((step for step in reversed(steps[:-1]) if _is_whole(step)), None)
            rescue = f"delete it to go on from {older.name}" if older else "delete the run folder to start again"
            raise CheckpointError(f"{error}; {rescue}") from None

    def _link(self, path: Path, first: Path) -> None:
        # A hard link costs no space, and the data stays when the step file is pruned. It is made under a temporary
        # name, as os.link() refuses an existing target while replace() overwrites it atomically.
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
    """Return a summary, or the results of a comparison, with old keys replaced by the current ones."""
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
