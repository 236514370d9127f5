import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pc_ewa.ops import chamfer_distance, knn, nearest_distances

pytestmark = pytest.mark.usefixtures("backend")

laws = settings(deadline=None, max_examples=60)
counts = st.integers(1, 20)
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


# Variable lengths, and what it is made of


@laws
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4), norms, st.integers(0, 2**31)
)
def test_padding_has_no_part_in_value_and_gradient(sizes: list[tuple[int, int]], norm: str, seed: int) -> None:
    """Each cloud counts alike; its padding may hold anything."""
    torch.manual_seed(seed)
    x, y = (torch.full((len(sizes), max(column), 3), torch.nan).double() for column in zip(*sizes, strict=True))
    alone = []
    for b, (count, others) in enumerate(sizes):
        x[b, :count], y[b, :others] = torch.randn(count, 3), torch.randn(others, 3)
        alone.append((x[b : b + 1, :count].clone().requires_grad_(), y[b : b + 1, :others].clone().requires_grad_()))
    x.requires_grad_(), y.requires_grad_()
    x_lengths, y_lengths = zip(*sizes, strict=True)
    value = chamfer_distance(x, y, norm, x_lengths=x_lengths, y_lengths=torch.tensor(y_lengths))
    expected = torch.stack([chamfer_distance(*pair, norm) for pair in alone]).mean()
    torch.testing.assert_close(value, expected)
    value.backward(), expected.backward()
    for b, ((count, others), pair) in enumerate(zip(sizes, alone, strict=True)):
        torch.testing.assert_close(x.grad[b, :count], pair[0].grad[0])
        torch.testing.assert_close(y.grad[b, :others], pair[1].grad[0])
        assert not x.grad[b, count:].any()
        assert not y.grad[b, others:].any()


def test_nearest_distances_by_hand() -> None:
    x, y = torch.tensor([[[0.0, 0, 0], [3, 0, 0]]]), torch.tensor([[[1.0, 0, 0], [0, 5, 0], [9, 9, 9]]])
    to_y, to_x = nearest_distances(x, y)
    assert to_y.tolist() == [[1, 4]]
    assert to_x.tolist() == [[1, 25, 36 + 81 + 81]]
    to_y, to_x = nearest_distances(x, y, x_lengths=[1], y_lengths=[2])
    assert to_y.tolist() == [[1, 0]], "0 for padding"
    assert to_x.tolist() == [[1, 25, 0]]
    assert [d.shape for d in nearest_distances(x[:0], y[:0])] == [(0, 2), (0, 3)]


def test_nearest_distances_have_exact_first_and_second_gradients() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, dtype=torch.double, requires_grad=True)
    y = torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True)

    def distances(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return nearest_distances(x, y, x_lengths=[5, 2], y_lengths=[3, 4])

    assert torch.autograd.gradcheck(distances, (x, y))
    assert torch.autograd.gradgradcheck(distances, (x, y))


def test_far_from_the_origin_the_value_is_the_same() -> None:
    """Off by 100 % and more with torch.cdist, or with |a|² + |b|² - 2ab."""
    torch.manual_seed(0)
    x, y = ((torch.randn(2, 500, 3) + 1000) for _ in range(2))
    exact = chamfer_distance(x.double(), y.double()).item()
    assert chamfer_distance(x, y).item() == pytest.approx(exact, rel=1e-5)
    assert chamfer_distance(x - 1000, y - 1000).item() == pytest.approx(exact, rel=1e-5)


def test_tangents_are_carried_along() -> None:
    """Forward-mode differentiation, which custom operators of torch drop without a word."""
    torch.manual_seed(0)
    x, y, direction = (torch.randn(2, n, 3, dtype=torch.double) for n in (5, 4, 5))

    def value(x: Tensor) -> Tensor:
        return chamfer_distance(x, y, "l1", x_lengths=[5, 2]) + knn(y, x, 2)[0].sum()

    tangent = torch.func.jvp(value, (x,), (direction,))[1]
    slope = (value(x + 1e-6 * direction) - value(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-8)


def test_coinciding_points_have_finite_gradients() -> None:
    x = torch.randn(2, 300, 3, requires_grad=True)
    chamfer_distance(x, x.detach().clone(), "l1").backward()
    assert not x.grad.any()


@pytest.mark.parametrize(("name", "lengths"), [("x", [0, 5]), ("y", [5, 6])])
def test_impossible_lengths_are_refused(name: str, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"a length of [06] for {name}; it must lie between 1 and 5"):
        chamfer_distance(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3), **{f"{name}_lengths": lengths})
