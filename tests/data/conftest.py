"""A sound file in our layout, to read and to damage."""

from pathlib import Path

import numpy as np
import pytest

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
