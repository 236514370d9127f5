"""The compiled kernels against the reference, bit for bit: every path in them, on clouds that are hard for it."""

import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pc_ewa import ops
from pc_ewa.ops import cpu, reference

laws = settings(deadline=None, max_examples=80)
pytestmark = pytest.mark.usefixtures("needs_compiler")

Maker = Callable[[int, int, torch.Generator], Tensor]


def rand(*shape: int, random: torch.Generator) -> Tensor:
    return torch.randn(*shape, 3, generator=random)


# Each makes a cloud (B, N, 3) that some shortcut could get wrong.
CLOUDS: dict[str, Maker] = {
    "random": lambda b, n, r: rand(b, n, random=r),
    "surface": lambda b, n, r: torch.nn.functional.normalize(rand(b, n, random=r), dim=-1),
    "grid of ties": lambda b, n, r: torch.randint(-2, 3, (b, n, 3), generator=r).float(),
    "duplicates": lambda b, n, r: rand(b, 3, random=r)[:, torch.randint(3, (n,), generator=r)],
    "one place": lambda b, n, r: rand(b, 1, random=r).expand(b, n, 3).contiguous(),
    "collinear": lambda b, n, r: rand(b, n, random=r)[..., :1] * torch.tensor([1.0, -2, 0.5]),
    "flat": lambda b, n, r: rand(b, n, random=r) * torch.tensor([1.0, 1, 0]),
    "far away": lambda b, n, r: rand(b, n, random=r) + 1000,
    "one outlier": lambda b, n, r: torch.cat([rand(b, 1, random=r) * 1e6, rand(b, n - 1, random=r)], 1),
    "tiny": lambda b, n, r: rand(b, n, random=r) * 1e-21,
    "squares overflow": lambda b, n, r: rand(b, n, random=r) * 1e25,
    "differences overflow": lambda b, n, r: rand(b, n, random=r).sign() * 3e38,
    "near the origin, but for the first": lambda b, n, r: torch.cat(
        [torch.full((b, 1, 3), 1e30), rand(b, n - 1, random=r) * 1e-3], 1
    ),
    "near the origin": lambda b, n, r: rand(b, n, random=r) * 0.03,
}
clouds = st.sampled_from(sorted(CLOUDS))
dtypes = st.sampled_from([torch.float32, torch.float64])
# Around the vectors of 8 and 16, the blocks of 64 and the sizes from which clouds are sorted.
counts = st.sampled_from([1, 2, 7, 16, 17, 63, 64, 65, 130, 255, 256, 300, 1000, 2047, 2048, 2100, 4100])
seeds = st.integers(0, 2**31)
# All pairs of two clouds: the plain formula takes half a second for two large ones.
pairs_of_counts = st.tuples(counts, counts).filter(lambda pair: pair[0] * pair[1] <= 2048 * 300)


def some_lengths(draw: st.DataObject, batch: int, count: int, least: int = 1) -> Tensor | None:
    lengths = draw.draw(st.none() | st.lists(st.integers(least, count), min_size=batch, max_size=batch))
    return None if lengths is None else torch.tensor(lengths)


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@laws
@given(clouds, dtypes, counts, st.data(), seeds)
def test_farthest_point_sample(kind: str, dtype: torch.dtype, count: int, data: st.DataObject, seed: int) -> None:
    points = CLOUDS[kind](2, count, torch.Generator().manual_seed(seed)).to(dtype)
    n = data.draw(st.sampled_from([1, 2, 31, 32, 50, 200]).filter(lambda n: n <= count))
    lengths = some_lengths(data, 2, count, n)
    start = data.draw(st.sampled_from([None, torch.tensor([0, n - 1])]))
    arguments = (points, n, start, lengths, data.draw(st.booleans()))
    assert_same((cpu.farthest_point_sample(*arguments),), (reference.farthest_point_sample(*arguments),))


