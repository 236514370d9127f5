"""Folders of one's own shapes, to prepare and to read."""

from pathlib import Path

import numpy as np

from pc_ewa.data.source import Source

SQUARE = "OFF\n4 1 0\n0 0 0\n2 0 0\n2 2 0\n0 2 0\n4 0 1 2 3\n"


def put(folder: Path, *names: str, text: str | None = None) -> Path:
    """Write shapes: a square mesh where the name says .off, else 40 points of the name's own."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        points = np.random.RandomState(list(name.encode())).uniform(-1, 1, (40, 3))
        lines = "".join(f"{x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in points)
        path.write_text(text or (SQUARE if name.endswith(".off") else lines))
    return folder


def splits(opened: Source) -> dict[str, str]:
    return {item.name: item.split for item in opened.items}
