"""Which backend is chosen, and how the ops look to torch: whole graphs under torch.compile, gradients, threads."""

import logging
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
import torch
from torch import Tensor

from pc_ewa import ops
from pc_ewa.ops import cpu, dispatch, reference

Points = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def choose_anew() -> Iterator[None]:
    dispatch._choose.cache_clear()
    yield
    dispatch._choose.cache_clear()


@pytest.fixture
def clouds() -> Points:
    torch.manual_seed(0)
    return torch.randn(2, 40, 3), torch.randn(2, 30, 3)


def test_auto_takes_the_compiled_kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PC_EWA_OPS", raising=False)
    monkeypatch.setattr(cpu, "unavailable", lambda device: None)
    assert ops.backend("cpu") == ("cpu", "the fastest here")
    assert ops.backend("meta") == ("reference", "the fastest here")


def test_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PC_EWA_OPS", "reference")
    name, reason = ops.backend()
    assert name == "reference"
    assert "PC_EWA_OPS" in reason


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("fast", "PC_EWA_OPS=fast: no such backend; choose from auto, pointnet2, triton, cpu, reference"),
        (
            "pointnet2",
            "PC_EWA_OPS=pointnet2 cannot run here: pointnet2_ops runs on CUDA devices; choose auto or reference",
        ),
    ],
)
def test_a_backend_that_cannot_run_is_refused(
    asked: str, message: str, monkeypatch: pytest.MonkeyPatch, clouds: Points
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PC_EWA_OPS", asked)
    with pytest.raises(ValueError, match=message):
        ops.farthest_point_sample(clouds[0], 3)
    with pytest.raises(ValueError, match=message):
        ops.backend()


def test_a_tool_refuses_it_before_it_starts(
    tool: Callable[..., object], toy_config: object, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PC_EWA_OPS", "fast")
    result = tool("finetune", toy_config, f"output={tmp_path}/run")
    assert result.code == 2
    assert (
        result.err == "error: PC_EWA_OPS=fast: no such backend; choose from auto, pointnet2, triton, cpu, reference\n"
    )


def test_the_log_says_once_which_and_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, clouds: Points
) -> None:
    monkeypatch.setenv("PC_EWA_OPS", "auto")
    monkeypatch.setattr(cpu, "unavailable", lambda device: "no compiler")
    with caplog.at_level(logging.INFO, "pc_ewa"):
        for _ in range(3):
            ops.farthest_point_sample(clouds[0], 3)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "point-cloud ops on cpu: reference (cpu: no compiler)"


def test_what_a_backend_declines_the_next_one_does(monkeypatch: pytest.MonkeyPatch, clouds: Points) -> None:
    picky = ModuleType("picky")
    picky.unavailable = lambda device: None  # type: ignore[attr-defined]
    picky.knn = (
        lambda queries, points, k, lengths: (  # type: ignore[attr-defined]
            NotImplemented if k > 1 else (queries[..., 0:1].clone(), torch.full((2, 40, 1), 7))
        )
    )
    monkeypatch.setitem(dispatch.BACKENDS, "picky", "picky")
    monkeypatch.setitem(__import__("sys").modules, "picky", picky)
    monkeypatch.setenv("PC_EWA_OPS", "picky")
    assert ops.knn(*clouds, 1)[1].eq(7).all()
    assert torch.equal(ops.knn(*clouds, 2)[1], reference.knn(*clouds, 2, None)[1])
    assert torch.equal(ops.farthest_point_sample(clouds[0], 3), ops.farthest_point_sample(clouds[0], 3))


# As torch sees them


def everything(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    groups, centers = ops.group(x, 6, 5)
    distances, index = ops.three_nn(x, y)
    mixed = ops.three_interpolate(y, index, 1 / (distances + 1e-8))
    return (
        ops.farthest_point_sample(x, 5, start=2),
        ops.ball_query(x, y, 0.5, 4),
        groups,
        centers,
        mixed,
        ops.chamfer_distance(x, y, "l1"),
        *ops.nearest_distances(x, y),
    )


def test_compiled_by_torch_the_graph_stays_whole(clouds: Points) -> None:
    """With fullgraph=True a graph break is an error; forward and gradient are those of eager mode."""
    results = []
    for function in (everything, torch.compile(everything, fullgraph=True, backend="aot_eager", dynamic=True)):
        x, y = (cloud.clone().requires_grad_() for cloud in clouds)
        outputs = function(x, y)
        sum(output.sum() for output in outputs if output.is_floating_point()).backward()
        results.append((*outputs, x.grad, y.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize(
    ("backend", "checks"),
    [("reference", "test_schema"), ("auto", ("test_schema", "test_autograd_registration", "test_faketensor"))],
)
def test_torch_accepts_the_registration(
    backend: str, checks: str | tuple[str, ...], clouds: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schema, fake tensors and autograd, as torch's own checker sees them; the test above has its graphs."""
    monkeypatch.setenv("PC_EWA_OPS", backend)
    x, y = (cloud.clone().requires_grad_() for cloud in clouds)
    lengths = torch.tensor([30, 7])
    library = torch.ops.pc_ewa
    for op, arguments in (
        (library.farthest_point_sample, (x.detach(), 5, torch.tensor([1, 2]), torch.tensor([40, 9]), True)),
        (library.knn, (x, y, 4, lengths)),
        (library.ball_query, (x.detach(), y.detach(), 0.5, 4, lengths)),
        (library.nearest, (x, y, None, lengths)),
        (library.nearest_backward, (x.detach()[..., 0], y.detach()[..., 0], x.detach(), y.detach(),
                                    torch.zeros(2, 40).long(), torch.zeros(2, 30).long())),
    ):  # fmt: skip
        torch.library.opcheck(op.default, arguments, test_utils=checks)


def test_threads_and_forked_workers_find_the_same(clouds: Points) -> None:
    """As in data loaders: torch may have started its own threads before the fork."""
    x = clouds[0].repeat(8, 20, 1) + torch.arange(16)[:, None, None]
    torch.set_num_threads(2)
    try:
        expected = ops.farthest_point_sample(x, 50)
        with ThreadPoolExecutor(4) as pool:
            for actual in pool.map(lambda _: ops.farthest_point_sample(x, 50), range(8)):
                assert torch.equal(actual, expected)
        with multiprocessing.get_context("fork").Pool(2, torch.set_num_threads, (1,)) as workers:
            for chosen in workers.map(_sample, [x.numpy()] * 2):
                assert chosen == expected.tolist()
    finally:
        torch.set_num_threads(1)


def _sample(points: object) -> object:
    return ops.farthest_point_sample(torch.as_tensor(points), 50).tolist()
