import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pc_ewa.ops import farthest_point_sample

pytestmark = pytest.mark.usefixtures("backend")

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
        (torch.zeros(2, 5, 3), 6, r"n=6 points in clouds of 5 points; choose 1 to 5"),
        (torch.zeros(2, 5, 3), 0, r"n=0 points in clouds of 5 points; choose 1 to 5"),
        (torch.zeros(2, 0, 3), 1, r"n=1 points in clouds of 0"),
        (torch.zeros(5, 3), 1, r"points has shape \(5, 3\); expected \(batch, points, 3\)"),
        (torch.zeros(2, 3, 5), 1, r"points has shape \(2, 3, 5\); expected"),
        (torch.zeros(2, 5, 3, dtype=torch.int64), 1, r"points is torch.int64; expected floating-point coordinates"),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, Tensor) else str(value)[:20],
)
def test_impossible_requests_are_refused(points: Tensor, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        farthest_point_sample(points, n)


# Options


@laws
@given(st.integers(1, 40), st.data())
def test_start(count: int, data: st.DataObject) -> None:
    """Sampling from another point is sampling the cloud with that point moved to the front."""
    n = data.draw(st.integers(1, count))
    start = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    points = torch.randn(2, count, 3)
    chosen = farthest_point_sample(points, n, start=start)
    assert torch.equal(chosen, farthest_point_sample(points, n, start=torch.tensor(start, dtype=torch.int32)))
    for cloud, first, row in zip(points, start, chosen, strict=True):
        order = torch.cat([torch.tensor([first]), torch.arange(count)[torch.arange(count) != first]])
        assert torch.equal(row, order[farthest_point_sample(cloud[order][None], n)[0]])
        assert torch.equal(row, farthest_point_sample(cloud[None], n, start=first)[0])


@laws
@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.data())
def test_padding_is_never_chosen(lengths: list[int], data: st.DataObject) -> None:
    """Whatever it holds, NaN too."""
    n = data.draw(st.integers(1, min(lengths)))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    points = torch.randn(len(lengths), max(lengths), 3)
    padded = points.clone()
    for cloud, length in zip(padded, lengths, strict=True):
        cloud[length:] = torch.nan
    for given_lengths in (lengths, torch.tensor(lengths, dtype=torch.int32)):
        chosen = farthest_point_sample(padded, n, lengths=given_lengths)
        for cloud, length, row in zip(points, lengths, chosen, strict=True):
            assert torch.equal(row, farthest_point_sample(cloud[None, :length], n)[0])


def test_points_near_the_origin_are_skipped_on_request() -> None:
    """Within sqrt(1e-3) = 0.0316 of it, as pointnet2_ops does; but the first point is the first point."""
    points = torch.tensor([[[0, 0, 0.01], [0, 0, 0], [0.0315, 0, 0], [0.0317, 0, 0], [1, 0, 0]]])
    assert farthest_point_sample(points, 5).tolist() == [[0, 4, 3, 1, 2]]
    assert farthest_point_sample(points, 3, skip_near_origin=True).tolist() == [[0, 4, 3]]
    # All others chosen: the farthest of those that may be is at distance 0, the lowest of them wins.
    assert farthest_point_sample(points, 5, skip_near_origin=True).tolist() == [[0, 4, 3, 3, 3]]
    assert farthest_point_sample(points[:, :3], 3, start=1, skip_near_origin=True).tolist() == [[1, 0, 0]]


def test_a_start_may_be_any_integer() -> None:
    points = torch.randn(2, 9, 3)
    assert farthest_point_sample(points, 2, start=np.int64(3))[:, 0].tolist() == [3, 3]


def test_empty_batch() -> None:
    assert farthest_point_sample(torch.zeros(0, 5, 3), 2, lengths=[]).shape == (0, 2)
    assert farthest_point_sample(torch.zeros(0, 5, 3), 2, start=torch.zeros(0).long()).shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 5}, r"start=5 "),
        ({"start": True}, r"start=True; expected an index"),
        ({"start": -1}, r"start=-1 "),
        ({"start": [0, 3], "lengths": [5, 3]}, r"start=3 "),
        ({"start": [0, 0, 0]}, r"start is torch.int64 of shape \(3,\); expected one integer for each of the 2 clouds"),
        ({"start": torch.zeros(2)}, r"start is torch.float32 of shape \(2,\); expected one integer"),
        ({"lengths": [2, 5]}, r"a length of 2 for points; it must lie between 3 and 5"),
        ({"lengths": [6, 5]}, r"a length of 6 for points; it must lie between 3 and 5"),
        ({"lengths": [True, True]}, r"lengths is torch.bool"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        farthest_point_sample(torch.zeros(2, 5, 3), 3, **options)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 4, 2999])
def test_nan_and_inf_are_refused(bad: float, place: int) -> None:
    points = torch.randn(3, 3000, 3)
    points[1, place, place % 3] = bad
    with pytest.raises(ValueError, match="points holds NaN or inf in cloud 1 of the batch; remove such points first"):
        farthest_point_sample(points, 3)


def test_huge_but_finite_coordinates_are_fine() -> None:
    points = torch.tensor([[[3e38, 0, 0], [-3e38, 0, 0], [0, 1, 0]]])
    assert farthest_point_sample(points, 2).tolist() == [[0, 1]]


def test_agrees_with_another_implementation() -> None:
    """An independent one, exact too, on clouds large enough for every shortcut; both start at index 0."""
    torch_quickfps = pytest.importorskip("torch_quickfps")  # optional: it has wheels for Linux on x86_64 alone
    torch.manual_seed(0)
    points = torch.randn(2, 6000, 3)
    expected = torch_quickfps.sample_idx(points, 500, start_idx=0)
    assert torch.equal(farthest_point_sample(points, 500), expected)
