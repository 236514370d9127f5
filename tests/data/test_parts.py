"""Which parts the shapes of each class have."""

import pytest
import torch

from pc_ewa.data import Clouds
from pc_ewa.data.parts import parts_of_classes
from pc_ewa.data.published.shapenetpart import CATEGORIES
from pc_ewa.errors import DataError


def clouds(labels: list[int], parts: list[list[int]] | None, names: tuple[str, ...], name: str = "own") -> Clouds:
    stored = None if parts is None else torch.tensor(parts, dtype=torch.uint8).reshape(len(labels), -1)
    points = torch.zeros(len(labels), 3 if stored is None else stored.shape[1], 3)
    return Clouds(points, None, torch.tensor(labels), names, "y", name, parts=stored)


def test_they_are_those_that_occur_in_any_split() -> None:
    train = clouds([1, 0, 1], [[2, 2, 5], [0, 0, 0], [2, 2, 2]], ("chair", "lamp"))
    test = clouds([0, 1], [[1, 0, 0], [2, 9, 2]], ("chair", "lamp"))
    assert parts_of_classes([train]) == [[0], [2, 5]]
    assert parts_of_classes([train, test]) == parts_of_classes([test, train]) == [[0, 1], [2, 5, 9]]


def test_classes_may_share_parts_and_need_no_shape_in_every_split() -> None:
    train = clouds([0, 1], [[3, 255], [3, 3]], ("a", "b"))
    assert parts_of_classes([train, clouds([0], [[255, 255]], ("a", "b"))]) == [[3, 255], [3]]


def test_only_selected_shapes_count() -> None:
    both = clouds([0, 0, 0], [[0, 0], [7, 7], [1, 1]], ("a",))
    assert parts_of_classes([both.select([2, 0])]) == [[0, 1]]


def test_more_shapes_than_are_read_at_a_time_are_all_counted() -> None:
    parts = [[0, 0]] * 1030
    parts[1024:1026] = [[4, 0], [0, 6]]
    assert parts_of_classes([clouds([0] * 1030, parts, ("a",))]) == [[0, 4, 6]]


def test_for_shapenetpart_they_are_the_published_ones_whatever_occurs() -> None:
    few = clouds([0], [[1, 1]], tuple(CATEGORIES), name="shapenetpart")
    parts = parts_of_classes([few])
    assert parts[0] == [0, 1, 2, 3]
    assert parts[-1] == [47, 48, 49]
    assert [part for some in parts for part in some] == list(range(50))


def test_a_class_without_shapes_is_refused() -> None:
    with pytest.raises(DataError, match=r"^own: no shape of class lamp, so its parts are unknown; remove the class$"):
        parts_of_classes([clouds([0], [[0]], ("chair", "lamp"))])


def test_a_dataset_without_parts_is_refused() -> None:
    with pytest.raises(DataError, match="own has no parts; choose a dataset for segmentation, such as shapenetpart"):
        parts_of_classes([clouds([0], None, ("chair",))])
