"""Five statements on experts weights averaging, each measured beside its prediction, with a figure.

The model is the small ViT of any_vit.py on scikit-learn's digits. docs/theory.md explains the figures. Exits with 1 if
an exact statement does not hold.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from digits import digits
from theory_lab import (
    BETA,
    EXPERTS,
    Curves,
    Data,
    batches,
    build,
    deviation,
    farthest,
    flat,
    one_mixture,
    sgd,
    shrinkage,
    stacks,
    step,
    train,
)

import pc_ewa

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EXACT = 1e-12


class Line(NamedTuple):
    """A number beside what is predicted; an exact statement must agree to 1e-12."""

    text: str
    measured: float
    predicted: float | None = None
    exact: bool = False

    def holds(self) -> bool:
        """Return False for an exact statement that is violated. No other statement can fail."""
        return not self.exact or abs(self.measured - (self.predicted or 0)) <= EXACT


def main(arguments: list[str] | None = None) -> int:
    """Measure, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/theory"), help="folder of the figures")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    steps, few, data = 270, 40, digits()
    if options.quick:
        steps, few, data = 6, 3, {part: (images[:60], labels[:60]) for part, (images, labels) in data.items()}
    found = show("1. Averaging keeps the mean", mean_is_kept(options.output / "mean.png"))
    found += show("2. Deviations shrink by 1 - β N/(N-1)", deviations_shrink(options.output / "deviations.png"))
    found += show("3. Full averaging is dense SGD", dense_identity(data, few, options.output / "identity.png"))
    found += show("4. Deviations remember gradients", history(data, few))
    curves = {
        "dense": train(data, steps, None),
        "β = 0": train(data, steps, 0.0),
        **{f"β {kind}": train(data, steps, BETA, kind) for kind in ("constant", "linear", "cosine")},
        "β linear, lr held": train(data, steps, BETA, anneal=False),
        "β = 0, independent": train(data, steps, 0.0, init="independent"),
        "β linear, independent": train(data, steps, BETA, init="independent"),
    }
    found += show("4. The spread follows the learning rate", spread_follows(curves, options.output / "spread.png"))
    found += show("5. Merged and unmerged", merged_losses(curves, options.output / "merging.png"))
    broken = [line.text for line in found if not line.holds()]
    print(f"Exact statements violated: {'; '.join(broken)}" if broken else "All exact statements hold to 1e-12.")
    print(f"figures: {options.output}")
    return 1 if broken else 0


def show(title: str, lines: list[Line]) -> list[Line]:
    """Print a section and hand it on."""
    print(title)
    for line in lines:
        beside = "" if line.predicted is None else f", predicted {line.predicted:.4g}"
        print(f"  {line.text}: {line.measured:.4g}{beside}{'' if line.holds() else '   VIOLATED'}", flush=True)
    return lines


def mean_is_kept(path: Path) -> list[Line]:
    """Average independent experts 30 times; watch their mean and where they go."""
    layer = one_mixture(EXPERTS)
    averager = pc_ewa.ExpertAverager(layer, 0.1, "constant")
    seen = [flat(layer)]
    for _ in range(30):
        averager.step()
        seen.append(flat(layer))
    mean = seen[0].mean(0)
    axes = torch.linalg.svd(seen[0] - mean, full_matrices=False).Vh[:2]
    places = torch.stack([(experts - mean) @ axes.T for experts in seen])
    left, right = plt.subplots(1, 2, figsize=(9.5, 3.8))[1]
    for expert in range(EXPERTS):
        left.plot(*places[:, expert].T, ".-", lw=0.8, label=f"expert {expert + 1}")
    left.plot(*places.mean(1).T, "k+", ms=14, mew=2, label="their mean, all 31 times")
    left.set(title="Independent experts, β = 0.1, 30 averagings", xlabel="1st direction", ylabel="2nd direction")
    moved = [(experts.mean(0) - mean).abs().max().item() for experts in seen]
    away = [deviation(experts) / deviation(seen[0]) for experts in seen]
    right.semilogy(away, "o", ms=4, label="deviations, of those at the start")
    right.semilogy([(1 - 0.1 * 4 / 3) ** k for k in range(31)], "-", lw=0.8, label="ρᵏ")
    right.semilogy(range(1, 31), [max(m, 1e-18) for m in moved[1:]], "k+", label="largest change of the mean")
    right.set(title="Deviations go, the mean stays", xlabel="averagings k", ylim=(1e-19, 9))
    save(path)
    return [Line("largest change of the mean in 30 averagings", max(moved), 0, True)]


