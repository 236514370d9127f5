"""The results of a comparison as plain values, which tables and docs are made from; no path of a machine is in them."""

import datetime
import json
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pc_ewa.compare.evidence import compared, found_differences
from pc_ewa.compare.execute import Broken, cores
from pc_ewa.compare.plan import Plan, Run
from pc_ewa.compare.sweep import validation_scores, why_left_out
from pc_ewa.errors import CheckpointError, ConfigError
from pc_ewa.eval.metric import Metric
from pc_ewa.files import read_json
from pc_ewa.train.objectives import metric_of
from pc_ewa.train.run_folder import RunFolder, with_current_keys

STATES = ("merged", "merged_best", "unmerged", "unmerged_best")
_NEEDED = ("title", "main_metric", "higher_is_better", "baseline", "variants")
_MAY_DIFFER = ("seed", "output", "wandb")  # between the runs of one setting
_ABSOLUTE = re.compile(r"(?<![\w.\-/])/(?:[^\s/:,;'\"\[\]]+/)+")

Summary = Mapping[str, Any]  # of a finished run


def collect(
    plan: Plan, runs: Mapping[str, Sequence[Run]], costs: Mapping[str, Any] | None, broken: Mapping[Path, Broken]
) -> dict[str, Any]:
    """Put together what results.json holds.

    Args:
        plan: the comparison.
        runs: the finished runs of every variant at its final setting.
        costs: what `measure_costs` returned.
        broken: runs that did not reach their end, by folder.
    """
    summaries = {v: {run.seed: run.files.summary() or {} for run in found} for v, found in runs.items()}
    variants = {}
    for name, by_seed in summaries.items():
        changes, value = plan.variants[name].changes, runs[name][0].value
        entry: dict[str, Any] = {"title": plan.variants[name].title, "changes": changes, "value": value}
        if plan.sweep:
            entry["sweep"] = {
                f"{value:g}": {str(seed): score for seed, score in scores.items()}
                for value, scores in validation_scores(plan, name).items()
            }
        entry["scores"] = _scores(plan.metric.key, by_seed)
        if costs:
            peaks = [s["peak_memory"] for s in by_seed.values() if s.get("peak_memory")]
            peak = int(statistics.median(peaks)) if peaks else None
            entry["costs"] = {**costs["variants"][name], "peak_memory": peak}
        variants[name] = entry
    return without_paths(
        {
            "name": plan.name,
            "title": plan.comparison.title,
            **_compared(
                plan.metric, plan.baseline, {v: variants[v] for v in plan.variants if v in variants}, summaries
            ),
            "highlight": plan.highlight,
            "command": plan.command,
            "summary": plan.comparison.summary,
            "date": _last_day([run for found in runs.values() for run in found]),
            "hardware": hardware(),
            "costs_measured_on": costs["where"] if costs else None,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "seeds": list(plan.seeds),
            "sweep": plan.sweep.model_dump() if plan.sweep else None,
            "left_out": [
                {"title": variant.title, "why": why_left_out(plan, name, broken)}
                for name, variant in plan.variants.items()
                if name not in runs
            ],
            "broken": [entry._asdict() for entry in broken.values()],
        }
    )


