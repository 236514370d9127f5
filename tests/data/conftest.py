"""A sound file in our layout, and a folder of one's own shapes: to read and to damage."""

from pathlib import Path

import numpy as np
import pytest
from shape_folders import put

from pc_ewa.data import write_hdf5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound file: 9 shapes of 5 points in 3 classes, the last 3 for the test."""
    path = tmp_path / "toy.h5"
    points = np.random.RandomState(0).uniform(-1, 1, (9, 5, 3))
    write_hdf5(
        path,
        points,
        [0, 1, 2] * 3,
        ["chair", "table", "lamp"],
        up_axis="y",
        split=[0] * 6 + [1] * 3,
        names=[f"shape {i}" for i in range(9)],
        licence="CC0",
    )
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten tables, five chairs, one lamp, and what a computer leaves about."""
    folder = tmp_path / "mine"
    put(folder, *(f"table/{i}.xyz" for i in range(10)), *(f"chair/{i}.off" for i in range(5)), "lamp/deep/er/1.TXT")
    put(
        folder, "table/notes.md", "table/.hidden.xyz", ".git/config.txt", "__MACOSX/table/0.xyz", "readme.txt", text="?"
    )
    return folder
