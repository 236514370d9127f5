"""The backends that this machine has; law tests run once on each."""

import importlib.util
from collections.abc import Iterator

import pytest

from pc_ewa.ops import cpu

BACKENDS = ["reference"] if cpu.unavailable("cpu") else ["reference", "cpu"]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PC_EWA_OPS", request.param)
        yield request.param


@pytest.fixture(scope="session")
def needs_compiler() -> None:
    """Skip where the optional C++ compiler is missing."""
    if problem := cpu.unavailable("cpu"):
        pytest.skip(f"the optional package g++: {problem}")


@pytest.fixture(scope="session")
def needs_triton() -> None:
    """Skip where the optional package triton is missing: CPU builds of torch come without it."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("the optional package triton is not installed")