def deviations_shrink(path: Path) -> list[Line]:
    """Measure the ratio of deviations after and before, for several β and N, one and four steps at once."""
    panels = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)[1]
    lines = []
    for axis, every in zip(panels, (1, 4), strict=True):
        for color, count in enumerate((2, 3, 4, 8)):
            betas = [part / 8 * (count - 1) / count for part in range(9)]
            rho = [(1 - beta * count / (count - 1)) ** every for beta in betas]
            layer = one_mixture(count)
            ratios = [shrinkage(layer, beta, every) for beta in betas]
            fine = torch.linspace(0, betas[-1], 99)
            axis.plot(fine, (1 - fine * count / (count - 1)) ** every, "-", lw=0.8, color=f"C{color}")
            axis.plot(betas, ratios, "o", ms=4, color=f"C{color}", label=f"N = {count}")
            worst = max(range(9), key=lambda i, a=ratios, b=rho: abs(a[i] - b[i]))
            text = f"N = {count}, k = {every}: ratio at β = {betas[worst]:.3g}, the farthest of 9 from ρᵏ"
            lines.append(Line(text, ratios[worst], rho[worst], True))
        axis.set(title=f"k = {every} step{'s at once' if every > 1 else ''}", xlabel="share rate β")
    panels[0].set_ylabel("deviation after / before; lines: ρᵏ")
    save(path)
    return lines


def dense_identity(data: Data, steps: int, path: Path) -> list[Line]:
    """Compare dense SGD with experts at β = (N-1)/N and N times the learning rate, on the same batches in float64."""
    left, right = plt.subplots(1, 2, figsize=(9.5, 3.8))[1]
    lines = []
    for color, momentum in enumerate((0.0, 0.9)):
        dense, mixed = build(0, dtype=torch.float64), build(0, EXPERTS, dtype=torch.float64)
        start = pc_ewa.dense_state_dict(mixed)
        optimizers = [sgd(model, 0.02, momentum) for model in (dense, mixed)]
        pc_ewa.ExpertAverager(mixed, (EXPERTS - 1) / EXPERTS, "constant").attach(optimizers[1])
        losses: tuple[list[float], list[float]] = ([], [])
        apart, moved = [], []
        for images, labels in batches(data, steps):
            for model, optimizer, curve in zip((dense, mixed), optimizers, losses, strict=True):
                curve.append(step(model, optimizer, images.double(), labels))
            apart.append(farthest(dense.state_dict(), pc_ewa.dense_state_dict(mixed)))
            moved.append(farthest(dense.state_dict(), start))
        left.plot(losses[0], color=f"C{color}", label=f"dense, momentum {momentum:g}")
        left.plot(losses[1], "o", ms=4, mfc="none", color=f"C{color}", label="experts")
        right.semilogy([max(x, 1e-18) for x in apart], color=f"C{color}", label=f"experts from dense, {momentum:g}")
        right.semilogy(moved, ":", color=f"C{color}", label="dense from its start")
        lines.append(Line(f"momentum {momentum:g}: farthest weights in {steps} steps", max(apart), 0, True))
        lines.append(Line(f"momentum {momentum:g}: how far the weights went", moved[-1]))
    left.set(title="The same training", xlabel="step", ylabel="loss of the batch")
    right.set(title="Largest difference of a weight", xlabel="step")
    save(path)
    return lines


