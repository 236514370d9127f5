"""Copies of one object across splits: found where they are, and nowhere else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pc_ewa.data import load_dataset
from pc_ewa.data.formats.readers import Shape, read_shape
from pc_ewa.data.near_copies import NearCopies
from pc_ewa.data.source import Item, Sample

Array = NDArray[np.float64]
NAMES = [chr(label) for label in range(128)]  # of the labels that `notes` gives
CUBE = np.array([(x, y, z) for x in (5.0, 6) for y in (0.0, 2) for z in (0.0, 3)])
SIDES = np.array([*map(int, "013032475467051045237276026064157173")]).reshape(-1, 3)


def cloud(seed: int, count: int = 500) -> Array:
    random = np.random.RandomState(seed)
    return random.uniform(-1, 1, (count, 3)) * random.uniform(0.2, 1, 3)


def turned(points: Array) -> Array:
    rotation, _ = np.linalg.qr(np.random.RandomState(7).normal(size=(3, 3)))
    return points @ rotation


def nothing() -> Sample:
    raise AssertionError("a shape is read once")


def notes(*shapes: tuple[str, str, Shape | Array]) -> list[str]:
    """The notes on shapes, each (name, split, content); the class is the first folder."""
    copies, items = NearCopies(), []
    for name, split, shape in shapes:
        copies.add(name, shape if isinstance(shape, Shape) else Shape(shape))
        items.append(Item(name, ord(name[0]), split, nothing))
    return copies.notes(items, NAMES)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p,
        lambda p: p[::-1],
        lambda p: p + np.array([100, 0, -3]),
        lambda p: p * 25.4,
        lambda p: p * [1, 1, -1],
        lambda p: p[:, [0, 2, 1]],
        turned,
        lambda p: p.astype(np.float32).astype(np.float64),
        lambda p: p.round(5),
    ],
)
@pytest.mark.parametrize("mesh", [False, True])
def test_copies_are_found_by_geometry(change: Callable[[Array], Array], mesh: bool) -> None:
    points = cloud(0)
    faces = np.random.RandomState(1).randint(len(points), size=(400, 3))
    copy = change(points)
    copied_faces = len(points) - 1 - faces if np.array_equal(copy, points[::-1]) else faces
    found = notes(
        ("a/left.ply", "test", Shape(copy, copied_faces if mesh else None)),
        ("a/right.ply", "train", Shape(points, faces if mesh else None)),
        ("a/more.ply", "test", cloud(1)),
    )
    assert len(found) == 1
    assert "1 shape is all but equal" in found[0]
    assert "a/left.ply (test) and a/right.ply (train)" in found[0]
    assert "--group-by REGEX" in found[0]


def test_a_mesh_in_formats_that_store_vertices_once_or_many_times(tmp_path: Path) -> None:
    (tmp_path / "1.obj").write_text(
        "".join(f"v {x:g} {y:g} {z:g}\n" for x, y, z in CUBE)
        + "".join(f"f {a} {b} {c}\n" for a, b, c in SIDES[::-1] + 1)
    )
    (tmp_path / "2.stl").write_text(
        "solid a\n"
        + "".join(
            "facet normal 0 0 0\nouter loop\n"
            + "".join(f"vertex {x:g} {y:g} {z:g}\n" for x, y, z in CUBE[side] * 10)
            + "endloop\nendfacet\n"
            for side in SIDES
        )
        + "endsolid a\n"
    )
    files = (("1.obj", "train"), ("2.stl", "val"))
    (note,) = notes(*((f"a/{name}", split, read_shape(tmp_path / name)) for name, split in files))
    assert "a/2.stl (val) and a/1.obj (train)" in note


@pytest.mark.parametrize(
    ("name", "copy"),
    [
        ("a/1.ply", "a/1_copy.ply"),
        ("a/1.ply", "a/1 - Copy (2).PLY"),
        ("a/1.ply", "a/1 (1).ply"),
        ("a/1.ply", "a/Copy of 1.ply"),
        ("a/1.ply", "a/1_v2.xyz"),
        ("a/1.ply", "a/1_rot90.ply"),
        ("a/1_rot0.ply", "a/1_rot90.ply"),
        ("a/1.ply", "a/1-rotated-z-180.ply"),
        ("a/1.ply", "a/1_mirror_x_aug3.ply"),
        ("train/a/1.ply", "test/a/1_flipped.ply"),
        ("a/train/1.ply", "a/test/1.copy.ply"),
        ("a/1.obj", "a/1.xyz"),
    ],
)
def test_copies_are_found_by_name(name: str, copy: str) -> None:
    found = notes((name, "train", cloud(0)), (copy, "test", cloud(1)), ("a/other.ply", "test", cloud(2)))
    assert f"1 shape is by name a copy of one of another split, such as {copy} (test) and {name} (train)" in found[0]
    assert "--group-by REGEX" in found[0]
    assert len(notes((name, "train", cloud(0)), (copy, "train", cloud(1)))) == ("xyz" in copy and "obj" in name)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("a/1.ply", "a/2.ply"),
        ("a/1.ply", "b/1_copy.ply"),
        ("a/x/1.ply", "a/y/1_copy.ply"),
        ("a/cup (1).ply", "a/cup (2).ply"),
        ("a/cup_v1.ply", "a/cup_v2.ply"),
        ("a/photo.ply", "a/photocopy.ply"),
        ("a/car.ply", "a/carrot90.ply"),
        ("a/copy.ply", "a/copy of.ply"),
        ("a/1_left.ply", "a/1_right.ply"),
        ("train/a/1.ply", "test/a/1.xyz"),
        ("a/v1.ply", "a/v2.ply"),
    ],
)
def test_names_that_do_not_say_copy(name: str, other: str) -> None:
    assert notes((name, "train", cloud(0)), (other, "test", cloud(1))) == []


def test_the_same_shape_in_two_formats_counts_twice() -> None:
    (note,) = notes(
        *(("a/1.obj", "train", cloud(0)), ("a/1.ply", "train", cloud(0)), ("a/2.obj", "test", cloud(1))),
        *(("b/1.ply", "train", cloud(2)), ("a/2.d/1.ply", "train", cloud(3))),
    )
    assert note.startswith("stored twice: 1 shape is there in two formats, such as a/1.obj and a/1.ply")


def test_all_are_counted_and_one_pair_is_named_clean() -> None:
    found = notes(
        *((f"a/{i}.ply", "train", cloud(i)) for i in range(5)),
        *((f"a/test\u202e{i}.ply", "test", turned(cloud(i))) for i in range(4)),
    )
    assert len(found) == 1
    assert "4 shapes are" in found[0]
    assert found[0].isprintable()


@pytest.mark.parametrize("splits", [("train", "train"), ("train", "test"), ("test", "test")])
def test_copies_under_two_labels_contradict_each_other(splits: tuple[str, str]) -> None:
    (found,) = notes(
        ("bolt/1.ply", splits[0], cloud(0)),
        ("nut/7.ply", splits[1], turned(cloud(0)) * 25.4),
        ("nut/8.ply", "train", cloud(1)),
    )
    assert found.startswith("contradictory labels: 1 shape is")
    assert f"bolt/1.ply (b, {splits[0]}) and nut/7.ply (n, {splits[1]})" in found


def test_the_rarer_labels_are_suspected_and_copies_of_one_label_still_leak() -> None:
    contradiction, leak = notes(
        *(("a/1.ply", "train", cloud(0)), ("b/1.ply", "train", cloud(0)), ("b/2.ply", "test", cloud(0))),
        *(("c/1.ply", "val", cloud(0)), ("c/2.ply", "train", cloud(1)), ("d/2.ply", "train", cloud(1))),
    )
    assert "3 shapes are" in contradiction
    for pair in (
        "b/1.ply (b, train) and a/1.ply (a, train)",
        "b/1.ply (b, train) and c/1.ply (c, val)",
        "c/2.ply (c, train) and d/2.ply (d, train)",
    ):
        assert pair in contradiction
    assert "near-copies: 1 shape is" in leak
    assert "b/2.ply (test) and b/1.ply (train)" in leak


def test_shapes_that_were_not_used_do_not_count() -> None:
    copies = NearCopies()
    copies.add("a/1.ply", Shape(cloud(0)))
    copies.add("a/2.ply", Shape(cloud(0)))
    assert copies.notes([Item("a/1.ply", 0, "train", nothing)], NAMES) == []


def test_different_objects_are_no_copies() -> None:
    shapes: list[tuple[str, str, Array]] = []
    for split in ("train", "test"):  # 613 pieces of furniture, plugs and windows that look alike among them
        clouds = load_dataset("sweethome3d", split)
        points = clouds.batch(range(len(clouds)))[0].numpy().astype(np.float64)
        shapes += [(f"{split}/{i}.ply", split, cloud) for i, cloud in enumerate(points)]
    for i in range(100):  # boxes of the same size, drawn anew
        shapes.append((f"box/{i}.ply", ("train", "test")[i % 2], np.random.RandomState(i).uniform(size=(1024, 3))))
    assert notes(*shapes) == []


def test_shapes_without_extent() -> None:
    flat = Shape(np.zeros((3, 3)), np.array([[0, 1, 2]]))
    found = notes(
        ("a/1.ply", "train", np.ones((1, 3))), ("a/2.ply", "test", np.zeros((1, 3))), ("a/3.ply", "val", flat)
    )
    assert len(found) == 1


def test_many_equal_shapes_take_no_time() -> None:
    shape = Shape(cloud(0, 8))
    copies = NearCopies()
    for i in range(2000):
        copies.add(str(i), shape)
    items = [Item(str(i), 0, ("train", "test")[i % 2], nothing) for i in range(2000)]
    assert "1,000 shapes are" in copies.notes(items, NAMES)[0]
