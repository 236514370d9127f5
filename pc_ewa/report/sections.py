"""The sections of a page on one run: headline numbers, curves, classes, mistakes, costs, config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from pc_ewa.errors import Error
from pc_ewa.eval import Accuracy, Segmentation
from pc_ewa.eval.metric import Metric
from pc_ewa.files import read_json
from pc_ewa.report.charts import chart_svg
from pc_ewa.report.html import Html, element, section, table
from pc_ewa.report.live import live
from pc_ewa.report.pictures import Pictures
from pc_ewa.train.objectives import create_objective
from pc_ewa.train.run_folder import RunFolder
from pc_ewa.viz import Chart
from pc_ewa.viz.views.spread import spread_lines

_STEEP = 30  # a largest value so many times the smallest is drawn on a logarithmic axis


def run_sections(run: RunFolder, pictures: Pictures) -> Iterator[Html]:
    """Yield the sections of a run in the order of the page.

    Args:
        run: a run that has begun.
        pictures: the scenes of the same run.
    """
    metric = create_objective(pictures.experiment).main_metric
    summary = run.summary()
    if summary is None:
        yield element("p", "This run has not come to its end: what there is so far.", class_="note")
    else:
        yield section("Test", headline(summary, metric), *about_errors(summary))
    charts = [chart_svg(chart, log) for chart, log in curves(run.metrics(), metric)]
    if charts:
        yield section("Training", element("div", *charts, class_="charts"))
    try:
        judgement = pictures.judgement()
        if judgement is not None:
            yield section("Classes", per_class(judgement.accuracy))
            yield section(
                "Confusions", element("p", "Rows: true class. Columns: taken for."), confusion(judgement.accuracy)
            )
        parts = pictures.parts_score()
        if parts is not None:
            yield section("Classes", per_category(parts))
        for title, scene in pictures.scenes():
            yield section(title, live(scene))
    except Error as error:  # such as data that have been moved: the rest of the page is worth having
        pictures.missing.append(str(error))
        yield section("Classes and pictures", element("p", f"Missing: {error}", class_="note"))
    if summary is not None:
        yield section("Costs", costs(summary))
    yield section("Config and environment", *details(run))


def headline(summary: Mapping[str, Any], metric: Metric) -> Html:
    """Return a table of the test metric and its standard error, before and after merging, at the last and best step."""
    titles = ("with experts", "merged") if summary["mixtures"] else ("as trained", "dense")
    if summary.get("gated"):
        titles = ("as trained", "kept as MoE")
    states = [("last step", "")]
    if summary["val_samples"]:
        states.append((f"best by validation (step {summary['best_step']})", "_best"))
    rows = [[f"test {metric.title}, {summary['test_samples']} samples", *titles]]
    for title, which in states:
        rows.append([title, *(_score(summary, metric, f"{kind}{which}") for kind in ("unmerged", "merged"))])
    return table(rows)


def about_errors(summary: Mapping[str, Any]) -> list[Html]:
    """Return an explanation of ±, or nothing if no standard error was measured."""
    if not any(key.startswith("test_standard_error") for key in summary):
        return []
    return [element("p", f"± is the standard error over the {summary['test_samples']} test samples.")]


def _score(summary: Mapping[str, Any], metric: Metric, state: str) -> str:
    value, error = (summary.get(f"test_{name}_{state}") for name in (metric.key, "standard_error"))
    if value is None:
        return "not measured"
    return metric.format(value) + (f" ± {metric.format(error)}" if error else "")


def curves(lines: Sequence[Mapping[str, Any]], metric: Metric) -> Iterator[tuple[Chart, bool]]:
    """Yield the charts that have values, each with a flag for a logarithmic axis."""
    val = f"val_{metric.key}"
    own = {"training": _line(lines, "loss"), "validation": _line(lines, "val_loss")}
    wanted = [("loss", "loss", own, _is_steep(own))]
    if metric.key != "loss":
        scale = 100 if metric.percent else 1
        scores = {"training": _line(lines, metric.key, scale), "validation": _line(lines, val, scale)}
        wanted.append((f"{metric.title}{', %' if metric.percent else ''}", metric.title, scores, False))
    wanted += [("learning rate", "lr", {"lr": _line(lines, "lr")}, False)]
    wanted += [("share rate β", "share rate", {"share rate": _line(lines, "share_rate")}, False)]
    wanted += [("spread of the experts (0: all equal)", "spread", spread_lines(lines), True)]
    for title, y_title, found, log in wanted:
        there = {name: line for name, line in found.items() if line[0]}
        if there:
            yield Chart(title, "steps", y_title, there), log


def _is_steep(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> bool:
    """Return True if the values span so wide a range that the end of a line would lie on a linear axis."""
    values = [y for _, ys in lines.values() for y in ys]
    return bool(values) and max(values) > _STEEP * min(values)


def _line(lines: Sequence[Mapping[str, Any]], key: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    found = [(line["step"], scale * line[key]) for line in lines if isinstance(line.get(key), int | float)]
    return [x for x, _ in found], [y for _, y in found]


def per_class(accuracy: Accuracy) -> Html:
    """Return a table of the accuracy of each class."""
    rows = [["class", "accuracy", "correct", "samples"]]
    for name, samples, correct in accuracy.per_class:
        rows.append([name, f"{correct / samples:.0%}" if samples else "", str(correct), str(samples)])
    rows.append(["all", f"{accuracy.overall:.1%}", str(accuracy.correct), str(accuracy.samples)])
    return table(rows)


def per_category(score: Segmentation) -> Html:
    """Return a table of the mean IoU of each category."""
    rows = [["class", "mean IoU", "samples"]]
    rows += [[name, f"{iou:.1%}", str(samples)] for name, (iou, samples) in score.per_class.items()]
    rows.append(["all", f"{score.instance_miou:.1%}", str(score.samples)])
    return table(rows)


def confusion(accuracy: Accuracy) -> Html:
    """Return the confusion matrix. Cells are shaded by their share of the row: blue if correct, orange if wrong."""
    names = [count.name for count in accuracy.per_class]
    head = element("tr", element("th", ""), *(element("th", name, scope="col") for name in names))
    rows = []
    for true, counts in enumerate(accuracy.confusion.tolist()):
        cells = []
        for predicted, count in enumerate(counts):
            colour = "0,114,178" if true == predicted else "230,159,0"
            shade = f"background:rgba({colour},{count / max(1, sum(counts)):.2f})"
            title = f"{names[true]} taken for {names[predicted]}: {count}"
            cells.append(element("td", str(count) if count else "", style=shade, title=title))
        rows.append(element("tr", element("th", names[true], scope="row"), *cells))
    whole = element("table", element("thead", head), element("tbody", *rows), class_="matrix")
    return element("div", whole, class_="scroll")


def costs(summary: Mapping[str, Any]) -> Html:
    """Return a table of parameters and FFNs, and a line with time and memory."""
    rows = [["", "training", "merged"]]
    for title, key in (("parameters", "params"), ("FFNs", "ffns")):
        values = (summary.get(f"{key}_{state}") for state in ("training", "merged"))
        rows.append([title, *(f"{value:,}" if isinstance(value, int) else "" for value in values)])
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in summary.get("seconds", {}).items())
    memory = f"peak memory {summary['peak_memory'] / 2**20:,.0f} MiB" if summary.get("peak_memory") else ""
    return Html(table(rows) + element("p", "; ".join(filter(None, [seconds, memory]))))


def details(run: RunFolder) -> list[Html]:
    """Return config and environment as collapsed sections."""
    pieces = {"config.yaml": yaml.safe_dump(run.config(), sort_keys=False, allow_unicode=True)}
    environment = _environment(run)
    if environment:
        pieces["environment.json"] = json.dumps(environment, indent=2, ensure_ascii=False)
    return [element("details", element("summary", name), element("pre", text)) for name, text in pieces.items()]


def _environment(run: RunFolder) -> Any:
    path = run.path / "environment.json"
    try:
        return read_json(path)
    except ValueError:
        return None
