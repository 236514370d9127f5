"""The value of a sweep: of each variant the one that is best on validation. Test scores are never looked at."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pc_ewa.compare.plan import Number, Plan, Run

Scores = dict[Number, dict[int, float]]


def validation_scores(plan: Plan, variant: str) -> Scores:
    """Return the main metric on validation after the last step by value and seed, as far as runs are finished."""
    assert plan.sweep is not None
    key = f"val_{plan.metric.key}"
    scores: Scores = {}
    for value in sorted(plan.sweep.values):
        summaries = {seed: plan.run(variant, value, seed).files.summary() for seed in plan.sweep.seeds}
        scores[value] = {seed: summary[key] for seed, summary in summaries.items() if summary}
    return scores


def choose_value(
    scores: Mapping[Number, Mapping[int, float]], seeds: Sequence[int], higher_is_better: bool
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


def chosen(plan: Plan, variant: str) -> Number | None:
    """Return the value at which a variant runs all its seeds; None without a sweep, or while nothing can be chosen."""
    if plan.sweep is None:
        return None
    return choose_value(validation_scores(plan, variant), plan.sweep.seeds, plan.metric.higher_is_better)


def is_swept(plan: Plan, variant: str, broken: Collection[Path] = ()) -> bool:
    """Say if all runs of the sweep of a variant are finished or, as those in the folders `broken`, will never be."""
    runs = [run for run in plan.sweep_runs() if run.variant == variant]
    return all(run.files.is_finished or run.folder in broken for run in runs)


def is_settled(plan: Plan, variant: str, broken: Collection[Path] = ()) -> bool:
    """Say if the final setting of a variant is known: not before its whole sweep is over."""
    return is_swept(plan, variant, broken) and (plan.sweep is None or chosen(plan, variant) is not None)


def why_left_out(plan: Plan, variant: str, broken: Collection[Path] = ()) -> str:
    """Say why there is nothing to show of a variant."""
    if not is_swept(plan, variant, broken):
        return "its sweep is not finished"
    if not is_settled(plan, variant, broken):
        return "no value of the sweep has a score on every seed"
    return "no run at its final setting is finished"


def left_out(sweep: Mapping[Any, Mapping[Any, float]], seeds: Sequence[int]) -> list[str]:
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
    return {v: plan.final_runs(v, chosen(plan, v)) for v in plan.variants if is_settled(plan, v, broken)}
