"""The adapter to pointnet2_ops, against a stand-in with its signatures; on a GPU against the real one."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from pc_ewa.ops import pointnet2, reference


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes what the CUDA extension takes, in its order, and gives its int32."""

    def check(*clouds: Tensor) -> None:
        for cloud in clouds:
            assert cloud.dtype == torch.float32
            assert cloud.is_contiguous()

    def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
        check(xyz)
        return reference.farthest_point_sample(xyz, npoint, None, None, True).int()

    def ball_query(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
        check(xyz, new_xyz)
        single = torch.tensor(radius).square().item()
        return reference.ball_query(new_xyz, xyz, single, nsample, None).int()

    def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        check(unknown, known)
        squared, index = reference.knn(unknown, known, 3, None)
        return squared.sqrt(), index.int()

    package, utils = ModuleType("pointnet2_ops"), ModuleType("pointnet2_ops.pointnet2_utils")
    for function in (furthest_point_sample, ball_query, three_nn):
        setattr(utils, function.__name__, function)
    package.pointnet2_utils = utils  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pointnet2_ops", package)
    monkeypatch.setitem(sys.modules, "pointnet2_ops.pointnet2_utils", utils)


@pytest.mark.usefixtures("stand_in")
def test_each_op_is_the_reference() -> None:
    compare("cpu")


@pytest.mark.gpu
def test_the_real_one() -> None:
    problem = pointnet2.unavailable("cuda")
    if problem:
        pytest.skip(f"the optional package pointnet2_ops: {problem}")
    compare("cuda")


def compare(device: str) -> None:
    torch.manual_seed(0)
    points, queries = torch.randn(2, 60, 3, device=device), torch.randn(2, 9, 3, device=device)
    expected = reference.farthest_point_sample(points, 20, None, None, True)
    assert torch.equal(pointnet2.farthest_point_sample(points, 20, None, None, True), expected)
    for radius in torch.rand(50).tolist():
        squared = torch.tensor(radius).square().item()
        expected = reference.ball_query(queries, points, squared, 5, None)
        assert torch.equal(pointnet2.ball_query(queries, points, squared, 5, None), expected)
    results = zip(pointnet2.knn(queries, points, 3, None), reference.knn(queries, points, 3, None), strict=True)
    for actual, wanted in results:
        assert torch.equal(actual, wanted)


@pytest.mark.usefixtures("stand_in")
def test_it_declines_what_the_extension_does_not_do() -> None:
    points, lengths = torch.randn(2, 9, 3), torch.tensor([9, 5])
    start = torch.tensor([0, 1])
    assert pointnet2.farthest_point_sample(points, 2, None, None, False) is NotImplemented
    assert pointnet2.farthest_point_sample(points, 2, start, None, True) is NotImplemented
    assert pointnet2.farthest_point_sample(points, 2, None, lengths, True) is NotImplemented
    assert pointnet2.farthest_point_sample(points.double(), 2, None, None, True) is NotImplemented
    assert pointnet2.ball_query(points, points, 1.0, 2, lengths) is NotImplemented
    assert pointnet2.ball_query(points.double(), points.double(), 1.0, 2, None) is NotImplemented
    assert pointnet2.knn(points, points, 2, None) is NotImplemented
    assert pointnet2.knn(points, points, 3, lengths) is NotImplemented


def test_it_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pointnet2.unavailable("cpu") == "pointnet2_ops runs on CUDA devices"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "docs/performance.md" in str(pointnet2.unavailable("cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "pointnet2_ops", None)
    assert str(pointnet2.unavailable("cuda")).startswith("pointnet2_ops does not load: ")
