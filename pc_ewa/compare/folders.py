"""A look at folders of finished runs, whoever started them."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from pc_ewa.compare.statistics import difference, mean_and_std, unit_of, verdict
from pc_ewa.errors import CheckpointError
from pc_ewa.train.objectives import OBJECTIVES
from pc_ewa.train.summary import TITLES

_STATES = {"merged, last": "merged", "merged, best by val": "merged_best", "unmerged, last": "unmerged"}
_NEEDED = ("seed", "output", "mixtures", "seconds")
_MAY_DIFFER = ("seed", "output", "wandb")


def describe_folders(folders: Sequence[Path]) -> str:
    """One block per setting, over its seeds; each setting is compared with the first one.

    Raises:
        CheckpointError: a folder that holds no finished run, or a damaged one.
    """
    settings: dict[str, list[dict[str, Any]]] = {}
    for folder in folders:
        setting, summary = _read_run(folder)
        settings.setdefault(setting, []).append(summary)
    first, *others = settings.values()
    return "\n".join([_describe(first), *(f"{_describe(runs)}\n{_against(runs, first)}" for runs in others)])


def _read_run(folder: Path) -> tuple[str, dict[str, Any]]:
    """Read what a run was (as text, without what may differ between seeds) and what came of it."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise CheckpointError(f"{folder} is no finished run; it needs config.yaml and summary.json") from None
    whole = isinstance(config, dict) and isinstance(summary, dict) and summary.get("main_metric") in [*TITLES]
    if not whole or not {*_NEEDED, f"test_{summary['main_metric']}_merged"} <= summary.keys():
        raise CheckpointError(
            f"{folder} is damaged: config.yaml or summary.json is not what a run leaves; leave it out"
        )
    setting = {key: value for key, value in config.items() if key not in _MAY_DIFFER}
    return json.dumps(setting, sort_keys=True), summary


def _describe(runs: Sequence[dict[str, Any]]) -> str:
    seeds = ", ".join(str(run["seed"]) for run in runs)
    main_metric = runs[0]["main_metric"]
    unit = unit_of(main_metric)
    percent = " %" if unit.percent else ""
    lines = [
        f"{runs[0]['output']} and alike: seeds {seeds}, {runs[0]['mixtures']} mixtures; test {TITLES[main_metric]}"
    ]
    gated = runs[0].get("gated", False)
    for title, state in ({"as a MoE, last": "merged", "as a MoE, best": "merged_best"} if gated else _STATES).items():
        values = [run[figure] for run in runs if (figure := f"test_{main_metric}_{state}") in run]
        if len(values) == len(runs):  # a run without a validation part has no best state
            each = ", ".join(map(unit.plain, values))
            lines.append(f"  {title:<20} {mean_and_std(values, unit)}{percent}   ({each})")
    if all("test_standard_error_merged" in run for run in runs):
        error = statistics.mean(run["test_standard_error_merged"] for run in runs)
        lines.append(f"  s.e. of a single run {error:.1%}")
    if main_metric == "accuracy" and not gated and all("test_correct_merged" in run for run in runs):
        lost = [run["test_correct_unmerged"] - run["test_correct_merged"] for run in runs]
        lines.append(f"  shapes lost by merging: {', '.join(map(str, lost))}")
    total = [sum(run["seconds"].values()) for run in runs]
    return "\n".join([*lines, f"  seconds, all stages: {', '.join(f'{seconds:.0f}' for seconds in total)}"])


def _against(runs: Sequence[dict[str, Any]], first: Sequence[dict[str, Any]]) -> str:
    """The difference to the first setting in words, paired by seed."""
    main_metric = first[0]["main_metric"]
    if runs[0]["main_metric"] != main_metric:
        return "  measured by something else than the first"
    figure = f"test_{main_metric}_merged"
    mine, theirs = ({run["seed"]: run[figure] for run in side} for side in (runs, first))
    objectives: Iterable[Any] = OBJECTIVES.values()
    better = next(each.higher_is_better for each in objectives if each.main_metric == main_metric)
    return f"  against the first:   {verdict(difference(mine, theirs), unit_of(main_metric), better)}"
