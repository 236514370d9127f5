import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pc_ewa.ops import farthest_point_sample

laws = settings(deadline=None, max_examples=60)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


def brute_force(points: Tensor, n: int) -> list[list[int]]:
    """From index 0, always the lowest index among the points farthest from all chosen, in the precision given."""
    wide = points if points.dtype == torch.float64 else points.float()
    result = []
    for cloud in wide.numpy():
        chosen = [0]
        while len(chosen) < n:
            to_chosen = []
            for i in chosen:
                dx, dy, dz = (cloud - cloud[i]).T
                to_chosen.append(dx * dx + dy * dy + dz * dz)
            chosen.append(int(np.argmax(np.min(to_chosen, axis=0))))  # argmax takes the first
        result.append(chosen)
    return result


@laws
@given(st.integers(1, 3), st.integers(1, 30), st.data(), dtypes)
def test_random_clouds(batch: int, count: int, data: st.DataObject, dtype: torch.dtype) -> None:
    n = data.draw(st.integers(1, count))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    points = torch.randn(batch, count, 3).to(dtype)
    chosen = farthest_point_sample(points, n)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == brute_force(points, n)


@laws
@given(st.integers(1, 30), st.data())
def test_ties_and_duplicates_go_to_the_lowest_index(count: int, data: st.DataObject) -> None:
    """On a coarse grid most distances tie and most points occur several times."""
    n = data.draw(st.integers(1, count))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    points = torch.randint(0, 3, (2, count, 3)).float()
    assert farthest_point_sample(points, n).tolist() == brute_force(points, n)


def test_a_square_by_hand() -> None:
    points = torch.tensor([[[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0.5, 0.5, 0]]])
    assert farthest_point_sample(points, 5).tolist() == [[0, 3, 1, 2, 4]]


def test_single_point_and_equal_points() -> None:
    assert farthest_point_sample(torch.ones(2, 1, 3), 1).tolist() == [[0], [0]]
    assert farthest_point_sample(torch.ones(1, 4, 3), 3).tolist() == [[0, 0, 0]]


def test_points_near_the_origin_are_points_like_any_other() -> None:
    """The official CUDA kernel never selects them; here they count."""
    points = torch.tensor([[[1, 0, 0], [0.9, 0, 0], [0.01, 0, 0]]])
    assert farthest_point_sample(points, 2).tolist() == [[0, 2]]


def test_all_points_are_found_once() -> None:
    torch.manual_seed(0)
    assert farthest_point_sample(torch.randn(1, 50, 3), 50)[0].sort().values.tolist() == list(range(50))


def test_memory_layout_and_offset_do_not_matter() -> None:
    torch.manual_seed(0)
    points = torch.randint(-512, 512, (2, 40, 3)) / 1024  # exact in float32, 1000 added too
    expected = farthest_point_sample(points, 12)
    strided = points.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    assert torch.equal(farthest_point_sample(strided, 12), expected)
    assert torch.equal(farthest_point_sample(points.expand(2, -1, -1) + 1000, 12), expected)
    assert torch.equal(farthest_point_sample(points[:1].expand(3, -1, -1), 12), expected[:1].expand(3, -1))


def test_samples_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    points = torch.randn(3, 20, 3)
    alone = torch.cat([farthest_point_sample(cloud[None], 6) for cloud in points])
    assert torch.equal(farthest_point_sample(points, 6), alone)


def test_points_that_need_gradients_are_only_looked_at() -> None:
    points = torch.randn(1, 10, 3, requires_grad=True)
    before = points.detach().clone()
    assert not farthest_point_sample(points, 4).requires_grad
    assert torch.equal(points, before)


@pytest.mark.parametrize(
    ("points", "n", "message"),
    [
        (torch.zeros(2, 5, 3), 6, r"n=6 points asked of clouds of 5; choose 1 to 5"),
        (torch.zeros(2, 5, 3), 0, r"n=0 points asked of clouds of 5; choose 1 to 5"),
        (torch.zeros(2, 0, 3), 1, r"n=1 points asked of clouds of 0"),
        (torch.zeros(5, 3), 1, r"points has shape \(5, 3\); expected \(batch, points, 3\)"),
        (torch.zeros(2, 3, 5), 1, r"points has shape \(2, 3, 5\); expected"),
        (torch.zeros(2, 5, 3, dtype=torch.int64), 1, r"points is torch.int64; expected floating-point coordinates"),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, Tensor) else str(value)[:20],
)
def test_impossible_requests_are_refused(points: Tensor, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        farthest_point_sample(points, n)
