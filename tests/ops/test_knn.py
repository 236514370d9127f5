import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pc_ewa.ops import gather_points, knn

pytestmark = pytest.mark.usefixtures("backend")

laws = settings(deadline=None, max_examples=60)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
sizes = st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 30))


def brute_force(queries: Tensor, points: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and indices by a stable sort, in the precision given."""
    q, p = ((x if x.dtype == torch.float64 else x.float()).numpy() for x in (queries, points))
    dx, dy, dz = np.moveaxis(q[:, :, None] - p[:, None], -1, 0)
    squared = dx * dx + dy * dy + dz * dz
    indices = np.argsort(squared, axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(squared, indices, -1), indices


def check(queries: Tensor, points: Tensor, k: int) -> None:
    distances, indices = knn(queries, points, k)
    expected, order = brute_force(queries, points, k)
    assert indices.dtype == torch.int64
    assert indices.tolist() == order.tolist()
    assert (distances.diff(dim=-1) >= 0).all(), "nearest first"
    assert distances.dtype == (torch.float64 if queries.dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(distances.numpy(), expected, rtol=4 * torch.finfo(distances.dtype).eps)


@laws
@given(sizes, st.data(), dtypes)
def test_random_clouds(size: tuple[int, int, int], data: st.DataObject, dtype: torch.dtype) -> None:
    batch, queries, count = size
    k = data.draw(st.integers(1, count))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    check(torch.randn(batch, queries, 3).to(dtype), torch.randn(batch, count, 3).to(dtype), k)


@laws
@given(sizes, st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_ties_and_duplicates_go_to_the_lowest_index(
    size: tuple[int, int, int], data: st.DataObject, dtype: torch.dtype
) -> None:
    """On a coarse grid most distances tie and most points occur several times."""
    batch, queries, count = size
    k = data.draw(st.integers(1, count))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    check(torch.randint(0, 3, (batch, queries, 3)).to(dtype), torch.randint(0, 3, (batch, count, 3)).to(dtype), k)


def test_a_large_cloud_whose_points_all_tie() -> None:
    indices = knn(torch.zeros(1, 1, 3), torch.ones(1, 5000, 3), 4999)[1]
    assert torch.equal(indices[0, 0], torch.arange(4999))


def test_a_query_that_is_a_point_is_its_own_nearest() -> None:
    torch.manual_seed(0)
    points = torch.randn(2, 30, 3)
    distances, indices = knn(points, points, 1)
    assert torch.equal(indices[..., 0], torch.arange(30).expand(2, -1))
    assert not distances.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_from_the_origin_the_neighbours_are_the_same(dtype: torch.dtype) -> None:
    """Coordinates in 1/1024 are exact at 1000 too; |a|² + |b|² - 2ab would lose all of their distances."""
    torch.manual_seed(0)
    points = (torch.randint(-512, 512, (2, 60, 3)) / 1024).to(dtype)
    queries = (torch.randint(-512, 512, (2, 9, 3)) / 1024).to(dtype)
    distances, indices = knn(queries, points, 20)
    moved_distances, moved_indices = knn(queries + 1000, points + 1000, 20)
    assert torch.equal(moved_indices, indices)
    assert torch.equal(moved_distances, distances)


def test_tiny_and_huge_distances_keep_their_order() -> None:
    scale = torch.tensor([0, 1e-22, 1e-15, 1e-5, 1, 1e10, 1e18])  # squares from denormal to nearly the largest
    points = torch.stack([scale, torch.zeros(7), torch.zeros(7)], -1)[None]
    shuffled = torch.tensor([3, 6, 0, 5, 2, 4, 1])
    indices = knn(torch.zeros(1, 1, 3), points[:, shuffled], 7)[1]
    assert shuffled[indices[0, 0]].tolist() == list(range(7))


def test_memory_layout_does_not_matter() -> None:
    torch.manual_seed(0)
    queries, points = torch.randn(2, 5, 3), torch.randn(2, 30, 3)
    strided = points.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    for actual, expected in zip(knn(queries, strided, 7), knn(queries, points, 7), strict=True):
        assert torch.equal(actual, expected)


def test_distances_have_the_exact_gradient() -> None:
    torch.manual_seed(0)
    queries = torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True)
    points = torch.randn(2, 9, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, p: knn(q, p, 3)[0], (queries, points))


@pytest.mark.parametrize(
    ("queries", "points", "k", "message"),
    [
        (torch.zeros(2, 4, 3), torch.zeros(2, 5, 3), 6, r"k=6 neighbours in clouds of 5 points; choose 1 to 5"),
        (torch.zeros(2, 4, 3), torch.zeros(2, 5, 3), 0, r"k=0 neighbours in clouds of 5 points; choose 1 to 5"),
        (torch.zeros(2, 4, 3), torch.zeros(3, 5, 3), 1, r"queries has a batch of 2, points of 3; they must be equal"),
        (np.zeros((2, 4, 3)), torch.zeros(2, 5, 3), 1, r"queries is a ndarray; expected a tensor"),
        (torch.zeros(4, 3), torch.zeros(2, 5, 3), 1, r"queries has shape \(4, 3\); expected \(batch, points, 3\)"),
        (torch.zeros(2, 4, 3), torch.zeros(2, 5, 2), 1, r"points has shape \(2, 5, 2\); expected"),
        (torch.zeros(2, 4, 3), torch.zeros(2, 5, 3).int(), 1, r"points is torch.int32; expected floating-point"),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, Tensor) else str(value)[:20],
)
def test_impossible_requests_are_refused(queries: Tensor, points: Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn(queries, points, k)


# Variable lengths


@laws
@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.data())
def test_padding_is_never_a_neighbour(lengths: list[int], data: st.DataObject) -> None:
    """Whatever it holds, NaN too."""
    k = data.draw(st.integers(1, min(lengths)))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    points, queries = torch.randn(len(lengths), max(lengths), 3), torch.randn(len(lengths), 4, 3)
    padded = points.clone()
    for cloud, length in zip(padded, lengths, strict=True):
        cloud[length:] = torch.nan
    padded.requires_grad_()
    distances, index = knn(queries, padded, k, lengths=lengths)
    distances.sum().backward()
    assert padded.grad.isfinite().all()
    for b, length in enumerate(lengths):
        expected = knn(queries[b : b + 1], points[b : b + 1, :length], k)
        assert torch.equal(distances[b : b + 1], expected[0])
        assert torch.equal(index[b : b + 1], expected[1])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([5, 2], "a length of 2 for points; it must lie between 3 and 5"),
        ([5, 6], "a length of 6 for points; it must lie between 3 and 5"),
        ([5], r"lengths is torch.int64 of shape \(1,\); expected one integer for each of the 2 clouds"),
    ],
    ids=str,
)
def test_impossible_lengths_are_refused(lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn(torch.zeros(2, 4, 3), torch.zeros(2, 5, 3), 3, lengths=lengths)


@pytest.mark.parametrize("which", [0, 1])
def test_nan_is_refused(which: int) -> None:
    clouds = [torch.zeros(2, 4, 3), torch.zeros(2, 4, 3)]
    clouds[which][1, 2, 0] = torch.nan
    name = ("queries", "points")[which]
    with pytest.raises(ValueError, match=f"{name} holds NaN or inf in cloud 1 of the batch"):
        knn(*clouds, 2)


def test_empty_batches_and_no_queries() -> None:
    for batch, number in ((0, 4), (2, 0)):
        distances, index = knn(torch.zeros(batch, number, 3), torch.zeros(batch, 5, 3), 2)
        assert distances.shape == index.shape == (batch, number, 2)
        assert index.dtype == torch.int64


# gather_points


@laws
@given(sizes, st.integers(1, 4), st.integers(0, 2**31))
def test_gather_is_numpys_indexing(size: tuple[int, int, int], channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    batch, rows, count = size
    points = torch.randn(batch, count, channels)
    for shape in ((batch, rows), (batch, rows, 3), (batch,)):
        index = torch.randint(count, shape)
        expected = np.stack([cloud[i] for cloud, i in zip(points.numpy(), index.numpy(), strict=True)])
        assert gather_points(points, index).numpy().tolist() == expected.tolist()


def test_gather_has_the_exact_gradient_of_points_taken_several_times() -> None:
    torch.manual_seed(0)
    points = torch.randn(2, 5, 2, dtype=torch.double, requires_grad=True)
    index = torch.tensor([[[0, 0], [4, 1]], [[3, 3], [3, 3]]])
    assert torch.autograd.gradcheck(lambda p: gather_points(p, index).square(), points)


@pytest.mark.parametrize(("points", "index"), [((2, 5, 3), (3, 4)), ((5, 3), (5, 4))], ids=str)
def test_gather_refuses_shapes_that_do_not_fit(points: tuple[int, ...], index: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, points, channels\) and \(batch, \.\.\.\)"):
        gather_points(torch.zeros(points), torch.zeros(index, dtype=torch.int64))
