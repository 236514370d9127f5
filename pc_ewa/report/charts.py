"""Charts as inline SVG in the colours of the page, readable in dark mode and on paper."""

from __future__ import annotations

import io
import re
from typing import Any

from pc_ewa.report.html import Html, element
from pc_ewa.text import printable
from pc_ewa.viz import Chart
from pc_ewa.viz.renderers.by_matplotlib import fill_chart

# matplotlib cannot write currentColor. Draw text and axes in a colour that nothing else has, then replace it.
_INK = "#010203"  # stands for the colour of the page's text until the SVG is written
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
_STYLE |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)


def chart_svg(chart: Chart, log: bool = False) -> Html:
    """Draw a chart as an inline SVG as wide as its column.

    Args:
        chart: at least one line.
        log: use a logarithmic vertical axis, if all values are above 0.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE | {"svg.hashsalt": chart.title}):
        figure = Figure(figsize=(4.6, 3.0))
        axes = figure.add_subplot()
        fill_chart(chart, axes)
        if log and all(y > 0 for _, ys in chart.lines.values() for y in ys):
            axes.set_yscale("log")
        figure.tight_layout()
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Remove the metadata, and the names of schemas: a page that loads nothing should contain no foreign addresses.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"', "", svg, count=4).replace("xlink:href", "href")
    svg = re.sub(r"<style .*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    label = printable(f"{chart.title}: {', '.join(chart.lines)}", 200)
    return element("figure", Html(svg), role="img", aria_label=label)
