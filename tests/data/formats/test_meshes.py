"""Points drawn from surfaces."""

from pathlib import Path

import numpy as np
import pytest

from pc_ewa.data.formats.meshes import sample_surface
from pc_ewa.data.formats.readers import read_shape

SQUARE = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n"


def test_off_with_comments_colors_and_polygons(tmp_path: Path) -> None:
    path = tmp_path / "square.off"
    path.write_text(f"OFF # a square\n\n# and a line\n4 2 5\n{SQUARE}\n4  0 1 2 3  255 0 0 #red\n2 0 1\n")
    vertices, faces = read_shape(path)
    assert vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_surface_points_follow_the_area() -> None:
    vertices = np.array([[0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 5], [1, 0, 5], [0, 1, 5]], float)
    faces = np.array([[0, 1, 2], [3, 4, 5], [3, 3, 3]])  # of area 1.5, 0.5 and none
    points = sample_surface(vertices, faces, 40_000, np.random.RandomState(0))
    low = points[:, 2] < 1
    assert low.mean() == pytest.approx(0.75, abs=0.01)
    assert set(points[:, 2]) == {0, 5}
    assert (points[low, 0] / 3 + points[low, 1]).max() <= 1 + 1e-12
    assert points.min() >= 0
    np.testing.assert_allclose(points[low].mean(0), [1, 1 / 3, 0], atol=0.02)
    # In each of the four triangles between corners and middles as often.
    halves = [(points[low, 0] / 3 > 0.5).mean(), (points[low, 1] > 0.5).mean()]
    np.testing.assert_allclose(halves, 0.25, atol=0.01)
    with pytest.raises(ValueError, match="no area"):
        sample_surface(vertices, faces[2:], 5, np.random.RandomState(0))
