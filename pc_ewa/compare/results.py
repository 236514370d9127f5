"""The results of a comparison as plain values, the source of tables and docs. They contain no absolute paths."""

import json
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pc_ewa.compare.evidence import compared, found_differences
from pc_ewa.compare.execute import Broken
from pc_ewa.compare.machine import hardware
from pc_ewa.compare.plan import Plan, Run
from pc_ewa.compare.sittings import sittings
from pc_ewa.compare.sweep import validation_scores, why_left_out
from pc_ewa.errors import CheckpointError, ConfigError
from pc_ewa.eval.metric import Metric
from pc_ewa.files import read_json
from pc_ewa.trackers import TRACKERS
from pc_ewa.train.objectives import metric_of
from pc_ewa.train.run_folder import RunFolder, with_current_keys

STATES = ("merged", "merged_best", "unmerged", "unmerged_best")
_NEEDED = ("title", "main_metric", "higher_is_better", "baseline", "variants")
_MAY_DIFFER = ("seed", "output", *TRACKERS)  # between the runs of one setting
_ABSOLUTE = re.compile(r"(?<![\w.\-/])/(?:[^\s/:,;'\"\[\]]+/)+")

Summary = Mapping[str, Any]  # of a finished run


def collect(
    plan: Plan, runs: Mapping[str, Sequence[Run]], costs: Mapping[str, Any] | None, broken: Mapping[Path, Broken]
) -> dict[str, Any]:
    """Collect the content of results.json.

    Args:
        plan: the comparison.
        runs: the finished runs of every variant at its final setting.
        costs: the result of `measure_costs`. None: costs were not measured.
        broken: runs that did not finish, by folder.
    """
    summaries = {v: {run.key: run.files.summary() or {} for run in found} for v, found in runs.items()}
    variants = {}
    for name, by_seed in summaries.items():
        variant, value = plan.variants[name], runs[name][0].value
        entry: dict[str, Any] = {"title": variant.title, "changes": variant.changes, "value": value}
        if variant.against:
            entry["against"] = variant.against
        if plan.sweep:
            entry["sweep"] = {f"{value:g}": scores for value, scores in validation_scores(plan, name, broken).items()}
        entry["scores"] = _scores(plan.metric.key, by_seed)
        if right := _right(by_seed):
            entry["right"] = right
        if costs:
            peaks = [s["peak_memory"] for s in by_seed.values() if s.get("peak_memory")]
            peak = int(statistics.median(peaks)) if peaks else None
            entry["costs"] = {**costs["variants"][name], "peak_memory": peak}
        variants[name] = entry
    places = sittings(run for found in runs.values() for run in found)
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
            "effect": plan.comparison.effect,
            "comparisons": plan.comparison.comparisons or _all_but(plan.baseline, plan.variants),
            "date": max((place["last"] for place in places), default=None),
            "hardware": _each_once(places, "hardware") or hardware(),
            "costs_measured_on": costs["where"] if costs else None,
            "versions": {name: version for name in ("python", "torch") if (version := _each_once(places, name))},
            "sittings": places,
            "seeds": list(plan.seeds),
            "folds": plan.comparison.folds,
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
    """Collect the content of results.json from the folders of finished runs, without the keys that need a plan.

    Runs whose configs differ only in seed, output and trackers are one setting. That of the first folder is the
    baseline.

    Raises:
        CheckpointError: a folder without a finished run, or with a damaged one.
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
            # A state that some run lacks, such as "best" without a validation split, would have a mean over fewer
            # seeds.
            "scores": {s: v for s, v in _scores(keys[baseline], by_seed).items() if len(v) == len(by_seed)},
            "right": _right(by_seed),
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
    """Read a results file of pc-ewa, or of a tool that writes the same keys.

    Raises:
        ConfigError: a file that is not JSON, or lacks keys that every table needs.
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


def without_paths(value: Any) -> Any:
    """Replace absolute paths in every text by their last component. Paths in the current folder become relative."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    if isinstance(value, str):
        return _ABSOLUTE.sub(".../", value.replace(f"{Path.cwd()}{os.sep}", ""))
    return value


def _compared(
    metric: Metric, baseline: str, variants: dict[str, dict[str, Any]], summaries: Mapping[str, Mapping[Any, Summary]]
) -> dict[str, Any]:
    """Return the metric, the sample counts and the variants, with their differences to their references."""
    results: dict[str, Any] = {"baseline": baseline, "variants": variants}
    for name, entry in variants.items():
        if name in compared(results):
            entry["difference"] = {state: found._asdict() for state, found in found_differences(results, name).items()}
    tested = [_tested(by_seed) for by_seed in summaries.values()]
    first = next((s for by_seed in summaries.values() for s in by_seed.values()), {})
    total = max((count for count in tested if count), default=None)
    own = [s.get("test_standard_error_merged") for s in summaries.get(baseline, {}).values()]
    errors = [error for error in own if error is not None]
    return {
        "main_metric": metric.key,
        "higher_is_better": metric.higher_is_better,
        "test_samples": total,
        "val_samples": first.get("val_samples"),
        # The error of one fold, scaled to the samples of all folds of a seed: it falls with the root of their number.
        "standard_error": statistics.fmean(errors) * (first["test_samples"] / total) ** 0.5
        if errors and total
        else None,
        **results,
    }


def _tested(by_seed: Mapping[Any, Summary]) -> int | None:
    """Count the test samples of one seed over all its folds."""
    counts: dict[str, int] = {}
    for key, summary in by_seed.items():
        seed = str(key).partition("/")[0]
        counts[seed] = counts.get(seed, 0) + (summary.get("test_samples") or 0)
    return max(counts.values(), default=None)


def _read_run(folder: Path) -> tuple[str, Summary]:
    """Read the summary of a run and its setting, which is its config as text, without seed, output and trackers."""
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
    """Return the number of test samples lost by merging. None without counts, and for gated mixtures."""
    before, after = (summary.get(f"test_correct_{state}") for state in ("unmerged", "merged"))
    return None if before is None or after is None or summary.get("gated") else before - after


def _each_once(places: Sequence[Mapping[str, Any]], key: str) -> str:
    """Join the distinct values of `key` over all sittings."""
    return " and ".join(dict.fromkeys(place[key] for place in places if place[key]))


def _all_but(baseline: str, variants: Iterable[str]) -> list[str]:
    return [name for name in variants if name != baseline]


def _right(summaries: Mapping[Any, Summary]) -> dict[str, str]:
    """Return the packed per-sample correctness of each run that stored it."""
    kept = {str(key): summary.get("test_right_merged") for key, summary in summaries.items()}
    return {key: right for key, right in kept.items() if right}


def _scores(key: str, summaries: Mapping[Any, Summary]) -> dict[str, dict[str, float]]:
    """Return the metric by state and seed. "val" and "val_best" are of validation, all others of test."""
    metrics = {state: f"test_{key}_{state}" for state in STATES} | {"val": f"val_{key}", "val_best": f"val_{key}_best"}
    return {
        state: {str(seed): summary[name] for seed, summary in summaries.items() if summary.get(name) is not None}
        for state, name in metrics.items()
    }
