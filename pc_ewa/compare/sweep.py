"""The value of a sweep: of each variant the one that is best on validation. Test scores are never looked at."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pc_ewa.compare.comparison import Number
from pc_ewa.compare.plan import Plan, Run, beyond

Scores = dict[Number, dict[str, float]]  # by value and by seed, or by seed/fold


def validation_scores(plan: Plan, variant: str, broken: Collection[Path] = ()) -> Scores:
    """Return the main metric on validation after the last step by value and seed, as far as runs are finished.

    The values are those of the sweep, and those beyond them that it asks for as long as the best lies at an end; it
    asks for the next one once all runs are finished or, as those in the folders `broken`, will never be.
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
    """Return all runs that the sweep needs as far as it is known, one seed of all variants after the other."""
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
    """Return the value with the best mean over all seeds of the sweep, the smaller one of two that tie.

    A value that a seed lacks (the run broke, as at too high a learning rate) is out; None if all are.
    """
    sign = 1 if higher_is_better else -1
    means = {
        value: sign * statistics.fmean(by_seed[seed] for seed in seeds)
        for value, by_seed in scores.items()
        if all(seed in by_seed and math.isfinite(by_seed[seed]) for seed in seeds)
    }
    return max(sorted(means), key=lambda value: means[value]) if means else None


def chosen(plan: Plan, variant: str, broken: Collection[Path] = ()) -> Number | None:
    """Return the value at which a variant runs all its seeds; None without a sweep, or while nothing can be chosen."""
    if plan.sweep is None:
        return None
    return choose_value(validation_scores(plan, variant, broken), _keys(plan), plan.metric.higher_is_better)


def is_swept(plan: Plan, variant: str, broken: Collection[Path] = ()) -> bool:
    """Say if all runs of the sweep of a variant are finished or, as those in the folders `broken`, will never be."""
    if plan.sweep is None:
        return True
    values = validation_scores(plan, variant, broken)
    return all(_is_over(run, broken) for value in values for run in _runs_at(plan, variant, value))


def is_settled(plan: Plan, variant: str, broken: Collection[Path] = ()) -> bool:
    """Say if the final setting of a variant is known: not before its whole sweep is over."""
    return is_swept(plan, variant, broken) and (plan.sweep is None or chosen(plan, variant, broken) is not None)


def why_left_out(plan: Plan, variant: str, broken: Collection[Path] = ()) -> str:
    """Say why there is nothing to show of a variant."""
    if not is_swept(plan, variant, broken):
        return "its sweep is not finished"
    if not is_settled(plan, variant, broken):
        return "no value of the sweep has a score on every seed"
    return "no run at its final setting is finished"


def left_out(sweep: Mapping[Any, Mapping[Any, float]], seeds: Sequence[Any]) -> list[str]:
    """Return the values that could not be chosen, for want of a finite score on every seed.

    Values and seeds are numbers, or texts as in results.json.
    """
    finite = {value: {str(seed) for seed, score in by.items() if math.isfinite(score)} for value, by in sweep.items()}
    return [str(value) for value in sweep if not finite[value].issuperset(map(str, seeds))]


def edge(value: Number | None, scores: Mapping[Any, object]) -> str:
    """Say on which edge of a sweep of at least two values a value lies: "lowest", "highest" or ""."""
    values = sorted(float(other) for other in scores)
    if value is None or len(values) < 2:
        return ""
    return "lowest" if value == values[0] else "highest" if value == values[-1] else ""


def final_runs(plan: Plan, broken: Collection[Path] = ()) -> dict[str, list[Run]]:
    """Return the runs of all seeds of every variant whose setting is known; `broken` as in `is_swept`."""
    return {v: plan.final_runs(v, chosen(plan, v, broken)) for v in plan.variants if is_settled(plan, v, broken)}


def _runs_at(plan: Plan, variant: str, value: Number) -> list[Run]:
    return plan.runs(variant, value, plan.sweep.seeds if plan.sweep else [])


def _keys(plan: Plan) -> list[str]:
    """Return what the scores of each value need: a run of every seed of the sweep, on every fold."""
    return [run.key for run in _runs_at(plan, plan.baseline, plan.values[0] or 0)]


def _scores_at(plan: Plan, variant: str, value: Number) -> dict[str, float]:
    summaries = {run.key: run.files.summary() for run in _runs_at(plan, variant, value)}
    return {key: summary[f"val_{plan.metric.key}"] for key, summary in summaries.items() if summary}


def _is_over(run: Run, broken: Collection[Path]) -> bool:
    return run.files.is_finished or run.folder in broken
