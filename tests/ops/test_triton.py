"""Every kernel against the reference, bit for bit: in Triton's interpreter anywhere, on a GPU where there is one."""

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pc_ewa import ops
from pc_ewa.ops import dispatch, reference, triton_backend

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def in_interpreter() -> Iterator[Call]:
    """Call a function in a process of its own: the switch of the interpreter must be set before Triton is imported."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.setenv("PC_EWA_OPS", "triton")
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("PYTHONWARNINGS", "ignore")  # numpy's, where numbers overflow as they should
            process.submit(os.getpid).result()  # starts it
        yield lambda function, *arguments: process.submit(function, *arguments).result()


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> Call:
    """Call an op of the backend by name; tensors go there and back."""
    if request.param == "interpreter":
        in_interpreter = request.getfixturevalue("in_interpreter")
        return lambda op, *arguments: in_interpreter(getattr(triton_backend, op), *arguments)

    def call(op: str, *arguments: object) -> Any:
        there = (argument.cuda() if isinstance(argument, Tensor) else argument for argument in arguments)
        results = getattr(triton_backend, op)(*there)
        return results.cpu() if isinstance(results, Tensor) else tuple(result.cpu() for result in results)

    return call


def cloud(kind: str, batch: int, count: int, seed: int = 0) -> Tensor:
    points = torch.randn(batch, count, 3, generator=torch.Generator().manual_seed(seed))
    if kind == "grid":
        return (points * 2).round()
    if kind == "duplicates":
        return points[:, torch.arange(count) % 4]
    if kind == "equal":
        return points[:, :1].expand(-1, count, -1).contiguous()
    return points * {"random": 1, "huge": 1e30, "tiny": 1e-20, "near the origin": 0.02}[kind]


KINDS = ("random", "grid", "duplicates", "equal", "huge", "tiny")


def check(actual: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> None:
    """Assert that results are the same to the last bit."""
    if isinstance(actual, Tensor):
        actual, expected = (actual,), (expected,)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other), f"{one}\n{other}"


def padded(points: Tensor, lengths: Tensor) -> Tensor:
    """Fill what follows the lengths with NaN, which nobody may look at."""
    return points.masked_fill((torch.arange(points.shape[1]) >= lengths[:, None])[..., None], torch.nan)


@pytest.mark.usefixtures("needs_triton")
class TestFarthestPointSample:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_point_of_any_cloud(self, backend: Call, kind: str) -> None:
        points = cloud(kind, 2, 13)
        arguments = (13, None, None, False)
        check(backend("farthest_point_sample", points, *arguments), reference.farthest_point_sample(points, *arguments))

    @pytest.mark.parametrize("skip", [False, True])
    def test_start_and_lengths(self, backend: Call, skip: bool) -> None:
        points, start, lengths = cloud("near the origin", 3, 40), torch.tensor([39, 0, 9]), torch.tensor([40, 10, 33])
        actual = backend("farthest_point_sample", padded(points, lengths), 10, start, lengths, skip)
        check(actual, reference.farthest_point_sample(points, 10, start, lengths, skip))

    def test_when_all_points_are_near_the_origin_the_choice_is_the_first(self, backend: Call) -> None:
        points = cloud("tiny", 1, 40)
        chosen = backend("farthest_point_sample", points, 4, torch.tensor([7]), None, True)
        assert chosen.tolist() == [[7, 0, 0, 0]]

    @pytest.mark.parametrize(("x", "y", "near"), [(0.031, 0.006245, True), (0.0205, 0.024078, False)])
    def test_the_edge_of_what_is_near_the_origin(self, backend: Call, x: float, y: float, near: bool) -> None:
        """In float32, x² + y² is 1e-3 here, and there the next number above."""
        points = torch.tensor([[[0, 0, 0], [x, y, 0]]])
        assert backend("farthest_point_sample", points, 2, None, None, True).tolist() == [[0, 0 if near else 1]]
        assert reference.farthest_point_sample(points, 2, None, None, True).tolist() == [[0, 0 if near else 1]]

    def test_a_single_point(self, backend: Call) -> None:
        assert backend("farthest_point_sample", cloud("random", 2, 1), 1, None, None, False).tolist() == [[0], [0]]

    @pytest.mark.parametrize("kind", ["random", "grid"])
    @pytest.mark.parametrize("skip", [False, True])
    def test_clouds_too_large_for_registers(self, backend: Call, kind: str, skip: bool) -> None:
        points, start, lengths = cloud(kind, 2, 8500), torch.tensor([8499, 1]), torch.tensor([8500, 7001])
        actual = backend("farthest_point_sample", padded(points, lengths), 8, start, lengths, skip)
        check(actual, reference.farthest_point_sample(points, 8, start, lengths, skip))


@pytest.mark.usefixtures("needs_triton")
class TestKnn:
    @pytest.mark.parametrize("kind", KINDS)
    def test_all_neighbours_of_points_of_the_cloud(self, backend: Call, kind: str) -> None:
        points = cloud(kind, 2, 19)
        queries = points[:, 7:9].contiguous()
        check(backend("knn", queries, points, 19, None), reference.knn(queries, points, 19, None))

    @pytest.mark.parametrize("k", [1, 2, 3, 8])
    def test_lengths(self, backend: Call, k: int) -> None:
        queries, points, lengths = cloud("random", 2, 1), cloud("grid", 2, 37, seed=1), torch.tensor([8, 33])
        actual = backend("knn", queries, padded(points, lengths), k, lengths)
        check(actual, reference.knn(queries, points, k, lengths))

    @pytest.mark.parametrize(("kind", "k"), [("random", 5), ("grid", 64), ("huge", 3)])
    def test_several_tiles(self, backend: Call, kind: str, k: int) -> None:
        queries, points = cloud(kind, 1, 1), cloud(kind, 1, 1100, seed=1)
        check(backend("knn", queries, points, k, None), reference.knn(queries, points, k, None))

    def test_padding_comes_after_points_at_an_infinite_distance(self, backend: Call) -> None:
        queries, points, lengths = torch.zeros(2, 1, 3), torch.full((2, 6, 3), 1e30), torch.tensor([4, 5]).long()
        distances, indices = backend("knn", queries, padded(points, lengths), 4, lengths)
        assert indices.tolist() == [[[0, 1, 2, 3]]] * 2
        assert distances.isposinf().all()

    def test_a_single_point(self, backend: Call) -> None:
        queries, points = cloud("random", 2, 1), cloud("random", 2, 1, seed=1)
        check(backend("knn", queries, points, 1, None), reference.knn(queries, points, 1, None))


@pytest.mark.usefixtures("needs_triton")
class TestBallQuery:
    @pytest.mark.parametrize(("kind", "k"), [*((kind, 4) for kind in KINDS), ("grid", 1), ("grid", 50)])
    def test_any_cloud(self, backend: Call, kind: str, k: int) -> None:
        """On the grid some points are exactly as far away as the radius, and so outside."""
        points = cloud(kind, 2, 19)
        queries = points[:, 5:7].contiguous()
        check(backend("ball_query", queries, points, 4.0, k, None), reference.ball_query(queries, points, 4.0, k, None))

    def test_none_inside_and_lengths(self, backend: Call) -> None:
        queries, points, lengths = cloud("random", 2, 3), cloud("random", 2, 19, seed=1), torch.tensor([1, 12])
        queries[:, 0] = 100
        actual = backend("ball_query", queries, padded(points, lengths), 2.0, 3, lengths)
        check(actual, reference.ball_query(queries, points, 2.0, 3, lengths))
        assert not actual[:, 0].any()

    @pytest.mark.parametrize("k", [3, 40, 300])
    def test_several_tiles(self, backend: Call, k: int) -> None:
        queries, points = cloud("random", 1, 2), cloud("random", 1, 500, seed=1)
        check(backend("ball_query", queries, points, 0.5, k, None), reference.ball_query(queries, points, 0.5, k, None))


@pytest.mark.usefixtures("needs_triton")
class TestNearest:
    @pytest.mark.parametrize(
        ("kind", "x_count", "y_count"),
        [*((kind, 7, 40) for kind in KINDS), ("random", 1, 1), ("grid", 35, 16), ("random", 35, 16)],
    )
    def test_any_clouds(self, backend: Call, kind: str, x_count: int, y_count: int) -> None:
        x, y = cloud(kind, 2, x_count), cloud(kind, 2, y_count, seed=1)
        check(backend("nearest", x, y, None, None), reference.nearest(x, y, None, None))

    def test_lengths(self, backend: Call) -> None:
        x, y = cloud("grid", 2, 20), cloud("grid", 2, 70, seed=1)
        x_lengths, y_lengths = torch.tensor(17).expand(2), torch.tensor([1, 66])
        actual = backend("nearest", padded(x, x_lengths), padded(y, y_lengths), x_lengths, y_lengths)
        check(actual, reference.nearest(x, y, x_lengths, y_lengths))

    @pytest.mark.parametrize("kind", ["random", "duplicates", "equal"])
    def test_gradient(self, backend: Call, kind: str) -> None:
        """Several points of x have the same nearest in y, and it must get the pull of each of them."""
        x, y = cloud(kind, 2, 300), cloud(kind, 2, 9, seed=1)
        _, x_index, _, y_index = reference.nearest(x, y, None, None)
        grad_x, grad_y = cloud("random", 2, 300, seed=2)[..., 0], cloud("random", 2, 9, seed=3)[..., 0]
        arguments = (grad_x.contiguous(), grad_y.contiguous(), x, y, x_index, y_index)
        wide = (tensor.double() if tensor.is_floating_point() else tensor for tensor in arguments)
        for actual, expected in zip(
            backend("nearest_backward", *arguments), reference.nearest_backward(*wide), strict=True
        ):
            torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)

    def test_padding_has_no_gradient_and_gives_none(self, backend: Call) -> None:
        x, y, lengths = cloud("random", 1, 6), cloud("random", 1, 5, seed=1), torch.tensor([4])
        _, x_index, _, y_index = reference.nearest(x, y, lengths, None)
        grad_x, grad_y = torch.tensor([[1.0, 2, 3, 4, 0, 0]]), torch.ones(1, 5)
        actual = backend("nearest_backward", grad_x, grad_y, padded(x, lengths), y, x_index, y_index)
        for one, other in zip(actual, reference.nearest_backward(grad_x, grad_y, x, y, x_index, y_index), strict=True):
            torch.testing.assert_close(one, other)
        assert not actual[0][0, 4:].any()


def test_what_the_backend_leaves_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    points, index = torch.zeros(1, 600, 3), torch.zeros(1, 600, dtype=torch.int64)
    wide, grad = points.double(), torch.zeros(1, 600)
    assert triton_backend.farthest_point_sample(wide, 2, None, None, False) is NotImplemented
    assert triton_backend.knn(wide, wide, 2, None) is NotImplemented
    assert triton_backend.knn(points, points, 513, None) is NotImplemented
    assert triton_backend.ball_query(wide, wide, 1.0, 2, None) is NotImplemented
    assert triton_backend.nearest(wide, wide, None, None) is NotImplemented
    assert triton_backend.nearest_backward(grad, grad, wide, wide, index, index) is NotImplemented
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert triton_backend.nearest_backward(grad, grad, points, points, index, index) is NotImplemented


@pytest.mark.usefixtures("needs_triton")
def test_the_public_ops_ask_it_and_then_the_reference(in_interpreter: Call) -> None:
    assert in_interpreter(dispatch.backend, "cpu").name == "triton"
    queries, points = cloud("random", 1, 1), cloud("random", 1, 9, seed=1)
    check(in_interpreter(ops.knn, queries, points, 2), reference.knn(queries, points, 2, None))
    wide = (queries.double(), points.double(), 2)
    check(in_interpreter(ops.knn, *wide), reference.knn(*wide, None))


def test_why_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.2.0"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert str(triton_backend.unavailable("cuda")).startswith("Triton 3.2.0 is too old: ")
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(constexpr_function=None))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert triton_backend.unavailable("cuda") is None
    assert triton_backend.unavailable("cpu") == "Triton runs on CUDA devices"
    for value, reason in (("0", "Triton runs on CUDA devices"), ("1", None)):
        monkeypatch.setenv("TRITON_INTERPRET", value)
        assert triton_backend.unavailable("cpu") == reason
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton_backend.unavailable("cuda") == triton_backend.unavailable("cpu") == "Triton is not installed"


# Compiling, which needs no GPU


@pytest.mark.gpu
class TestLargeClouds:
    @pytest.mark.parametrize("kind", ["random", "grid"])
    @pytest.mark.parametrize("count", [1000, 2048, 3000, 8192, 8193, 20_000])
    def test_farthest_point_sample(self, kind: str, count: int) -> None:
        points = cloud(kind, 3, count)
        chosen = triton_backend.farthest_point_sample(points.cuda(), 500, None, None, False)
        check(chosen.cpu(), reference.farthest_point_sample(points, 500, None, None, False))

    @pytest.mark.parametrize("kind", ["random", "grid"])
    @pytest.mark.parametrize("k", [1, 3, 16, 32, 100, 512])
    @pytest.mark.parametrize("count", [512, 1024, 8192, 10_001])
    def test_knn(self, kind: str, k: int, count: int) -> None:
        queries, points = cloud(kind, 2, 64), cloud(kind, 2, count, seed=1)
        actual = triton_backend.knn(queries.cuda(), points.cuda(), k, None)
        check(tuple(result.cpu() for result in actual), reference.knn(queries, points, k, None))

    @pytest.mark.parametrize("k", [1, 32, 500])
    def test_ball_query(self, k: int) -> None:
        queries, points = cloud("random", 2, 512), cloud("random", 2, 8192, seed=1)
        actual = triton_backend.ball_query(queries.cuda(), points.cuda(), 0.04, k, None)
        check(actual.cpu(), reference.ball_query(queries, points, 0.04, k, None))

    @pytest.mark.parametrize("kind", ["random", "grid"])
    def test_chamfer_distance_and_its_gradient(self, kind: str) -> None:
        x, y = cloud(kind, 4, 2048), cloud(kind, 4, 1500, seed=1)
        arguments = [tensor.to(device).requires_grad_() for device in ("cpu", "cuda") for tensor in (x, y)]
        assert ops.backend("cuda").name == "triton"
        for pair in (arguments[:2], arguments[2:]):
            ops.chamfer_distance(*pair, x_lengths=[2048, 1, 77, 1000]).backward()
        for expected, actual in zip(arguments[:2], arguments[2:], strict=True):
            torch.testing.assert_close(actual.grad.cpu(), expected.grad, rtol=1e-4, atol=1e-6)
