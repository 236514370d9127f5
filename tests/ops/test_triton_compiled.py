"""The Triton kernels, compiled for GPUs that need not be there, to see what becomes of them."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pc_ewa.ops import triton_backend


@pytest.fixture
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Compile what the backend would launch on a device of a compute capability, and list it."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the optional package triton interprets here (TRITON_INTERPRET=1), and compiles nothing")
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    kernels: list[Any] = []
    compile_or_run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, **settings: Any) -> None:
        kernels.append(compile_or_run(self, *arguments, **settings | {"warmup": True}))

    device = SimpleNamespace(
        get_current_device=lambda: f"no device, sm_{request.param}",
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", request.param, 32),
    )
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", device)
    monkeypatch.setattr(JITFunction, "run", compile_only)
    return kernels


@pytest.mark.usefixtures("needs_triton")
@pytest.mark.parametrize("compiled", [90], indirect=True)
@pytest.mark.slow
def test_compiled_kernels_neither_contract_nor_spill(compiled: list[Any]) -> None:
    """A fused multiply-add would round otherwise than the reference; a spill would be slow."""
    count = torch.tensor([1000, 900])
    for size in (1024, 8192, 10000):
        triton_backend.farthest_point_sample(torch.empty(2, size, 3), 64, count - 1, count, True)
    queries, points = torch.empty(2, 64, 3), torch.empty(2, 2048, 3)
    triton_backend.knn(queries, points, 32, None)
    triton_backend.ball_query(queries, points, 0.1, 32, count)
    _, x_index, _, y_index = triton_backend.nearest(points, points, count, count)
    triton_backend.nearest_backward(points[..., 0], points[..., 0], points, points, x_index, y_index)
    names = {kernel.metadata.name for kernel in compiled}
    assert names == {
        "farthest_point_sample",
        "farthest_point_sample_streaming",
        "knn",
        "ball_query",
        "nearest",
        "nearest_pull",
    }
    for kernel in compiled:
        assert "mul.rn.f32" in kernel.asm["ptx"], kernel.metadata.name
        assert "fma." not in kernel.asm["ptx"], kernel.metadata.name
        # The machine code takes seconds to list: once will do.
        for instruction in ("FFMA", "STL", "LDL") if kernel.metadata.target.arch == 90 else ():
            assert instruction not in kernel.asm["sass"], f"{instruction} in {kernel.metadata.name}"


@pytest.mark.usefixtures("needs_triton")
@pytest.mark.parametrize("compiled", [90], indirect=True)
def test_arguments_of_one_compile_too(compiled: list[Any]) -> None:
    """Triton takes a 1 for a constant, and compiles another kernel for it."""
    point = torch.empty(1, 1, 3)
    triton_backend.farthest_point_sample(point, 1, None, None, False)
    triton_backend.knn(point, point, 1, None)
    triton_backend.ball_query(point, point, 1.0, 1, None)
    _, x_index, _, y_index = triton_backend.nearest(point, point, None, None)
    triton_backend.nearest_backward(point[..., 0], point[..., 0], point, point, x_index, y_index)
    assert len(compiled) == 8


# Sizes that only a GPU does in time