@pytest.mark.parametrize("kind", sorted(CLOUDS))
def test_farthest_point_sample_of_each_large_cloud(kind: str) -> None:
    points = CLOUDS[kind](1, 2100, torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        for skip in (False, True):
            arguments = (points.to(dtype), 60, None, None, skip)
            assert_same((cpu.farthest_point_sample(*arguments),), (reference.farthest_point_sample(*arguments),))


@laws
@given(clouds, clouds, dtypes, counts, st.data(), seeds)
def test_knn(kind: str, other: str, dtype: torch.dtype, count: int, data: st.DataObject, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    points = CLOUDS[kind](2, count, random).to(dtype)
    queries = CLOUDS[other](2, data.draw(st.sampled_from([1, 5, 140])), random).to(dtype)
    k = data.draw(st.sampled_from([1, 2, 16, 32, 33, 100, 300, count]).filter(lambda k: k <= count))
    arguments = (queries, points, k, some_lengths(data, 2, count, k))
    assert_same(cpu.knn(*arguments), reference.knn(*arguments))


@laws
@given(clouds, clouds, dtypes, counts, st.data(), seeds)
def test_ball_query(kind: str, other: str, dtype: torch.dtype, count: int, data: st.DataObject, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    points = CLOUDS[kind](2, count, random).to(dtype)
    queries = CLOUDS[other](2, 5, random).to(dtype)
    squared = torch.tensor(data.draw(st.sampled_from([1e-9, 0.01, 1, 4, 1e30])), dtype=dtype).item()
    arguments = (queries, points, squared, data.draw(st.integers(1, 70)), some_lengths(data, 2, count))
    assert_same((cpu.ball_query(*arguments),), (reference.ball_query(*arguments),))


@laws
@given(clouds, clouds, dtypes, pairs_of_counts, st.data(), seeds)
def test_nearest_and_its_gradient(
    kind: str, other: str, dtype: torch.dtype, pair: tuple[int, int], data: st.DataObject, seed: int
) -> None:
    count, others = pair
    random = torch.Generator().manual_seed(seed)
    x, y = (CLOUDS[k](2, n, random).to(dtype) for k, n in ((kind, count), (other, others)))
    arguments = (x, y, some_lengths(data, 2, count), some_lengths(data, 2, others))
    expected = reference.nearest(*arguments)
    assert_same(cpu.nearest(*arguments), expected)
    if "overflow" in kind + other:
        return  # inf - inf
    grads = (torch.randn(x.shape[:2], generator=random).to(dtype), torch.randn(y.shape[:2], generator=random).to(dtype))
    backward = (*grads, x, y, expected[1], expected[3])
    # Many may pull at one point: their sum is as exact as the sum of the sizes allows.
    sizes = reference.nearest_backward(*(g.abs() for g in grads), *(-x.abs(), y.abs()), expected[1], expected[3])
    results = zip(cpu.nearest_backward(*backward), reference.nearest_backward(*backward), sizes, strict=True)
    for actual, wanted, size in results:
        rounding = torch.finfo(dtype).eps * max(count, others) * size.abs()
        assert bool(((actual - wanted).abs() <= rounding).all())


def test_two_threads_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_WORTH_THREADS", 1)
    if sys.platform == "linux":
        assert cpu._parallel().value, "the OpenMP runtime of torch"
    random = torch.Generator().manual_seed(0)
    x, y = rand(3, 700, random=random), rand(3, 400, random=random)
    many = rand(40, 32, random=random)
    grads = torch.ones(40, 32)

    def everything() -> tuple[Tensor, ...]:
        pairs = cpu.nearest(many, many.flip(0), None, None)
        return (
            cpu.farthest_point_sample(x, 100, None, None, False),
            *cpu.knn(x, y, 20, None),
            cpu.ball_query(x, y, 0.1, 20, None),
            *cpu.nearest(x, y, None, None),
            *pairs,
            *cpu.nearest_backward(grads, grads, many, many.flip(0), pairs[1], pairs[3]),
        )

    alone = everything()
    torch.set_num_threads(2)
    try:
        assert_same(everything(), alone)
    finally:
        torch.set_num_threads(1)


def test_lengths_and_starts_may_lie_anywhere_in_memory() -> None:
    """A column of a table, or one number expanded: kernels read plain pointers."""
    random = torch.Generator().manual_seed(0)
    points, table = rand(2, 300, random=random), torch.tensor([[200, 0, 7], [90, 1, 8]])
    for lengths, start in ((table[:, 0], table[:, 2]), (torch.tensor(50).expand(2), torch.tensor(7).expand(2))):
        dense = {"lengths": lengths.contiguous()}
        strided = {"lengths": lengths}
        assert torch.equal(
            ops.farthest_point_sample(points, 40, start=start, **strided),
            ops.farthest_point_sample(points, 40, start=start.contiguous(), **dense),
        )
        assert_same(ops.knn(points, points, 9, **strided), ops.knn(points, points, 9, **dense))
        assert torch.equal(
            ops.ball_query(points, points, 1, 9, **strided), ops.ball_query(points, points, 1, 9, **dense)
        )
        both = ({"x_lengths": n, "y_lengths": n} for n in (lengths, lengths.contiguous()))
        assert_same(*(ops.nearest_distances(points, points.flip(0), **one) for one in both))
