import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pc_ewa.ops import ball_query

pytestmark = pytest.mark.usefixtures("backend")

laws = settings(deadline=None, max_examples=60)


def naive(queries: Tensor, points: Tensor, radius: float, k: int) -> list[list[list[int]]]:
    """As pointnet2_ops: the first k in order of index, filled up with the first of them, or with 0."""
    limit = np.float32(radius) * np.float32(radius) if points.dtype == torch.float32 else np.float64(radius) ** 2
    result = []
    for cloud_queries, cloud in zip(queries.numpy(), points.numpy(), strict=True):
        rows = []
        for query in cloud_queries:
            dx, dy, dz = (query - cloud).T
            inside = np.flatnonzero(dx * dx + dy * dy + dz * dz < limit)[:k].tolist()
            rows.append(inside + [inside[0] if inside else 0] * (k - len(inside)))
        result.append(rows)
    return result


@laws
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 90)),
    st.integers(1, 40),
    st.floats(0.01, 3),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**31),
)
def test_first_k_inside(
    size: tuple[int, int, int], k: int, radius: float, on_grid: bool, dtype: torch.dtype, seed: int
) -> None:
    """On a grid many points lie exactly at the distance of the radius: those are outside."""
    torch.manual_seed(seed)
    batch, number, count = size
    if on_grid:
        points, queries = (torch.randint(0, 4, (batch, n, 3)).to(dtype) for n in (count, number))
        radius = float(round(radius) or 1)
    else:
        points, queries = (torch.randn(batch, n, 3).to(dtype) for n in (count, number))
    found = ball_query(queries, points, radius, k)
    assert found.dtype == torch.int64
    assert found.tolist() == naive(queries, points, radius, k)


def test_by_hand() -> None:
    points = torch.tensor([[[9.0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 2, 0]]])
    queries = torch.tensor([[[0.0, 0, 0], [50, 0, 0]]])
    assert ball_query(queries, points, 2, 3).tolist() == [[[1, 2, 1], [0, 0, 0]]]
    assert ball_query(queries, points, 2.1, 2).tolist() == [[[1, 2], [0, 0]]]
    assert ball_query(queries, points, 2.1, 2, lengths=[1]).tolist() == [[[0, 0], [0, 0]]]


def test_padding_is_never_found() -> None:
    torch.manual_seed(0)
    points, queries = torch.randn(3, 80, 3), torch.randn(3, 7, 3)
    lengths = [80, 1, 33]
    padded = points.clone()
    for cloud, length in zip(padded, lengths, strict=True):
        cloud[length:] = torch.nan
    found = ball_query(queries, padded, 1.5, 9, lengths=torch.tensor(lengths))
    for b, length in enumerate(lengths):
        assert torch.equal(found[b], ball_query(queries[b : b + 1], points[b : b + 1, :length], 1.5, 9)[0])


def test_empty_batches_and_no_queries() -> None:
    assert ball_query(torch.zeros(0, 4, 3), torch.zeros(0, 5, 3), 1, 2).shape == (0, 4, 2)
    assert ball_query(torch.zeros(2, 0, 3), torch.zeros(2, 5, 3), 1, 2).shape == (2, 0, 2)


@pytest.mark.parametrize(
    ("count", "radius", "k", "message"),
    [
        (
            5,
            0.0,
            2,
            "radius=0.0 and k=2 in clouds of 5; radius must be positive and finite, k",
        ),
        (5, -1.0, 2, "radius=-1.0 and k=2"),
        (5, float("inf"), 2, "radius=inf and k=2"),
        (5, float("nan"), 2, "radius=nan and k=2"),
        (5, 1.0, 0, "radius=1.0 and k=0"),
        (0, 1.0, 2, "in clouds of 0"),
    ],
)
def test_impossible_requests_are_refused(count: int, radius: float, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ball_query(torch.zeros(2, 4, 3), torch.zeros(2, count, 3), radius, k)
