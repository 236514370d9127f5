"""What a run measures of itself: means of metrics, samples per second, peak memory."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Means of metrics since they were last asked for, and samples per second; adds without waiting for the GPU.

    Args:
        state: of the meter of a run that goes on, from `state`; None starts from nothing.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {"sums": {}, "count": 0}
        self._sums: dict[str, Tensor] = dict(state["sums"])
        self._count: int = state["count"]
        self._timed, self._began = 0, time.perf_counter()

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the metrics of a step."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)).to(value.device) + value
        self._count += 1
        self._timed += 1

    @staticmethod
    def knows(state: object) -> bool:
        """Return True for what `state` returns."""
        return (
            isinstance(state, dict)
            and state.keys() == {"sums", "count"}
            and isinstance(state["count"], int)
            and isinstance(state["sums"], dict)
            and all(isinstance(total, Tensor) and total.dim() == 0 for total in state["sums"].values())
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that the first means after a resume are those of the undisturbed run."""
        return {"sums": dict(self._sums), "count": self._count}

    def means(self, batch_size: int) -> dict[str, float]:
        """Return the means of the steps added, of `batch_size` samples each, and start again."""
        seconds = time.perf_counter() - self._began
        means = {name: (total / self._count).item() for name, total in self._sums.items()}
        means["samples_per_second"] = self._timed * batch_size / seconds
        self._sums, self._count = {}, 0
        self._timed, self._began = 0, time.perf_counter()
        return means


def reset_peak_memory(device: torch.device) -> None:
    """Count from here on, where counting can start again: on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes of tensors on the GPU; without one, of the whole process (maximum resident set), torch itself included.

    0 where the system does not tell: on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
