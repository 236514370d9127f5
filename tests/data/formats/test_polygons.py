"""Polygons cut into triangles: the law is that these have the area of the polygon, and lie in it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pc_ewa.data.formats.polygons import Lists, ears, triangulate
from pc_ewa.data.formats.readers import read_shape
from pc_ewa.errors import DataError

L = [(0, 2), (0, 0), (2, 0), (2, 1), (1, 1), (1, 2)]


def area(vertices: np.ndarray, faces: np.ndarray) -> float:
    first, second, third = np.moveaxis(vertices[faces], 1, 0)
    return float(np.linalg.norm(np.cross(second - first, third - first), axis=1).sum() / 2)


def shoelace(points: np.ndarray) -> float:
    x, y = points.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def cut(points: np.ndarray) -> np.ndarray:
    return triangulate(points, Lists(np.array([len(points)]), np.arange(len(points))))


def text(kind: str, points: list[tuple[int, ...]]) -> str:
    rows = "".join(f"{x} {y} 0\n" for x, y in points)
    corners = " ".join(map(str, range(len(points))))
    if kind == "obj":
        return (
            "".join(f"v {row}\n" for row in rows.splitlines())
            + f"f -{' -'.join(corners.split()[:0:-1])} -{len(points)}"
        )
    if kind == "off":
        return f"OFF\n{len(points)} 1 0\n{rows}{len(points)} {corners}\n"
    properties = "property float x\nproperty float y\nproperty float z\n"
    return (
        f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n{properties}element face 1\n"
        f"property list uchar int vertex_index\nend_header\n{rows}{len(points)} {corners}\n"
    )


@pytest.mark.parametrize("kind", ["obj", "off", "ply"])
@pytest.mark.parametrize("first", range(6))
def test_a_concave_face_keeps_its_area(tmp_path: Path, kind: str, first: int) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_text(text(kind, L[first:] + L[:first]))
    vertices, faces = read_shape(path)
    assert len(faces) == 4
    assert area(vertices, faces) == pytest.approx(3)
    # In the square that is cut out there is nothing.
    assert not (vertices[faces].mean(1)[:, :2] > 1).all(1).any()


def test_a_dart_is_cut_by_its_inner_diagonal() -> None:
    dart = np.array([[0, 0, 0], [2, -1, 0], [1, 0, 0], [2, 1, 0]], float)
    for turn in range(4):
        assert area(np.roll(dart, turn, axis=0), cut(np.roll(dart, turn, axis=0))) == pytest.approx(1)


def test_convex_faces_and_those_without_area_are_fans() -> None:
    angles = np.linspace(0, 2 * np.pi, 8)[:-1]
    ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    for points in (ring, ring[::-1], np.outer(np.arange(5), [1, 2, 3]).astype(float), np.zeros((4, 3))):
        assert cut(points).tolist() == [[0, i, i + 1] for i in range(1, len(points) - 1)]


@pytest.mark.parametrize(
    "points",
    [
        [(0, 0), (1, 1), (1, 0), (0, 1)],
        [(0, 0), (3, 3), (3, 0), (0, 1)],
        [(np.cos(a), np.sin(a)) for a in np.arange(5) * 4 * np.pi / 5],  # a pentagram
        [(0, 0), (4, 0), (4, 4), (2, -1), (0, 4)],
    ],
)
def test_a_face_that_crosses_itself_is_refused(tmp_path: Path, points: list[tuple[float, float]]) -> None:
    (tmp_path / "a.off").write_text(text("off", points))
    with pytest.raises(DataError, match=f"face 1, of {len(points)} corners, crosses itself"):
        read_shape(tmp_path / "a.off")


def test_a_hole_that_an_edge_joins_to_the_outline_stays_open() -> None:
    outline, hole = [(0, 0), (4, 0), (4, 4), (0, 4)], [(1, 1), (1, 3), (3, 3), (3, 1)]
    joined = [*outline, outline[0], *hole, hole[0]]
    flat = np.array(joined, float)
    faces = ears(flat / 4)
    middles = flat[faces].mean(1)
    assert area(np.pad(flat, ((0, 0), (0, 1))), faces) == pytest.approx(12)
    assert not (np.abs(middles - 2) < 1 - 1e-9).all(1).any()


def inside(points: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Count the edges that a ray to the right crosses."""
    a, b = points, np.roll(points, -1, axis=0)
    with np.errstate(all="ignore"):
        at = a[:, 0] + (x[:, 1:] - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0])
    return (((a[:, 1] > x[:, 1:]) != (b[:, 1] > x[:, 1:])) & (x[:, :1] < at)).sum(1) % 2 == 1


def untangled(points: np.ndarray) -> np.ndarray:
    """Turn parts of a closed path around as long as that makes it shorter: the shortest does not cross itself."""
    shorter = True
    while shorter:
        shorter = False
        for i in range(len(points) - 1):
            for j in range(i + 2, len(points)):
                other = np.concatenate([points[: i + 1], points[i + 1 : j + 1][::-1], points[j + 1 :]])
                lengths = [np.linalg.norm(p - np.roll(p, -1, axis=0), axis=1).sum() for p in (points, other)]
                if lengths[1] < lengths[0] - 1e-9:
                    points, shorter = other, True
    return points


@settings(deadline=None, max_examples=60)
@given(
    corners=st.sets(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=4, max_size=9),
    turned=st.booleans(),
    shift=st.integers(0, 20),
    halved=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_triangles_have_the_area_of_any_simple_polygon_and_lie_in_it(
    corners: set[tuple[int, int]], turned: bool, shift: int, halved: bool, seed: int
) -> None:
    random = np.random.RandomState(seed)
    flat = untangled(random.permutation(np.array(sorted(corners), float)))
    assume(abs(shoelace(flat)) > 0.5)
    if halved:  # corners in line
        flat = np.stack([flat, (flat + np.roll(flat, -1, axis=0)) / 2], axis=1).reshape(-1, 2)
    flat = np.roll(flat[::-1] if turned else flat, shift, axis=0)
    plane = np.linalg.qr(random.normal(size=(3, 3)))[0][:2] * random.choice([1e-3, 1, 1e5])
    points = flat @ plane + random.normal(size=3)
    faces = cut(points)
    assert len(faces) == len(points) - 2
    assert area(points, faces) == pytest.approx(abs(shoelace(flat)) * (plane[0] @ plane[0]), rel=1e-6)
    flat_areas = np.abs(
        np.cross(
            np.pad(flat[faces[:, 1]] - flat[faces[:, 0]], ((0, 0), (0, 1))),
            np.pad(flat[faces[:, 2]] - flat[faces[:, 0]], ((0, 0), (0, 1))),
        )[:, 2]
    )
    assert inside(flat, flat[faces].mean(1)[flat_areas > 1e-6]).all()
    assert set(faces.ravel()) == set(range(len(points)))
