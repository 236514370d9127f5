"""The evidence of a comparison, computed from its results alone: differences, corrected p values, power."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pc_ewa.compare.bootstrap import interval_over_both
from pc_ewa.compare.difference import Difference, difference
from pc_ewa.compare.power import holm, pairs_needed, smallest_effect
from pc_ewa.errors import ConfigError
from pc_ewa.eval.metric import Metric
from pc_ewa.eval.right import unpack_right
from pc_ewa.train.objectives import metric_of

Results = Mapping[str, Any]
INTEREST = 0.5  # points: the smallest effect of interest if a comparison names none
PRIMARY = "merged"  # the primary outcome: the merged model after the last step, on test


class Evidence(NamedTuple):
    """The evidence of one comparison.

    Attributes:
        found: the paired difference of the primary outcome.
        p: p value, corrected by Holm's rule if the comparison was planned. None if the test cannot be computed.
        planned: True if the comparison was planned.
        sees: the smallest effect that these pairs detect with 80 % power.
        needs: number of seeds that detect the effect of interest. None: over 100,000, or no effect is named.
        both: the 95 % interval over seeds and test samples. None: the runs did not store correctness per sample.
    """

    found: Difference
    p: float | None
    planned: bool
    sees: float
    needs: int | None
    both: tuple[float, float] | None


def metric_of_results(results: Results) -> Metric:
    """Return the metric of results. A key that is not of an objective becomes a metric without a unit."""
    key, higher_is_better = results["main_metric"], results["higher_is_better"]
    try:
        return metric_of(key)._replace(higher_is_better=higher_is_better)
    except ConfigError:
        return Metric(key, key, higher_is_better, percent=False)


def effect_of_interest(results: Results) -> float | None:
    """Return the smallest effect of interest in the unit of the scores.

    Returns None if the comparison names none and the metric is not in percent.
    """
    percent = metric_of_results(results).percent
    points = results.get("effect") or (INTEREST if percent else None)
    return None if points is None else points / 100 if percent else float(points)


def reference(results: Results, variant: str) -> str:
    """Return the name of the reference of a variant: its `against`, or the baseline."""
    return str(results["variants"][variant].get("against") or results["baseline"])


def compared(results: Results) -> list[str]:
    """List the variants whose reference is in the results."""
    variants = results["variants"]
    return [name for name in variants if name != results["baseline"] and reference(results, name) in variants]


def planned(results: Results) -> list[str]:
    """List the variants with a planned comparison. Holm's correction counts all of them, finished or not."""
    return list(results.get("comparisons") or compared(results))


def found_differences(results: Results, variant: str) -> dict[str, Difference]:
    """Return the differences of a variant to its reference, of the last step and of the best by validation."""
    if variant not in compared(results):
        return {}
    scores, others = (results["variants"][name]["scores"] for name in (variant, reference(results, variant)))
    states = [state for state in (PRIMARY, f"{PRIMARY}_best") if state in scores and state in others]
    found = {state: difference(scores[state], others[state]) for state in states}
    return {state: entry for state, entry in found.items() if entry}


def corrected(results: Results) -> dict[str, float]:
    """Return the p value of every planned comparison after Holm's correction."""
    names = planned(results)
    found = {name: found_differences(results, name).get(PRIMARY) for name in names if name in results["variants"]}
    return holm({name: entry.p if entry else None for name, entry in found.items()}, len(names))


def evidence(results: Results) -> dict[str, Evidence]:
    """Return the evidence of each comparison of two pairs or more, by variant."""
    family, effect = corrected(results), effect_of_interest(results)
    shown = {}
    for name in compared(results):
        found = found_differences(results, name).get(PRIMARY)
        if found is None or found.std is None or not np.isfinite(found.std):
            continue
        pairs = None if effect is None else pairs_needed(effect, found.std)
        folds = results.get("folds") or 1
        shown[name] = Evidence(
            found,
            family.get(name, found.p),
            name in family,
            smallest_effect(found.std, found.seeds),
            None if pairs is None else -(-pairs // folds),
            _over_both(results, name),
        )
    return shown


def _over_both(results: Results, variant: str) -> tuple[float, float] | None:
    """Return the interval over seeds and test samples. The samples of all folds of a seed are concatenated."""
    mine, theirs = (results["variants"][name].get("right") or {} for name in (variant, reference(results, variant)))
    rows: dict[str, list[tuple[Any, Any]]] = {}
    for key in sorted(mine.keys() & theirs.keys()):
        sides = (unpack_right(mine[key]).numpy(), unpack_right(theirs[key]).numpy())
        rows.setdefault(key.partition("/")[0], []).append(sides)
    # A seed that lacks a fold has fewer samples than the others, and cannot be a row of the same matrix.
    whole = [row for row in rows.values() if len(row) == (results.get("folds") or 1)]
    if len(whole) < 2:
        return None
    first, second = (np.stack([np.concatenate([fold[side] for fold in row]) for row in whole]) for side in (0, 1))
    return interval_over_both(first, second)