def collect_folders(folders: Sequence[Path]) -> dict[str, Any]:
    """Put finished runs together as `collect` does, whoever started them; the first setting is the baseline.

    Runs whose configs differ only in seed, output and wandb are one setting.

    Raises:
        CheckpointError: a folder that holds no finished run, or a damaged one.
        ConfigError: two runs of a setting with the same seed, or runs with different metrics or data.
    """
    settings: dict[str, dict[int, Summary]] = {}
    names: dict[str, str] = {}
    for folder in folders:
        setting, summary = _read_run(folder)
        by_seed = settings.setdefault(setting, {})
        if summary["seed"] in by_seed:
            raise ConfigError(f"{folder}: seed={summary['seed']} of this setting is there twice; leave one out")
        by_seed[summary["seed"]] = summary
        names.setdefault(setting, str(folder))
    summaries = {names[setting]: by_seed for setting, by_seed in settings.items()}
    keys = {name: next(iter(by_seed.values()))["main_metric"] for name, by_seed in summaries.items()}
    baseline = next(iter(keys))
    samples = {name: next(iter(by_seed.values()))["test_samples"] for name, by_seed in summaries.items()}
    for name, key in keys.items():
        if key != keys[baseline]:
            raise ConfigError(f"{name} is measured by {key}, {baseline} by {keys[baseline]}; leave one out")
        if samples[name] != samples[baseline]:
            there = f"{name} is measured on {samples[name]} test samples, {baseline} on {samples[baseline]}"
            raise ConfigError(f"{there}: not the same data; leave one out")
    variants = {
        name: {
            "title": f"{name} and alike" if len(by_seed) > 1 else name,
            # A state that some run lacks, such as the best of one without a validation part, has no mean.
            "scores": {s: v for s, v in _scores(keys[baseline], by_seed).items() if len(v) == len(by_seed)},
            "runs": {
                "mixtures": next(iter(by_seed.values()))["mixtures"],
                "gated": next(iter(by_seed.values())).get("gated", False),
                "lost": {str(seed): lost for seed, s in by_seed.items() if (lost := _lost(s)) is not None},
                "seconds": {str(seed): sum(s["seconds"].values()) for seed, s in by_seed.items()},
            },
        }
        for name, by_seed in summaries.items()
    }
    return {"title": baseline, **_compared(metric_of(keys[baseline]), baseline, variants, summaries)}


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file, of this package or of another tool that writes the same keys.

    Raises:
        ConfigError: not JSON, or one that lacks what every table needs.
    """
    again = "write it again with pc-ewa compare ... --save"
    try:
        content = with_current_keys(read_json(path))
        variants = content.get("variants", {}).items()
        missing = [key for key in _NEEDED if key not in content]
        missing += [f"variants.{name}.{key}" for name, v in variants for key in ("title", "scores") if key not in v]
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(f"{path} holds no results; {again}") from None
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}; {again}")
    return content


def hardware() -> str:
    """Name processor, cores and GPU; no name of a machine."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), flags=re.MULTILINE)
        processor = models[0].strip() if models else processor
    count = cores()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor}, {count} core{'s' if count > 1 else ''}{gpu}"


def without_paths(value: Any) -> Any:
    """Replace absolute paths in every text by their last part; those in the current folder become relative."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    if isinstance(value, str):
        return _ABSOLUTE.sub(".../", value.replace(f"{Path.cwd()}{os.sep}", ""))
    return value


def _compared(
    metric: Metric, baseline: str, variants: dict[str, dict[str, Any]], summaries: Mapping[str, Mapping[int, Summary]]
) -> dict[str, Any]:
    """Return the part of the results that tables compare, with the differences of the variants to the baseline."""
    results: dict[str, Any] = {"baseline": baseline, "variants": variants}
    for name, entry in variants.items():
        if name in compared(results):
            entry["difference"] = {state: found._asdict() for state, found in found_differences(results, name).items()}
    first = next((s for by_seed in summaries.values() for s in by_seed.values()), {})
    own = [s.get("test_standard_error_merged") for s in summaries.get(baseline, {}).values()]
    errors = [error for error in own if error is not None]
    return {
        "main_metric": metric.key,
        "higher_is_better": metric.higher_is_better,
        "test_samples": first.get("test_samples"),
        "val_samples": first.get("val_samples"),
        "standard_error": statistics.fmean(errors) if errors else None,
        **results,
    }


def _read_run(folder: Path) -> tuple[str, Summary]:
    """Read the setting of a run (its config as text, without what may differ between seeds) and its summary."""
    run = RunFolder(folder)
    if not run.is_begun or not run.is_finished:
        raise CheckpointError(f"{folder} is not a finished run; leave it out, or let pc-ewa train finish it")
    summary = run.summary() or {}
    numbers = ("seed", "mixtures", "test_samples", f"test_{summary['main_metric']}_merged")
    sound = all(isinstance(summary.get(key), int | float) for key in numbers)
    if not sound or not isinstance(summary.get("seconds"), dict):
        raise CheckpointError(f"{folder} is damaged: its summary lacks what a run leaves; leave it out")
    setting = {key: value for key, value in run.config().items() if key not in _MAY_DIFFER}
    return json.dumps(setting, sort_keys=True), summary


def _lost(summary: Summary) -> int | None:
    """Count the test samples that merging lost, where they were counted."""
    before, after = (summary.get(f"test_correct_{state}") for state in ("unmerged", "merged"))
    return None if before is None or after is None or summary.get("gated") else before - after


def _last_day(runs: Sequence[Run]) -> str | None:
    """Return the day on which the last of finished runs ended."""
    ended = [run.files.finished_at for run in runs]
    return datetime.date.fromtimestamp(max(ended)).isoformat() if ended else None


def _scores(key: str, summaries: Mapping[int, Summary]) -> dict[str, dict[str, float]]:
    """Return the metric by state and seed; "val" and "val_best" are of validation, all others of test."""
    metrics = {state: f"test_{key}_{state}" for state in STATES} | {"val": f"val_{key}", "val_best": f"val_{key}_best"}
    return {
        state: {str(seed): summary[name] for seed, summary in summaries.items() if summary.get(name) is not None}
        for state, name in metrics.items()
    }
