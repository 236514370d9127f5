"""View `spread`: the distance between the experts of each layer during training."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pc_ewa.errors import ConfigError
from pc_ewa.viz.scene import Chart
from pc_ewa.viz.view import View

_SPREAD = re.compile(r"ewa/(.*)/spread$")


def spread(metrics: Sequence[Mapping[str, Any]]) -> Chart:
    """Return a chart with a line for each mixture: the mean distance of its experts from their mean.

    Distances are divided by the norm of the mean.

    Args:
        metrics: the lines of metrics.jsonl.

    Raises:
        ConfigError: a run without experts.
    """
    lines = spread_lines(metrics)
    if not lines:
        raise ConfigError("the run has recorded no spread of experts; choose one with an ewa section")
    return Chart("spread of the experts (0: all equal)", "steps", "spread", lines)


def spread_lines(metrics: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Return steps and spreads by the name of the mixture. A run without experts has none."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for line in metrics:
        for key, value in line.items():
            found = _SPREAD.match(key)
            if found and isinstance(value, int | float):
                x, y = lines.setdefault(found[1], ([], []))
                x.append(line["step"])
                y.append(value)
    return lines


VIEW = View("how far apart the experts are, layer by layer, along training", spread)
