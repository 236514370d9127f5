"""Draw the picture of the method, for docs/pictures.py: python docs/method_picture.py FILE."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import pc_ewa

COLORS = ["#4477AA", "#EE6677", "#228833", "#CCBB44"]
INK, PALE = "#333333", "#F4F4F4"


def main(path: Path) -> None:
    """Draw the three panels side by side."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=[1, 2.1, 1.15])
    for axis, title in zip(
        axes, ("A cloud becomes patches", "Training: an FFN is four experts", "Inference: the plain ViT"), strict=True
    ):
        axis.set_title(title, fontsize=14, color=INK, pad=8)
        axis.set_axis_off()
    draw_cloud(axes[0])
    draw_training(axes[1])
    draw_inference(axes[2])
    figure.tight_layout(w_pad=2)
    figure.savefig(path, dpi=100)


def draw_cloud(axis: Axes) -> None:
    """A bundled shape, each point in the colour of the patch whose center is nearest."""
    clouds = pc_ewa.load_dataset("sweethome3d", "train")
    points, _ = clouds.batch([clouds.labels.tolist().index(clouds.class_names.index("chair"))])
    _, centers = pc_ewa.ops.group(points, 32, 32)
    _, owner = pc_ewa.ops.knn(points, centers, 1)
    x, y, z = points[0].numpy().T
    angle = np.deg2rad(35)
    across, depth = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    order = np.argsort(-depth)
    palette = plt.get_cmap("tab20")(owner[0, :, 0].numpy() % 20)
    axis.scatter(across[order], (z + 0.35 * depth)[order], s=9, c=palette[order], linewidths=0)
    axis.set_aspect("equal")


def draw_training(axis: Axes) -> None:
    """Tokens dealt to four experts, outputs put back in order, weights pulled towards their mean."""
    axis.set(xlim=(0, 21), ylim=(0, 10))
    rng = np.random.default_rng(4)
    deal = rng.permutation(np.repeat(np.arange(4), 3))
    for side in (1.2, 19.8):
        for token, expert in enumerate(deal):
            axis.add_patch(
                FancyBboxPatch(
                    (side - 0.3, 0.75 + 0.72 * token),
                    0.6,
                    0.36,
                    boxstyle="round,pad=0.06",
                    fc=COLORS[expert],
                    ec="none",
                )
            )
    for token, expert in enumerate(deal):
        height = 0.93 + 0.72 * token
        center = 8.35 - 2.1 * expert
        for start, end in (((1.7, height), (7.0, center)), ((11.9, center), (19.3, height))):
            axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-", color=COLORS[expert], lw=0.9, alpha=0.55))
    for expert, color in enumerate(COLORS):
        y = 8.35 - 2.1 * expert
        box(axis, 9.45, y, 4.6, 1.25, f"expert {expert + 1}", color)
        if expert < 3:
            axis.add_patch(
                FancyArrowPatch(
                    (9.45, y - 0.72), (9.45, y - 1.38), arrowstyle="<->", mutation_scale=11, color=INK, lw=1.4
                )
            )
    axis.text(1.2, 9.55, "tokens", ha="center", fontsize=11, color=INK)
    axis.text(4.9, 9.55, "dealt at random", ha="center", fontsize=11, color=INK)
    axis.text(14.6, 9.55, "back in order", ha="center", fontsize=11, color=INK)
    axis.text(
        9.45,
        0.35,
        "after each step, all move\na little towards their mean",
        ha="center",
        va="center",
        fontsize=10.5,
        color=INK,
    )


def draw_inference(axis: Axes) -> None:
    """The mean of the experts is one FFN; the block is the ordinary one again."""
    axis.set(xlim=(0, 10), ylim=(0, 10))
    axis.add_patch(FancyBboxPatch((1.2, 0.9), 7.6, 7.9, boxstyle="round,pad=0.25", fc=PALE, ec="#BBBBBB"))
    box(axis, 5, 2.8, 5.6, 1.45, "attention", "#8A8A8A")
    box(axis, 5, 6.3, 5.6, 1.45, "FFN", "#7B5EA7")
    axis.text(5, 7.55, "mean of the experts", ha="center", fontsize=11, color=INK)
    for low, high in ((0.2, 1.95), (3.65, 5.45), (8.25, 9.7)):
        axis.add_patch(FancyArrowPatch((5, low), (5, high), arrowstyle="->", mutation_scale=13, color=INK, lw=1.4))


def box(axis: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """A labelled, filled, rounded box around (x, y)."""
    axis.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.08", fc=color, ec="none", zorder=3
        )
    )
    axis.text(x, y, text, ha="center", va="center", color="white", fontsize=12, weight="bold", zorder=4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
