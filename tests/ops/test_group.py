import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_ewa.ops import farthest_point_sample, gather_points, group, knn

pytestmark = pytest.mark.usefixtures("backend")


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 80), st.data(), st.integers(0, 2**31))
def test_patches_are_the_neighbours_of_far_apart_points(batch: int, count: int, data: st.DataObject, seed: int) -> None:
    torch.manual_seed(seed)
    num_groups, size = data.draw(st.integers(1, count)), data.draw(st.integers(1, count))
    points = torch.randn(batch, count, 3)
    groups, centers = group(points, num_groups, size)
    assert groups.shape == (batch, num_groups, size, 3)
    assert torch.equal(centers, gather_points(points, farthest_point_sample(points, num_groups)))
    index = knn(centers, points, size)[1]
    assert torch.equal(groups, gather_points(points, index) - centers[:, :, None])
    assert not groups[:, :, 0].any(), "the center is the nearest of its patch"


def test_options_reach_the_sampling_and_padding_stays_out() -> None:
    torch.manual_seed(0)
    points = torch.randn(2, 40, 3)
    points[0, 5] = 0
    points[1, 30:] = torch.nan
    groups, centers = group(points, 8, 12, start=[3, 4], lengths=[40, 30], skip_near_origin=True)
    assert torch.equal(centers[:, 0], points[[0, 1], [3, 4]])
    assert centers.norm(dim=-1).min() > 0
    alone = group(points[1:, :30], 8, 12, start=4)
    assert torch.equal(groups[1:], alone[0])
    assert torch.equal(centers[1:], alone[1])


def test_an_empty_batch_has_no_patches() -> None:
    assert [part.shape for part in group(torch.zeros(0, 9, 3), 3, 4)] == [(0, 3, 4, 3), (0, 3, 3)]


def test_gradients_reach_the_points() -> None:
    torch.manual_seed(0)
    points = torch.randn(2, 12, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: group(p, 3, 4), points)


@pytest.mark.parametrize(("num_groups", "size"), [(13, 4), (3, 13), (0, 4), (3, 0)])
def test_more_than_there_are_is_refused(num_groups: int, size: int) -> None:
    with pytest.raises(ValueError, match="in clouds of 12 points; choose 1 to 12"):
        group(torch.zeros(2, 12, 3), num_groups, size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    points = torch.randn(2, 50, 3).to(dtype)
    for actual, wide in zip(group(points, 5, 7), group(points.float(), 5, 7), strict=True):
        assert torch.equal(actual, wide.to(dtype))
