"""Curves of training over the seeds: validation metric, spread of the experts and share rate along training."""

import csv
import io
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from pc_ewa.compare.plan import Plan, Run
from pc_ewa.eval.metric import Metric

CURVES = ("val", "spread", "share_rate")
_LEGEND_COLUMNS = 4
_SPREAD = re.compile(r"ewa/.*/spread$")


class Point(NamedTuple):
    """Mean and sample standard deviation of a value over `seeds` seeds. `x` is in epochs, or in steps."""

    step: int
    x: float
    mean: float
    std: float
    seeds: int


@dataclass(frozen=True)
class Curves:
    """The curves of a comparison, for JSON, CSV and a picture.

    `points` contains the points by variant and curve: "val", "spread" (mean over the mixtures), "share_rate". `titles`
    contains the names of the variants in the picture. `unit` is the unit of x, "epochs" or "steps".
    """

    title: str
    metric: Metric
    unit: str
    titles: Mapping[str, str]
    points: Mapping[str, Mapping[str, Sequence[Point]]]

    def as_json(self) -> str:
        """Write all points as JSON objects."""
        variants = {
            variant: {curve: [point._asdict() for point in points] for curve, points in by_curve.items()}
            for variant, by_curve in self.points.items()
        }
        return json.dumps({"x": self.unit, "main_metric": self.metric.key, "variants": variants}, indent=1) + "\n"

    def as_csv(self) -> str:
        """Write a CSV with one line per point."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["variant", "curve", "step", self.unit, "mean", "std", "seeds"])
        for variant, by_curve in self.points.items():
            for curve, points in by_curve.items():
                writer.writerows([variant, curve, *point] for point in points)
        return text.getvalue()

    def draw(self, file: IO[bytes]) -> None:
        """Write a PNG with a panel per curve."""
        import matplotlib as mpl  # half a second, for those who draw

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        rows = -(-len(self.points) // _LEGEND_COLUMNS)
        height = 4.4 + 0.22 * rows
        figure, axes = plt.subplots(1, len(CURVES), figsize=(15, height))
        for axis, curve in zip(axes, CURVES, strict=True):
            self._draw_panel(axis, curve, plt.get_cmap("tab10" if len(self.points) <= 10 else "tab20"))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.suptitle(f"{_literal(self.title)}: mean over seeds, band of ± 1 standard deviation")
        figure.legend(handles, labels, loc="lower center", ncols=min(_LEGEND_COLUMNS, len(labels)), frameon=False)
        figure.tight_layout(rect=(0, (0.1 + 0.22 * rows) / height, 1, 1))
        figure.savefig(file, format="png", dpi=110)
        plt.close(figure)

    def _draw_panel(self, axis: Any, curve: str, palette: Any) -> None:
        percent = self.metric.percent
        scale = 100 if curve == "val" and percent else 1
        for index, (variant, by_curve) in enumerate(self.points.items()):
            points = by_curve[curve]
            x, mean, std = ([getattr(p, field) for p in points] for field in ("x", "mean", "std"))
            low, high = ([scale * (m + side * s) for m, s in zip(mean, std, strict=True)] for side in (-1, 1))
            style = {
                "color": palette(index % palette.N),
                "linestyle": ("-", "--", ":")[index % 3],
                "marker": "o" if len(points) == 1 else None,
            }
            axis.plot(x, [scale * m for m in mean], label=_literal(self.titles[variant]), **style)
            axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        title = {
            "val": f"validation {self.metric.title}{', %' if percent else ''}",
            "spread": "spread of the experts (0: all equal)",
            "share_rate": "share rate β",
        }[curve]
        axis.set(title=title, xlabel=self.unit)
        if curve == "spread" and any(p.mean > 0 for by_curve in self.points.values() for p in by_curve[curve]):
            axis.set_yscale("log")  # it ends at thousandths of its peak
        axis.grid(alpha=0.3)


def make_curves(plan: Plan, runs: Mapping[str, Sequence[Run]]) -> Curves:
    """Average the curves of each variant over its runs: one for each seed, or for each seed and fold.

    Args:
        plan: the comparison.
        runs: the finished runs of every variant at its final setting.
    """
    return Curves(
        plan.comparison.title,
        plan.metric,
        "steps" if plan.experiment.train.steps else "epochs",
        {variant: plan.variants[variant].title for variant in runs},
        {variant: _variant_curves(plan, found) for variant, found in runs.items()},
    )


def _variant_curves(plan: Plan, runs: Sequence[Run]) -> dict[str, list[Point]]:
    values: dict[str, dict[int, list[float]]] = {curve: {} for curve in CURVES}
    for run in runs:
        for line in run.files.metrics():
            for curve, value in _values(line, plan.metric).items():
                values[curve].setdefault(line["step"], []).append(value)
    per_step = _x_per_step(plan, runs[0])
    return {
        curve: [
            Point(step, step * per_step, statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0, len(v))
            for step, v in sorted(by_step.items())
        ]
        for curve, by_step in values.items()
    }


def _values(line: Mapping[str, Any], metric: Metric) -> dict[str, float]:
    """Return the values of the curves in a line of a run's metrics."""
    found = {"val": line.get(f"val_{metric.key}"), "share_rate": line.get("share_rate")}
    spreads = [value for name, value in line.items() if _SPREAD.match(name)]
    found["spread"] = statistics.fmean(spreads) if spreads else None
    return {name: value for name, value in found.items() if value is not None}


def _x_per_step(plan: Plan, run: Run) -> float:
    """Return the epochs per optimizer step, or 1 if the config counts steps."""
    experiment = plan.resolve(run)
    if experiment.train.steps:
        return 1.0
    epochs = experiment.train.epochs + (experiment.recipe == "official")  # theirs takes one more than asked
    return float(epochs / (run.files.summary() or {})["steps"])


def _literal(title: str) -> str:
    """Escape the $ in a title, between two of which matplotlib would parse a formula."""
    return title.replace("$", r"\$")
