"""The backends that this machine has; law tests run once on each."""

from collections.abc import Iterator

import pytest

from pc_ewa.ops import cpu

BACKENDS = ["reference"] if cpu.unavailable("cpu") else ["reference", "cpu"]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PC_EWA_OPS", request.param)
        yield request.param
