from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_ewa.data import Clouds
from pc_ewa.data.clouds import join
from pc_ewa.errors import DataError


def make_clouds(labels: list[int], num_points: int = 4) -> Clouds:
    """Shapes whose coordinates all equal their position, so that a shape can be told from any other."""
    count = len(labels)
    return Clouds(
        points=torch.arange(count, dtype=torch.float32)[:, None, None].repeat(1, num_points, 3),
        scale=None,
        labels=torch.tensor(labels, dtype=torch.int64),
        class_names=tuple(f"class{i}" for i in range(max(labels, default=0) + 1)),
        up_axis="z",
        name="toy",
        shape_names=tuple(f"shape{i}" for i in range(count)),
    )


def identities(clouds: Clouds) -> list[int]:
    return clouds.batch(range(len(clouds)))[0][:, 0, 0].int().tolist()


@pytest.mark.parametrize("indices", [[3, 1, 1], torch.tensor([3, 1, 1])])
def test_batch_returns_float32_coordinates_in_the_order_asked(indices: list[int] | torch.Tensor) -> None:
    points, labels = make_clouds([0, 1, 0, 2]).batch(indices)
    assert points.dtype == torch.float32
    assert points.shape == (3, 4, 3)
    assert points[:, 0, 0].tolist() == [3, 1, 1]
    assert labels.tolist() == [2, 1, 1]


def test_batch_divides_int16_by_the_scale_and_leaves_the_store_alone() -> None:
    stored = torch.tensor([[[2047, -2047, 1]]], dtype=torch.int16)
    clouds = Clouds(stored, 2047.0, torch.tensor([0]), ("a",), "z", "toy")
    points, _ = clouds.batch([0])
    assert torch.allclose(points, torch.tensor([[[1.0, -1.0, 1 / 2047]]]))
    assert clouds.points.dtype == torch.int16
    assert clouds.points.tolist() == [[[2047, -2047, 1]]]


def test_changing_a_batch_in_place_does_not_change_the_data() -> None:
    clouds = make_clouds([0, 0])
    clouds.batch([0, 1])[0].fill_(9.0)
    assert identities(clouds) == [0, 1]


def test_select_keeps_points_labels_and_names_together() -> None:
    part = make_clouds([0, 1, 2]).select([2, 0])
    assert identities(part) == [2, 0]
    assert part.labels.tolist() == [2, 0]
    assert part.shape_names == ("shape2", "shape0")
    assert (len(part), part.num_points, part.num_classes) == (2, 4, 3)


def test_a_boolean_mask_is_refused_instead_of_read_as_zeros_and_ones() -> None:
    with pytest.raises(ValueError, match="boolean mask; give positions"):
        make_clouds([0, 1]).batch(torch.tensor([False, True]))


def test_to_moves_points_and_labels() -> None:
    moved = make_clouds([0, 1]).to("meta")
    assert moved.points.device.type == moved.labels.device.type == "meta"


@pytest.mark.parametrize(
    ("points", "scale", "labels", "message"),
    [
        (torch.zeros(2, 4), None, torch.zeros(2).long(), r"points are \(2, 4\)"),
        (torch.zeros(2, 4, 3).double(), None, torch.zeros(2).long(), "float64"),
        (torch.zeros(2, 4, 3).short(), None, torch.zeros(2).long(), "scale is None"),
        (torch.zeros(2, 4, 3), 2.0, torch.zeros(2).long(), "scale is 2.0"),
        (torch.zeros(2, 4, 3), None, torch.zeros(3).long(), r"labels are \(3,\)"),
        (torch.zeros(2, 4, 3), None, torch.zeros(2), "labels are .*float32"),
    ],
)
def test_fields_that_do_not_fit_are_refused(
    points: torch.Tensor, scale: float | None, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Clouds(points, scale, labels, ("a",), "z", "toy")


def test_shape_names_must_be_as_many_as_shapes() -> None:
    with pytest.raises(ValueError, match="1 shape_names for 2 shapes"):
        Clouds(torch.zeros(2, 4, 3), None, torch.zeros(2).long(), ("a",), "z", "toy", ("one",))


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
def test_validation_split_laws(labels: list[int], fraction: float, seed: int) -> None:
    counts = np.bincount(labels)
    if counts.max() < 2:
        return
    clouds = make_clouds(labels, num_points=1)
    train, validation = clouds.split_validation(fraction, seed)
    kept, held_out = identities(train), identities(validation)
    assert kept == sorted(kept)
    assert held_out == sorted(held_out)
    assert sorted(kept + held_out) == list(range(len(labels)))
    for label in range(len(counts)):
        share, total = int((validation.labels == label).sum()), int(counts[label])
        assert share < total or total == 0, "a class lost its last training shape"
        assert share >= 1 or total < 2, "a class that could be validated is not"
        if 1 < share < total - 1:
            assert abs(share - fraction * total) <= 0.5
    assert validation.labels.tolist() == [labels[i] for i in held_out]
    assert validation.class_names == clouds.class_names
    again = clouds.split_validation(fraction, seed)[1]
    assert identities(again) == held_out


def test_validation_split_is_the_same_on_every_machine() -> None:
    labels = [0] * 10 + [1] * 10
    parts = [identities(make_clouds(labels).split_validation(0.2, seed)[1]) for seed in (0, 1)]
    assert parts == [[1, 8, 18, 19], [3, 6, 10, 16]]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_validation_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        make_clouds([0, 0]).split_validation(fraction, 0)


def test_no_validation_part_from_classes_of_one_shape() -> None:
    with pytest.raises(DataError, match=r"toy: .* each class has only one; add shapes"):
        make_clouds([0, 1, 2]).split_validation(0.5, 0)


def with_parts(clouds: Clouds) -> Clouds:
    """Every point gets the number of its shape as its part."""
    return replace(clouds, parts=clouds.points[..., 0].to(torch.uint8))


@pytest.mark.parametrize("in_memory", [False, True])
def test_join_puts_one_split_after_the_other(in_memory: bool) -> None:
    whole = with_parts(make_clouds([0, 1, 2, 0, 1]))
    first, second = whole.select([4, 0]), whole.select([3])  # both map the same file
    if in_memory:
        first, second = first.to("cpu"), second.to("cpu")
    both = join(first, second)
    assert identities(both) == [4, 0, 3]
    assert both.labels.tolist() == [1, 0, 0]
    assert both.shape_names == ("shape4", "shape0", "shape3")
    assert both.part_labels([0, 1, 2]).tolist() == [[4] * 4, [0] * 4, [3] * 4]
    assert (both.class_names, both.up_axis, both.name) == (whole.class_names, whole.up_axis, whole.name)
    assert (both.points is whole.points) == (not in_memory)
    assert identities(both.select([2, 0])) == [3, 4]


def test_join_of_splits_without_names_or_parts_has_none() -> None:
    named = with_parts(make_clouds([0, 1])).to("cpu")
    bare = replace(named, shape_names=None, parts=None)
    both = join(named, bare)
    assert (len(both), both.shape_names, both.parts) == (4, None, None)
