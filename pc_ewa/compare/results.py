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

from pc_ewa.compare.execute import Broken, cores
from pc_ewa.compare.plan import Plan, Run
from pc_ewa.compare.statistics import difference
from pc_ewa.compare.summaries import read_summary
from pc_ewa.compare.sweep import validation_scores, why_left_out
from pc_ewa.errors import ConfigError

_NEEDED = ("title", "main_metric", "higher_is_better", "baseline", "variants")
STATES = ("merged", "merged_best", "unmerged", "unmerged_best")
_ABSOLUTE = re.compile(r"(?<![\w.\-/])/(?:[^\s/:,;'\"\[\]]+/)+")


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
    summaries = {v: {run.seed: read_summary(run) or {} for run in found} for v, found in runs.items()}
    first = next((s for by_seed in summaries.values() for s in by_seed.values()), {})
    scores = {v: _scores(plan.objective.main_metric, by_seed) for v, by_seed in summaries.items()}
    variants = {}
    for name, variant in plan.variants.items():
        if name not in runs:
            continue
        entry: dict[str, Any] = {"title": variant.title, "changes": variant.changes, "value": runs[name][0].value}
        if plan.sweep:
            entry["sweep"] = {
                f"{value:g}": {str(seed): score for seed, score in by_seed.items()}
                for value, by_seed in validation_scores(plan, name).items()
            }
        entry["scores"] = {state: {str(s): x for s, x in found.items()} for state, found in scores[name].items()}
        if name != plan.baseline and plan.baseline in scores:
            entry["difference"] = differences(scores[name], scores[plan.baseline])
        if costs:
            peaks = [s["peak_memory"] for s in summaries[name].values() if s.get("peak_memory")]
            entry["costs"] = {
                **costs["variants"][name],
                "peak_memory": int(statistics.median(peaks)) if peaks else None,
            }
        variants[name] = entry
    return without_paths(
        {
            "name": plan.name,
            "title": plan.comparison.title,
            "main_metric": plan.objective.main_metric,
            "higher_is_better": plan.objective.higher_is_better,
            "baseline": plan.baseline,
            "highlight": plan.highlight,
            "command": plan.command,
            "summary": plan.comparison.summary,
            "date": _last_day([run for found in runs.values() for run in found]),
            "hardware": hardware(),
            "costs_measured_on": costs["where"] if costs else None,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "seeds": list(plan.seeds),
            "sweep": plan.sweep.model_dump() if plan.sweep else None,
            "test_samples": first.get("test_samples"),
            "val_samples": first.get("val_samples"),
            "variants": variants,
            "left_out": [
                {"title": variant.title, "why": why_left_out(plan, name, broken)}
                for name, variant in plan.variants.items()
                if name not in runs
            ],
            "broken": [entry._asdict() for entry in broken.values()],
        }
    )


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file, of this package or of another tool that writes the same keys.

    Raises:
        ConfigError: no JSON, or one that lacks what every table needs.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in _NEEDED if key not in content]
        lacking = [
            name for name, variant in content.get("variants", {}).items() if not {"title", "scores"} <= {*variant}
        ]
    except (OSError, ValueError, TypeError, AttributeError):
        raise ConfigError(f"{path} holds no results; write it again with tools/compare.py --save") from None
    missing += [f"variants.{name}.title or .scores" for name in lacking]
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}; write it again with tools/compare.py --save")
    return dict(content)


def differences(
    scores: Mapping[str, Mapping[Any, float]], baseline: Mapping[str, Mapping[Any, float]]
) -> dict[str, dict[str, Any]]:
    """Paired differences to the baseline, of the merged model after the last step and of the best by validation."""
    found = {
        state: difference(scores[state], baseline[state])
        for state in ("merged", "merged_best")
        if state in scores and state in baseline
    }
    return {state: entry._asdict() for state, entry in found.items() if entry}


def hardware() -> str:
    """Processor, cores and GPU in words; no name of a machine."""
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


def _last_day(runs: Sequence[Run]) -> str | None:
    """The day on which the last of finished runs ended."""
    ended = [(run.folder / "summary.json").stat().st_mtime for run in runs]
    return datetime.date.fromtimestamp(max(ended)).isoformat() if ended else None


def _scores(main_metric: str, summaries: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """The main_metric by state and seed; "val" and "val_best" are of validation, all others of test."""
    metrics = {state: f"test_{main_metric}_{state}" for state in STATES}
    metrics |= {"val": f"val_{main_metric}", "val_best": f"val_{main_metric}_best"}
    return {
        state: {seed: summary[figure] for seed, summary in summaries.items() if summary.get(figure) is not None}
        for state, figure in metrics.items()
    }
