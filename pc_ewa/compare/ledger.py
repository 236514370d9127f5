"""The ledger of a comparison: one line of JSON per finished run, from any number of sittings and machines."""

import datetime
import hashlib
import json
import platform
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from pc_ewa.compare.machine import hardware
from pc_ewa.compare.plan import Plan, Run
from pc_ewa.config import Experiment
from pc_ewa.errors import ConfigError
from pc_ewa.files import append_text
from pc_ewa.train.run_folder import FREE

PROVENANCE = ("date", "hardware", "python", "torch")
_PLACE = ("variant", "value", "seed", "fold")
_PATHS = ("root", "path")  # keys of data that may differ between machines; the content of the files may not
_LEFT_OUT = ("output", "test_right_merged_best")  # keys of a summary: a path, and one that is in no table


class Ledger:
    """The file NAME.runs.jsonl beside the saved results of a comparison.

    A run in the ledger is not run again: `restore` writes its summary into the run folder that the comparison reads. A
    line counts only if its settings are those of the plan. Ledgers of two machines are joined by concatenation; a run
    that occurs twice counts once.

    Args:
        plan: the comparison.
        folder: folder of the saved results.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.path = plan, folder / f"{plan.name}.runs.jsonl"
        self._known: set[tuple[str, str]] = set()  # variant and settings

    def restore(self) -> list[str]:
        """Write the runs of the ledger into run folders that are not finished. Returns lines for the user.

        Raises:
            ConfigError: a line that is not a run.
        """
        restored, others = 0, 0
        for record in self._records():
            run = self._run(record)
            if run is None or record["settings"] != settings(self.plan.resolve(run)):
                others += 1
                continue
            self._known.add((run.variant, record["settings"]))
            if not run.files.is_finished:
                run.folder.mkdir(parents=True, exist_ok=True)
                provenance = {key: record.get(key) for key in PROVENANCE}
                run.files.begin(self.plan.resolve(run), provenance)
                run.files.write_summary(record["summary"] | {"provenance": provenance})
                restored += 1
        told = [(restored, f"runs taken from {self.path}")]
        told += [(others, f"runs in {self.path} are not of this comparison as it stands, and are left out")]
        return [f"{count} {words}" for count, words in told if count]

    def add(self, run: Run) -> None:
        """Append a finished run, unless the ledger contains it.

        Raises:
            WriteError: the file cannot be written.
        """
        known = settings(self.plan.resolve(run))
        summary = run.files.summary()
        if summary is None or (run.variant, known) in self._known:
            return
        kept = {key: value for key, value in summary.items() if key not in (*_LEFT_OUT, "provenance")}
        place = {key: getattr(run, key) for key in _PLACE}
        append_text(self.path, json.dumps({**place, "settings": known, **provenance(run), "summary": kept}) + "\n")
        self._known.add((run.variant, known))

    def _records(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        records = []
        for number, line in enumerate(lines, start=1):
            record = _parsed(line)
            if record is not None:
                records.append(record)
            elif line.strip():
                raise ConfigError(f"{self.path}, line {number}: not a finished run; take that line out")
        return records

    def _run(self, record: Mapping[str, Any]) -> Run | None:
        """Return the run of a record, or None if the plan does not have its variant, sweep or fold."""
        variant, value, seed, fold = (record[key] for key in _PLACE)
        folds = self.plan.comparison.folds
        fits = variant in self.plan.variants and (value is None) == (self.plan.sweep is None)
        if not fits or (fold is None) != (folds is None) or (folds and not 0 <= fold < folds):
            return None
        try:
            run = self.plan.run(variant, value, seed, fold)
            self.plan.resolve(run)
        except ConfigError:
            return None
        return run


def settings(experiment: Experiment) -> str:
    """Return a short hash of everything that determines a run: its config and the content of its initial weights.

    Keys that are null do not count, so that a key added by a later version does not invalidate earlier runs. Nor do
    keys that change no number.
    """
    content = _without_null(experiment.model_dump(mode="json"))
    for key in (*FREE, "device", "train.keep"):
        section, _, name = key.rpartition(".")
        (content[section] if section else content).pop(name, None)
    starts = [path for path in (experiment.init_from, experiment.tokenizer) if path]
    for key in ("init_from", "tokenizer"):
        content.pop(key, None)
    for key in _PATHS:
        content["data"].pop(key, None)
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8)
    for path in starts:
        digest.update(_file_digest(Path(path), Path(path).stat().st_mtime_ns))
    return digest.hexdigest()


def provenance(run: Run) -> dict[str, str | None]:
    """Return date, hardware and versions of a finished run, from the ledger or else from this machine."""
    told = (run.files.summary() or {}).get("provenance")
    if isinstance(told, dict):
        return {key: told.get(key) for key in PROVENANCE}
    day = datetime.date.fromtimestamp(run.files.finished_at).isoformat()
    return {"date": day, "hardware": hardware(), "python": platform.python_version(), "torch": torch.__version__}


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and _is_run(record) else None


def _is_run(record: Mapping[str, Any]) -> bool:
    """Return True if a line has what a run has. Anybody may have edited it."""
    if not {*_PLACE, "settings", "summary"} <= record.keys():
        return False
    texts = [record["variant"], record["settings"], *_known(record, *PROVENANCE)]
    numbers = [record["seed"], *_known(record, "value", "fold")]
    placed = all(isinstance(text, str) for text in texts) and all(isinstance(n, int | float) for n in numbers)
    summary = record["summary"]
    metric = summary.get("main_metric") if isinstance(summary, dict) else None
    return placed and isinstance(metric, str) and isinstance(summary.get(f"test_{metric}_merged"), int | float)


def _known(record: Mapping[str, Any], *keys: str) -> list[Any]:
    return [record[key] for key in keys if record.get(key) is not None]


def _without_null(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_null(value) if isinstance(value, dict) else value
        for key, value in content.items()
        if value is not None
    }


@lru_cache(maxsize=8)
def _file_digest(path: Path, changed: int) -> bytes:
    """Return the hash of a file. `changed`, its time in nanoseconds, invalidates the cache when the file changes."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).digest()
