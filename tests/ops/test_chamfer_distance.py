import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pc_ewa.ops import chamfer_distance

laws = settings(deadline=None, max_examples=60)
norms = st.sampled_from(["l1", "l2"])
sizes = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))
dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16])


def naive(x: np.ndarray, y: np.ndarray, norm: str) -> float:
    """Point-MAE's ChamferDistanceL2 and ChamferDistanceL1, point by point."""
    x_to_y = [min(((a - b) ** 2).sum() for b in ys) for xs, ys in zip(x, y, strict=True) for a in xs]
    y_to_x = [min(((a - b) ** 2).sum() for a in xs) for xs, ys in zip(x, y, strict=True) for b in ys]
    if norm == "l2":
        return np.mean(x_to_y) + np.mean(y_to_x)
    return (np.mean(np.sqrt(x_to_y)) + np.mean(np.sqrt(y_to_x))) / 2


@laws
@given(sizes, norms, dtypes, st.integers(0, 2**31))
def test_value_is_the_naive_one(size: tuple[int, int, int], norm: str, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    batch, count, others = size
    x, y = torch.randn(batch, count, 3).to(dtype), torch.randn(batch, others, 3).to(dtype)
    value = chamfer_distance(x, y, norm)
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    relative = 1e-12 if dtype == torch.float64 else 1e-5
    assert value.item() == pytest.approx(naive(x.double().numpy(), y.double().numpy(), norm), rel=relative)


def test_l2_is_the_default() -> None:
    x, y = torch.zeros(1, 1, 3), torch.tensor([[[2.0, 0, 0], [0, 4, 0]]])
    assert chamfer_distance(x, y).item() == 4 + (4 + 16) / 2
    assert chamfer_distance(x, y, "l1").item() == (2 + (2 + 4) / 2) / 2


@laws
@given(sizes, norms, st.integers(0, 2**31))
def test_it_is_symmetric_and_blind_to_the_order_of_points(size: tuple[int, int, int], norm: str, seed: int) -> None:
    torch.manual_seed(seed)
    batch, count, others = size
    x, y = torch.randn(batch, count, 3).double(), torch.randn(batch, others, 3).double()
    value = chamfer_distance(x, y, norm).item()
    assert chamfer_distance(y, x, norm).item() == pytest.approx(value, rel=1e-14)
    shuffled = chamfer_distance(x[:, torch.randperm(count)], y[:, torch.randperm(others)], norm)
    assert shuffled.item() == pytest.approx(value, rel=1e-14)
    assert chamfer_distance(x, x[:, torch.randperm(count)], norm).item() == 0


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_gradient_is_exact(norm: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, dtype=torch.double, requires_grad=True)
    y = torch.randn(2, 7, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: chamfer_distance(x, y, norm), (x, y))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_coincident_points_have_a_finite_gradient(norm: str) -> None:
    x = torch.tensor([[[1.0, 2, 3], [4, 5, 6]]], requires_grad=True)
    y = torch.tensor([[[1.0, 2, 3], [4, 5, 8]]], requires_grad=True)
    chamfer_distance(x, y, norm).backward()
    for gradient in (x.grad, y.grad):
        assert not gradient[0, 0].any(), "points that coincide stay where they are"
        assert gradient[0, 1].isfinite().all()
        assert gradient[0, 1, 2] != 0


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_far_from_the_origin_the_distance_is_the_same(norm: str) -> None:
    torch.manual_seed(0)
    x, y = (torch.randint(-512, 512, (2, count, 3)) / 1024 for count in (30, 40))  # exact at 1000 too
    assert torch.equal(chamfer_distance(x + 1000, y + 1000, norm), chamfer_distance(x, y, norm))


@pytest.mark.parametrize(
    ("x", "y", "norm", "message"),
    [
        ((2, 5, 3), (2, 5, 3), "l3", r"norm='l3'; choose 'l1' or 'l2'"),
        ((2, 5, 3), (3, 5, 3), "l2", r"x has a batch of 2, y of 3; they must be equal"),
        ((2, 5, 3), (2, 0, 3), "l2", r"x \(2, 5, 3\) and y \(2, 0, 3\): the distance of an empty cloud is undefined"),
        ((0, 5, 3), (0, 5, 3), "l2", r"the distance of an empty (cloud|batch) is undefined"),
        ((5, 3), (2, 5, 3), "l2", r"x has shape \(5, 3\); expected \(batch, points, 3\)"),
        ((2, 5, 3), (2, 5, 4), "l2", r"y has shape \(2, 5, 4\); expected \(batch, points, 3\)"),
    ],
    ids=str,
)
def test_impossible_requests_are_refused(x: tuple, y: tuple, norm: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chamfer_distance(torch.zeros(x), torch.zeros(y), norm)  # type: ignore[arg-type]


def test_integer_clouds_are_refused() -> None:
    x: Tensor = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match=r"y is torch.int64; expected floating-point coordinates"):
        chamfer_distance(x, x.long())
