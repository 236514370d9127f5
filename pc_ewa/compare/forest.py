"""A forest plot: the difference of EWA to its baseline in each experiment, with its interval."""

import hashlib
import json
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

from pc_ewa.compare.evidence import (
    PRIMARY,
    Results,
    compared,
    effect_of_interest,
    found_differences,
    metric_of_results,
    reference,
)
from pc_ewa.compare.findings import finding

_COLORS = {"gain": "#1a7f37", "loss": "#b42318", "the same": "#1f5fa8"}  # by the first words of a verdict
_OPEN = "#555555"  # nothing beyond noise


class Row(NamedTuple):
    """One difference in points. Above 0 is better."""

    experiment: str
    label: str
    mean: float
    low: float
    high: float
    seeds: int
    color: str


def forest_rows(experiments: Sequence[Results], default: str = "ewa") -> list[Row]:
    """Return the rows of a forest plot: per experiment the highlighted variant, and variants with an `against`.

    Ablations, differences without an interval and metrics that are not in percent are left out.
    """
    rows = []
    for results in experiments:
        shown = str(results.get("highlight") or default)
        if not results.get("summary", True) or not metric_of_results(results).percent:
            continue
        for name in compared(results):
            found = found_differences(results, name).get(PRIMARY)
            own = reference(results, name) != results["baseline"]
            if (name == shown or own) and found and found.low is not None and found.high is not None:
                variants = results["variants"]
                label = f"{variants[name]['title']}, against {variants[reference(results, name)]['title']}"
                mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
                rows.append(Row(results["title"], label, mean, low, high, found.seeds, _color(finding(results, name))))
    return rows


def digest(rows: Sequence[Row]) -> str:
    """Return a hash of the rows. It is stored in the picture, so that a stale picture can be detected."""
    return hashlib.blake2b(json.dumps(["forest 2", *rows]).encode(), digest_size=8).hexdigest()


def draw_forest(rows: Sequence[Row], file: IO[bytes], effect: float = 0.5) -> None:
    """Write a PNG with a line per row, and a band of differences below the effect of interest.

    Args:
        rows: the rows; at least one.
        file: the file to write to.
        effect: half the width of the band, in points.
    """
    import matplotlib as mpl  # half a second, for those who draw

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.6, 1.1 + 0.62 * len(rows)))
    axis.axvspan(-effect, effect, color="#dddddd", linewidth=0)
    axis.axvline(0, color="black", linewidth=1)
    limit = max(effect, *(max(abs(row.low), abs(row.high)) for row in rows)) * 1.05
    for place, row in enumerate(rows):
        y = len(rows) - 1 - place
        axis.plot([row.low, row.high], [y, y], color=row.color, linewidth=3, solid_capstyle="butt")
        axis.plot(row.mean, y, "o", color=row.color, markersize=9)
        texts: dict[str, Any] = {"size": 11, "transform": axis.get_yaxis_transform(), "va": "center"}
        axis.text(-0.02, y + 0.17, _literal(row.experiment), ha="right", weight="bold", **texts)
        axis.text(-0.02, y - 0.2, _literal(row.label), ha="right", **texts)
        numbers = f"{row.mean:+.1f} ({row.low:+.1f} to {row.high:+.1f})"
        axis.text(1.02, y, f"{numbers}\n{row.seeds} pairs", ha="left", **texts)
    axis.set(xlim=(-limit, limit), ylim=(-0.6, len(rows) - 0.4), yticks=[])
    axis.set_xlabel(f"difference on test, points (grey: within ±{effect:g})", size=11)
    axis.spines[["left", "right", "top"]].set_visible(False)
    about = {"Title": "What EWA changes, with 95 % intervals", "Description": digest(rows)}
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight", metadata=about)
    plt.close(figure)


def band(experiments: Sequence[Results]) -> float:
    """Return the smallest effect of interest of all experiments in points, for the band."""
    effects = [effect for results in experiments if (effect := effect_of_interest(results)) is not None]
    return 100 * min(effects, default=0.005)


def _color(verdict: str) -> str:
    return next((color for words, color in _COLORS.items() if verdict.startswith(words)), _OPEN)


def _literal(text: Any) -> str:
    """Escape the $ in a text, between two of which matplotlib would parse a formula."""
    return str(text).replace("$", r"\$")
