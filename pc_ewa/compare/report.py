"""Results as Markdown and CSV, for the terminal, the docs and the README."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pc_ewa.compare.difference import interval, mean_and_std, write_score
from pc_ewa.compare.evidence import PRIMARY, Results, found_differences, reference
from pc_ewa.compare.evidence import metric_of_results as _metric
from pc_ewa.compare.findings import about_evidence, evidence_table, finding
from pc_ewa.compare.markdown import table
from pc_ewa.compare.plan import pair_keys
from pc_ewa.compare.sweep import edge, left_out
from pc_ewa.eval.metric import Metric


def as_markdown(results: Results) -> str:
    """Write scores, evidence, costs, remarks and provenance as Markdown."""
    lines = [*table(_scores_table(results)), "", *evidence_table(results), *_costs(results)]
    lines += [f"- {line}" for line in remarks(results)]
    source = provenance(results)
    return "\n".join([*lines, *(["", source] if source else [])]) + "\n"


def as_summary(experiments: Sequence[Results]) -> str:
    """Write a table with one row per experiment: baseline, highlighted variant, verdict. Ablations are not listed."""
    rows = [["experiment", "metric (test, last step)", "baseline", "with EWA", "seeds", "verdict, 95 % interval"]]
    for results in filter(_is_listed, experiments):
        metric, shown = _metric(results), _highlight(results)
        scores = {v: _by_seed(results, v, PRIMARY) for v in (reference(results, shown), shown)}
        found = found_differences(results, shown).get(PRIMARY)
        cells = [f"{results['variants'][v]['title']}: {_cell(s, metric)}" for v, s in scores.items()]
        seeds = str(found.seeds if found else 0)
        rows.append([results["title"], _title(metric), *cells, seeds, f"**{finding(results, shown)}**"])
    return "\n".join(table(rows)) + "\n"


def as_csv(results: Results) -> str:
    """Write a CSV with the score of each variant, state and seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", "value", "state", "seed", results["main_metric"]])
    for name, variant in results["variants"].items():
        for state, scores in variant["scores"].items():
            writer.writerows([name, variant.get("value"), state, seed, score] for seed, score in scores.items())
    return text.getvalue()


def remarks(results: Results) -> list[str]:
    """Return the remarks that explain the tables."""
    lines = ["± is the sample standard deviation over seeds; an interval is the 95 % t interval of paired differences."]
    if not results["higher_is_better"]:
        lines[0] += " Lower is better here; in differences + is better."
    lines += about_evidence(results, _highlight(results))
    lines += [*_about_seeds(results), *_about_runs(results), *_about_sweep(results)]
    if results.get("standard_error"):
        title, error = _metric(results).title, _metric(results).format(results["standard_error"])
        lines.append(f"{results['test_samples']} test samples: a single {title} has a standard error of {error}.")
    lines += [f"Left out of the tables: {entry['title']}; {entry['why']}." for entry in results.get("left_out") or []]
    lines += [f"Broken: {entry['run']}: {entry['error']}" for entry in results.get("broken") or []]
    return lines