def history(data: Data, steps: int) -> list[Line]:
    """SGD: the deviations are minus the sum over past steps of lr, (g_i - ḡ) and the product of all ρ since."""
    model = build(0, EXPERTS, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    averager = pc_ewa.ExpertAverager(model, BETA, "linear", steps)
    own = list(stacks(model))
    grads, rates, rhos = [], [], []
    for t, (images, labels) in enumerate(batches(data, steps)):
        rates.append(0.1 * (1 - t / steps))
        optimizer.param_groups[0]["lr"] = rates[-1]
        step(model, optimizer, images.double(), labels)
        grads.append([stack.grad - stack.grad.mean(0) for stack in own])
        averager.step()
        rhos.append(1 - BETA * (t + 1) / steps * EXPERTS / (EXPERTS - 1))
    worst = largest = 0.0
    for i, stack in enumerate(own):
        sums = [-lr * g[i] * math.prod(rhos[t:]) for t, (lr, g) in enumerate(zip(rates, grads, strict=True))]
        actual = (stack - stack.mean(0)).detach()
        worst = max(worst, (actual - torch.stack(sums).sum(0)).abs().max().item())
        largest = max(largest, actual.abs().max().item())
    return [Line(f"{steps} steps of SGD: farthest from that sum", worst, 0, True), Line("largest deviation", largest)]


def spread_follows(curves: dict[str, Curves], path: Path) -> list[Line]:
    """Spread of the experts along training, and over the learning rate of the moment."""
    left, right = plt.subplots(1, 2, figsize=(9.5, 3.8))[1]
    lines = []
    shown = [name for name in curves if name != "dense" and "independent" not in name]
    for color, name in enumerate(shown):
        curve = curves[name]
        left.semilogy(curve.spread, lw=1, color=f"C{color}", label=name)
        lines.append(Line(f"{name}: spread at the end, of its peak", curve.spread[-1] / max(curve.spread)))
        if name != "β = 0":
            peak = len(curve.lr) // 10 + 3  # once the rate falls
            right.loglog(curve.lr[peak:], curve.spread[peak:], ".", ms=2, color=f"C{color}", label=name)
    steady = curves["β constant"]
    left.semilogy(steady.lr, "k:", lw=1, label="learning rate")
    left.set(title="Spread ‖W_i - W̄‖ / ‖W̄‖", xlabel="step", ylim=(1e-8, 1))
    right.set(title="Spread at each learning rate, once it falls", xlabel="learning rate", ylabel="spread")
    text = "β constant: deviations, of the latest update's, median (0.75 if steps are unrelated, 1.5 if all are alike)"
    lines.append(Line(text, statistics.median(steady.memory[len(steady.memory) // 10 :])))
    agreed = steady.agreement
    for when, part in (("first", agreed[: max(1, len(agreed) // 10)]), ("last", agreed[-len(agreed) // 10 :])):
        lines.append(Line(f"β constant: ‖mean update‖ / mean ‖update‖, {when} tenth", sum(part) / len(part)))
    save(path)
    return lines


def merged_losses(curves: dict[str, Curves], path: Path) -> list[Line]:
    """Validation loss of the merged model, of the experts as they train, and of the dense model."""
    lines = []
    for axis, suffix in zip(plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)[1], ("", ", independent"), strict=True):
        axis.semilogy(curves["dense"].at, curves["dense"].merged, "k-", lw=1, label="dense")
        for color, name in enumerate((f"β = 0{suffix}", f"β linear{suffix}")):
            curve = curves[name]
            axis.semilogy(curve.at, curve.unmerged, ":", color=f"C{color}", label=f"{name.split(',')[0]}, experts")
            axis.semilogy(curve.at, curve.merged, "-", color=f"C{color}", label=f"{name.split(',')[0]}, merged")
            lines.append(Line(f"{name}: validation loss at the end, experts", curve.unmerged[-1]))
            lines.append(Line(f"{name}: validation loss at the end, merged", curve.merged[-1]))
        axis.set(title=f"Validation loss, {suffix[2:] or 'copied'} experts", xlabel="step")
    save(path)
    return [*lines, Line("dense: validation loss at the end", curves["dense"].merged[-1])]


def save(path: Path) -> None:
    """Add legends and write the figure to its file."""
    for axis in plt.gcf().axes:
        axis.legend(fontsize=8)
    plt.subplots_adjust(left=0.08, right=0.985, bottom=0.13, top=0.92)
    plt.savefig(path, dpi=110)
    plt.close()


if __name__ == "__main__":
    sys.exit(main())
