"""Figures and numbers of mechanism.py."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib

from pc_ewa.compare.difference import Difference, difference

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Record = dict[str, Any]


def draw(result: Record, folder: Path) -> None:
    """Draw the three figures. The first arm is the dense model."""
    runs, titles, radii, along = (result[key] for key in ("runs", "titles", "radii", "along"))

    left, *others = plt.subplots(1, 3, figsize=(13, 3.8))[1]
    for color, name in enumerate(titles):
        left.semilogy(radii, curve(runs[name], "ball_train"), color=f"C{color}", label=titles[name])
        for axis, key in zip(others, ("ball_train", "ball_test"), strict=True):
            if color:
                found = [against_dense(runs, name, key, place) for place in range(len(radii))]
                axis.plot(radii, [one.mean for one in found], color=f"C{color}", label=titles[name])
                if found[0].low is not None:
                    ends = [one.low for one in found], [one.high for one in found]
                    axis.fill_between(radii, *ends, color=f"C{color}", alpha=0.15, lw=0)
    left.set(title="Training loss around the model", xlabel="radius, of the norm of each row of weights")
    others[0].set(title="Training loss there, less that of dense", xlabel="radius")
    others[1].set(title="Test loss there, less that of dense", xlabel="radius")
    save(folder / "sharpness.png")

    left, middle, right = plt.subplots(1, 3, figsize=(13, 3.8))[1]
    for color, name in enumerate(titles):
        left.plot(runs[name][0]["epoch"], curve(runs[name], "distance"), color=f"C{color}", label=titles[name])
        for axis, key in ((middle, "line_train"), (right, "line_test")):
            if color:
                axis.plot(along, curve(runs[name], key), color=f"C{color}", label=titles[name])
    left.set(title="Distance from the start", xlabel="epoch")
    middle.set(title="Training loss on the line", xlabel="from dense (0) to the other (1)")
    right.set(title="Test loss on the line", xlabel="from dense (0) to the other (1)")
    save(folder / "distance.png")

    left, middle, right = plt.subplots(1, 3, figsize=(13, 3.8))[1]
    for color, name in enumerate(titles):
        if runs[name][0]["spread"]:
            epochs, style = runs[name][0]["epoch"], {"color": f"C{color}", "label": titles[name]}
            left.semilogy(epochs, curve(runs[name], "spread"), **style)
            for axis, key in ((middle, "experts_agree"), (right, "merging_gains")):
                axis.plot(epochs, [100 * value for value in curve(runs[name], key)], **style)
    left.set(title="Spread of the experts", xlabel="epoch")
    middle.set(title="Test images on which two experts agree, %", xlabel="epoch")
    right.set(title="Test accuracy: merged less experts, points", xlabel="epoch")
    save(folder / "agreement.png")


def mean(runs: list[Record], key: str) -> float:
    """Average a number over the seeds."""
    return statistics.fmean(run[key] for run in runs)


def curve(runs: list[Record], key: str) -> list[float]:
    """Average a curve over the seeds."""
    return [statistics.fmean(values) for values in zip(*(run[key] for run in runs), strict=True)]


def against_dense(runs: dict[str, list[Record]], name: str, key: str, place: int | None = None) -> Difference:
    """Return the difference from dense, paired by seed, of a number or of the number in one place of a curve."""
    own, dense = (
        {run["seed"]: run[key] if place is None else run[key][place] for run in runs[arm]} for arm in (name, "dense")
    )
    found = difference(own, dense)
    assert found is not None  # all arms have the same seeds
    return found


def save(path: Path) -> None:
    """Add a legend, the same for all panels, and write the figure to its file."""
    plt.gcf().axes[0].legend(fontsize=7)
    plt.tight_layout()
    plt.savefig(path, dpi=110)
    plt.close()


def tell(result: Record) -> None:
    """Print the table and the numbers of docs/theory.md; differences are from dense, paired by seed."""
    runs, titles = result["runs"], result["titles"]
    dense, *others = titles
    whole_way = mean(runs[dense], "distance_at_end")
    print("| | test loss | accuracy, points | distance from the start | same class as dense |\n|---|---|---|---|---|")
    for name in others:
        cells = [words(against_dense(runs, name, "test_loss"), 3)]
        cells.append(words(against_dense(runs, name, "test_accuracy"), 1, 100))
        cells.append(f"{mean(runs[name], 'distance_at_end') / whole_way:.2f}")
        print(f"| {titles[name]} | {' | '.join(cells)} | {mean(runs[name], 'agrees_with_dense'):.1%} |")
    if result["agreement_of_dense_seeds"] is not None:
        print(f"dense models of two seeds give the same class to {result['agreement_of_dense_seeds']:.1%}")
    radius = result["radii"].index(0.2)
    loss, around = mean(runs[dense], "test_loss"), curve(runs[dense], "ball_train")[radius]
    print(f"dense: test loss {loss:.3f}, training loss at a radius of 0.2 {around:.2f}")
    for name in others:
        line = [f"{titles[name]}: training loss at 0.2 {words(against_dense(runs, name, 'ball_train', radius), 3)}"]
        line.append(f"from dense {mean(runs[name], 'from_dense') / whole_way:.2f} of dense's way from the start")
        line.append(
            f"highest bump on the line {max(bump(run['line_train'], result['along']) for run in runs[name]):.1g}"
        )
        if runs[name][0]["spread"]:
            line += about_experts(runs[name])
        print("; ".join(line))


def about_experts(runs: list[Record]) -> list[str]:
    """Write when the experts agree and when merging gains most."""
    epochs, agree, gains = runs[0]["epoch"], curve(runs, "experts_agree"), curve(runs, "merging_gains")
    worst, quarter, best = agree.index(min(agree)), max(0, len(agree) // 4 - 1), gains.index(max(gains))
    told = [f"epoch {epochs[place]} {agree[place]:.1%}" for place in (worst, quarter, -1)]
    late = max(gains[quarter:])
    return [
        f"two experts agree on: {', '.join(told)}",
        f"merging gains {100 * gains[best]:.2f} points at epoch {epochs[best]}",
        f"from epoch {epochs[quarter]} on {100 * late:.2f} at most",
        f"spread at the end {curve(runs, 'spread')[-1]:.1g}",
    ]


def words(found: Difference, digits: int, factor: float = 1) -> str:
    """Write a difference, times a factor, with its interval."""
    middle, *ends = (f"{factor * end:+.{digits}f}" for end in found[:3] if end is not None)
    return f"{middle} ({' to '.join(ends)})" if ends else middle


def bump(line: list[float], along: list[float]) -> float:
    """Return how far the loss between the two models rises above that of both."""
    between = line[along.index(0) : along.index(1) + 1]
    return max(between) - max(between[0], between[-1])