def provenance(results: Results) -> str:
    """Return command, seeds, date, hardware and versions in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items())
    seeds = results.get("seeds") or []
    parts = [
        f"`{results['command']}`" if results.get("command") else "",
        _seeds_in_words(seeds) if seeds else "",
        _days(results),
        results.get("hardware") or "",
        versions,
    ]
    return "; ".join(filter(None, parts))


def _days(results: Results) -> str:
    """Return the day of the last run, and of the first run if it differs."""
    last, days = results.get("date") or "", [place["first"] for place in results.get("sittings") or []]
    return f"{min(days)} to {last}" if days and min(days) != last else last


def _scores_table(results: Results) -> list[list[str]]:
    """Return the header and a row per variant. Empty columns are dropped."""
    metric = _metric(results)
    baseline = results["variants"].get(results["baseline"], {}).get("title", results["baseline"])
    key = (results.get("sweep") or {}).get("key", "chosen").rpartition(".")[2]
    states = {
        "test, last step": "merged",
        "best by validation": "merged_best",
        "with experts, last step": "unmerged",
        "validation, last step": "val",
    }
    rows = [[_title(metric), key, *states, f"against {baseline}, last step", "best by validation: difference"]]
    for name, variant in results["variants"].items():
        found = found_differences(results, name)
        cells = [_cell(_by_seed(results, name, state), metric) for state in states.values()]
        value = variant.get("value")
        own = "" if reference(results, name) == results["baseline"] else f"against {_reference(results, name)}: "
        words = "" if name == results["baseline"] else f"{own}{finding(results, name)}"
        best = interval(found.get(f"{PRIMARY}_best"), metric)
        rows.append([variant["title"], "" if value is None else f"{value:g}", *cells, words, best])
    kept = [index for index, column in enumerate(zip(*rows, strict=True)) if any(column[1:])]
    return [[row[index] for index in kept] for row in rows]


def _costs(results: Results) -> list[str]:
    """Return the table of costs and its note. Empty if no costs were measured."""
    measured = [variant for variant in results["variants"].values() if variant.get("costs")]
    if not measured:
        return []
    baseline = results["variants"].get(results["baseline"], {}).get("title", results["baseline"])
    rows = [["costs", "parameters in training", "at inference", "FLOPs per cloud", "training step"]]
    rows[0] += [f"of {baseline}'s", "inference per cloud", "peak memory of a run"]
    for variant in measured:
        cost = variant["costs"]
        ratio, peak = cost.get("step_ratio"), cost.get("peak_memory")
        rows.append(
            [
                variant["title"],
                f"{cost['params_training']:,}",
                f"{cost['params_inference']:,}",
                f"{cost['flops'] / 1e6:,.1f} M",
                f"{cost['step_seconds'] * 1e3:.1f} ms",
                "" if ratio is None else f"{ratio:.2f}",
                f"{cost['inference_seconds'] * 1e3:.2f} ms",
                "" if peak is None else f"{peak / 2**20:,.0f} MiB",
            ]
        )
    where = f", on {results['costs_measured_on']}" if results.get("costs_measured_on") else ""
    note = (
        f"Times are medians over rounds in which all take turns{where}; the ratio is the median of theirs. FLOPs: "
        "matrix products and convolutions of the merged model, a multiply-add as two."
    )
    return [*table(rows), "", f"- {note}"]


def _seeds_in_words(seeds: Sequence[int]) -> str:
    """Write seeds as "seed 3", "seeds 0, 1, 4" or, if many follow each other, "seeds 0 to 39"."""
    if len(seeds) > 5 and [*seeds] == [*range(seeds[0], seeds[0] + len(seeds))]:
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return ("seeds " if len(seeds) > 1 else "seed ") + ", ".join(map(str, seeds))


def _about_seeds(results: Results) -> list[str]:
    expected, folds = len(results.get("seeds") or []), results.get("folds") or 1
    lines = []
    if folds > 1:
        key = (results.get("sweep") or {}).get("key")
        shared = f" One {key} serves all: a shape that validates in one fold is tested in another." if key else ""
        lines = [f"{folds} folds: each seed tests every shape once, and pairs are of a seed and a fold.{shared}"]
    finished = [
        (variant["title"], _seeds_of(variant["scores"].get(PRIMARY, {}), folds))
        for variant in results["variants"].values()
    ]
    return [*lines, *(f"{title}: only {n} of {expected} seeds are finished." for title, n in finished if n < expected)]


def _seeds_of(scores: Mapping[str, float], folds: int) -> int:
    """Count the seeds with all folds finished."""
    seeds = [key.partition("/")[0] for key in scores]
    return sum(seeds.count(seed) == folds for seed in set(seeds))


def _about_runs(results: Results) -> list[str]:
    """Describe scores and durations of runs that were given by their folders."""
    lines = []
    for name, variant in results["variants"].items():
        if runs := variant.get("runs"):
            scores = _by_seed(results, name, "merged")
            each = ", ".join(write_score(score, _metric(results)) for score in scores.values())
            lost = ", ".join(map(str, runs["lost"].values()))
            kept = ", kept as MoE" if runs["gated"] else ""
            parts = [f"{variant['title']}: seeds {', '.join(scores)} ({each})", f"{runs['mixtures']} mixtures{kept}"]
            parts += [f"test samples lost by merging: {lost}"] if lost else []
            parts.append(f"seconds: {', '.join(f'{seconds:.0f}' for seconds in runs['seconds'].values())}")
            lines.append("; ".join(parts))
    return lines


def _about_sweep(results: Results) -> list[str]:
    sweep = results.get("sweep")
    if not sweep:
        return []
    values = ", ".join(f"{value:g}" for value in sorted(sweep["values"]))
    seeds = _seeds_in_words(sweep["seeds"])
    lines = [
        f"{sweep['key']} was chosen for each variant from {values}, by the best mean validation "
        f"{_metric(results).title} after the last step, {seeds}. Test played no part."
    ]
    beyond = [
        f"{variant['title']} ({', '.join(others)})"
        for variant in results["variants"].values()
        if (others := _beyond(variant.get("sweep") or {}, sweep["values"]))
    ]
    if beyond:
        lines.append(f"Tried beyond these, while the best lay at an end: {'; '.join(beyond)}.")
    unfit = [
        f"{variant['title']} ({', '.join(without)})"
        for variant in results["variants"].values()
        if (without := left_out(variant.get("sweep") or {}, pair_keys(sweep["seeds"], results.get("folds"))))
    ]
    if unfit:
        lines.append(f"Left out of that choice, for runs that broke or have no finite score: {'; '.join(unfit)}.")
    for side, further in (("lowest", "lower"), ("highest", "higher")):
        there = [
            variant["title"]
            for variant in results["variants"].values()
            if edge(variant.get("value"), variant.get("sweep") or {}) == side
        ]
        if there:
            who = "all" if len(there) == len(results["variants"]) else "; ".join(there)
            lines.append(
                f"At the edge of the sweep, with the {side} {sweep['key']}: {who}. A {further} one may be better still."
            )
    return lines


def _beyond(sweep: Mapping[Any, object], values: Sequence[float]) -> list[str]:
    """List the tried values beyond those of the plan. Values are numbers, or text as in results.json."""
    tried = [f"{float(value):g}" for value in sweep]
    return [value for value in tried if value not in {f"{planned:g}" for planned in values}]


def _highlight(results: Results) -> str:
    return str(results.get("highlight") or "ewa")


def _reference(results: Results, variant: str) -> str:
    name = reference(results, variant)
    return str(results["variants"].get(name, {}).get("title", name))


def _is_listed(results: Results) -> bool:
    """Return True if a summary lists the results: not an ablation, with baseline and highlighted variant present."""
    return results.get("summary", True) and {results["baseline"], _highlight(results)} <= results["variants"].keys()


def _title(metric: Metric) -> str:
    return f"{metric.title}{', %' if metric.percent else ''}"


def _by_seed(results: Results, variant: str, state: str) -> dict[str, float]:
    return dict(results["variants"].get(variant, {}).get("scores", {}).get(state) or {})


def _cell(scores: Mapping[str, float], metric: Metric) -> str:
    return mean_and_std(list(scores.values()), metric) if scores else ""
