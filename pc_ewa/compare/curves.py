"""How the variants got there: validation main_metric, spread of the experts and share rate along training."""

import csv
import io
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pc_ewa.compare.plan import Plan, Run
from pc_ewa.compare.statistics import unit_of
from pc_ewa.compare.summaries import read_metrics, read_summary
from pc_ewa.files import write_text
from pc_ewa.train.summary import TITLES

FIGURES = ("val", "spread", "share_rate")
_COLUMNS = 4  # of the legend
_SPREAD = re.compile(r"ewa/.*/spread$")


class Point(NamedTuple):
    """Mean and sample standard deviation of a figure over `seeds` seeds; `x` in epochs, or steps where these count."""

    step: int
    x: float
    mean: float
    std: float
    seeds: int


def curves(plan: Plan, runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, list[Point]]]:
    """The curves of every variant by figure: "val", "spread" (mean over the mixtures), "share_rate".

    Args:
        plan: the comparison.
        runs: the finished runs of every variant at its final setting.
    """
    return {variant: _variant_curves(plan, found) for variant, found in runs.items()}


def save_curves(plan: Plan, runs: Mapping[str, Sequence[Run]]) -> None:
    """Write curves.json, curves.csv and curves.png into the output folder."""
    found = curves(plan, runs)
    if not found:
        return
    unit = "steps" if plan.experiment.train.steps else "epochs"
    content = {
        "x": unit,
        "main_metric": plan.objective.main_metric,
        "variants": {v: {f: [p._asdict() for p in points] for f, points in all_.items()} for v, all_ in found.items()},
    }
    write_text(plan.output / "curves.json", json.dumps(content, indent=1) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", "figure", "step", unit, "mean", "std", "seeds"])
    for variant, by_figure in found.items():
        for figure, points in by_figure.items():
            writer.writerows([variant, figure, *point] for point in points)
    write_text(plan.output / "curves.csv", text.getvalue())
    _draw(plan, found, unit)


def _variant_curves(plan: Plan, runs: Sequence[Run]) -> dict[str, list[Point]]:
    values: dict[str, dict[int, list[float]]] = {figure: {} for figure in FIGURES}
    for run in runs:
        for line in read_metrics(run):
            for figure, value in _figures(line, plan.objective.main_metric).items():
                values[figure].setdefault(line["step"], []).append(value)
    per_step = _x_per_step(plan, runs[0])
    return {
        figure: [
            Point(step, step * per_step, statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0, len(v))
            for step, v in sorted(by_step.items())
        ]
        for figure, by_step in values.items()
    }


def _figures(line: Mapping[str, Any], main_metric: str) -> dict[str, float]:
    found = {"val": line.get(f"val_{main_metric}"), "share_rate": line.get("share_rate")}
    spreads = [value for name, value in line.items() if _SPREAD.match(name)]
    found["spread"] = statistics.fmean(spreads) if spreads else None
    return {name: value for name, value in found.items() if value is not None}


def _x_per_step(plan: Plan, run: Run) -> float:
    """Epochs in one optimizer step; 1 where the config counts steps."""
    experiment = plan.resolve(run)
    if experiment.train.steps:
        return 1.0
    epochs = experiment.train.epochs + (experiment.recipe == "official")  # theirs takes one more than asked
    return float(epochs / (read_summary(run) or {})["steps"])


def _draw(plan: Plan, found: Mapping[str, Mapping[str, Sequence[Point]]], unit: str) -> None:
    import matplotlib as mpl  # half a second, for those who draw

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    main_metric = plan.objective.main_metric
    scale = unit_of(main_metric).scale
    titles = {
        "val": (f"validation {TITLES[main_metric]}{', %' if scale != 1 else ''}", scale),
        "spread": ("spread of the experts (0: all equal)", 1),
        "share_rate": ("share rate β", 1),
    }
    rows = -(-len(found) // _COLUMNS)  # of the legend
    height = 4.4 + 0.22 * rows
    figure, axes = plt.subplots(1, 3, figsize=(15, height))
    palette = plt.get_cmap("tab10" if len(found) <= 10 else "tab20")
    for axis, (name, (title, factor)) in zip(axes, titles.items(), strict=True):
        for index, (variant, by_figure) in enumerate(found.items()):
            points = by_figure[name]
            x, mean, std = ([getattr(p, field) for p in points] for field in ("x", "mean", "std"))
            low, high = ([factor * (m + side * s) for m, s in zip(mean, std, strict=True)] for side in (-1, 1))
            color, style = palette(index % palette.N), ("-", "--", ":")[index % 3]
            label = _literal(plan.variants[variant].title)
            marker = "o" if len(points) == 1 else None
            axis.plot(x, [factor * m for m in mean], color=color, linestyle=style, label=label, marker=marker)
            axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axis.set(title=title, xlabel=unit)
        if name == "spread" and any(p.mean > 0 for by_figure in found.values() for p in by_figure[name]):
            axis.set_yscale("log")  # it ends at thousandths of its peak
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.suptitle(f"{_literal(plan.comparison.title)}: mean over seeds, band of ± 1 standard deviation")
    figure.legend(handles, labels, loc="lower center", ncols=min(_COLUMNS, len(labels)), frameon=False)
    figure.tight_layout(rect=(0, (0.1 + 0.22 * rows) / height, 1, 1))
    temporary = plan.output / ".curves.tmp.png"
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    temporary.replace(plan.output / "curves.png")


def _literal(title: str) -> str:
    """A title as it is: between two $ matplotlib would read a formula."""
    return title.replace("$", r"\$")
