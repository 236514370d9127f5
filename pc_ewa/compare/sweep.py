"""The choice of a sweep's value: for each variant the best one on validation. Test scores are never read."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pc_ewa.compare.comparison import Number
from pc_ewa.compare.plan import Plan, Run, beyond

Scores = dict[Number, dict[str, float]]  # by value and by seed, or by seed/fold


def validation_scores(plan: Plan, variant: str, broken: Collection[Path] = ()) -> Scores:
    """Return the main metric on validation after the last step of finished runs, by value and seed.

    The values are those of the sweep, and further ones as long as the best lies at an end. A further value is added
    once all runs are finished, or are in `broken`, the folders of failed runs.
    """
    assert plan.sweep is not None
    values = sorted(plan.sweep.values)
    scores = {value: _scores_at(plan, variant, value) for value in values}
    for _ in range(plan.sweep.extend):
        if not all(_is_over(run, broken) for value in values for run in _runs_at(plan, variant, value)):
            break
        best = choose_value(scores, _keys(plan), plan.metric.higher_is_better)
        side = edge(best, scores)
        if not side:
            break
        value = beyond(values, side)
        values = sorted([*values, value])
        scores[value] = _scores_at(plan, variant, value)
    return {value: scores[value] for value in values}


def sweep_runs(plan: Plan, broken: Collection[Path] = ()) -> list[Run]:
    """Return all known runs of the sweep, sorted by seed, so that all variants progress together."""
    if plan.sweep is None:
        return []
    runs = [
        run
        for variant in plan.variants
        for value in validation_scores(plan, variant, broken)
        for run in _runs_at(plan, variant, value)
    ]
    return sorted(runs, key=lambda run: plan.sweep.seeds.index(run.seed) if plan.sweep else 0)


def choose_value(
    scores: Mapping[Number, Mapping[Any, float]], seeds: Sequence[Any], higher_is_better: bool
) -> Number | None:
    """Return the value with the best mean over all seeds of the sweep, or the smaller one of a tie.

    A value without a finite score on every seed is excluded, as when a run diverged. Returns None if all are excluded.
    """
    sign = 1 if higher_is_better else -1
    means = {
        value: sign * statistics.fmean(by_seed[seed] for seed in seeds)
        for value, by_seed in scores.items()
        if all(seed in by_seed and math.isfinite(by_seed[seed]) for seed in seeds)
    }
    return max(sorted(means), key=lambda value: means[value]) if means else None


def chosen(plan: Plan, variant: str, broken: Collection[Path] = ()) -> Number | None:
    """Return the chosen value of a variant. None without a sweep, and while there is nothing to choose."""
    if plan.sweep is None:
        return None
    return choose_value(validation_scores(plan, variant, broken), _keys(plan), plan.metric.higher_is_better)


def is_swept(plan: Plan, variant: str, broken: Collection[Path] = ()) -> bool:
    """Return True if all runs of a variant's sweep are finished or in `broken`, the folders of failed runs."""
    if plan.sweep is None:
        return True
    values = validation_scores(plan, variant, broken)
    return all(_is_over(run, broken) for value in values for run in _runs_at(plan, variant, value))


def is_settled(plan: Plan, variant: str, broken: Collection[Path] = ()) -> bool:
    """Return True if the whole sweep of a variant is over and a value can be chosen."""
    return is_swept(plan, variant, broken) and (plan.sweep is None or chosen(plan, variant, broken) is not None)


def why_left_out(plan: Plan, variant: str, broken: Collection[Path] = ()) -> str:
    """Return the reason why a variant has no results."""
    if not is_swept(plan, variant, broken):
        return "its sweep is not finished"
    if not is_settled(plan, variant, broken):
        return "no value of the sweep has a score on every seed"
    return "no run at its final setting is finished"


def left_out(sweep: Mapping[Any, Mapping[Any, float]], seeds: Sequence[Any]) -> list[str]:
    """Return the values that were excluded, because they lack a finite score on some seed.

    Values and seeds are numbers, or text as in results.json.
    """
    finite = {value: {str(seed) for seed, score in by.items() if math.isfinite(score)} for value, by in sweep.items()}
    return [str(value) for value in sweep if not finite[value].issuperset(map(str, seeds))]


def edge(value: Number | None, scores: Mapping[Any, object]) -> str:
    """Return the edge of a sweep at which a value lies: "lowest", "highest", or "" for neither."""
    values = sorted(float(other) for other in scores)
    if value is None or len(values) < 2:
        return ""
    return "lowest" if value == values[0] else "highest" if value == values[-1] else ""


def final_runs(plan: Plan, broken: Collection[Path] = ()) -> dict[str, list[Run]]:
    """Return the final runs of every variant with a known setting. `broken` is as in `is_swept`."""
    return {v: plan.final_runs(v, chosen(plan, v, broken)) for v in plan.variants if is_settled(plan, v, broken)}


def _runs_at(plan: Plan, variant: str, value: Number) -> list[Run]:
    return plan.runs(variant, value, plan.sweep.seeds if plan.sweep else [])


def _keys(plan: Plan) -> list[str]:
    """Return the keys of the runs that each value needs: every seed of the sweep, on every fold."""
    return [run.key for run in _runs_at(plan, plan.baseline, plan.values[0] or 0)]


def _scores_at(plan: Plan, variant: str, value: Number) -> dict[str, float]:
    summaries = {run.key: run.files.summary() for run in _runs_at(plan, variant, value)}
    return {key: summary[f"val_{plan.metric.key}"] for key, summary in summaries.items() if summary}


def _is_over(run: Run, broken: Collection[Path]) -> bool:
    return run.files.is_finished or run.folder in broken
