"""Measurements of a run: means of metrics, samples per second, peak memory."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pc_ewa.train.distributed import mean_of_all


class Meter:
    """Running means of metrics, and samples per second. Adding a step does not wait for the GPU.

    Args:
        state: the state of the meter of a resumed run, from `state`. None starts with no steps.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {"sums": {}, "count": 0}
        # Since `state` the sums are those of this process; those up to it are the means over all processes, the same on
        # each, so that a mean over processes leaves them as they are.
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
        """Return True for a value that `state` could have returned."""
        return (
            isinstance(state, dict)
            and state.keys() == {"sums", "count"}
            and isinstance(state["count"], int)
            and isinstance(state["sums"], dict)
            and all(isinstance(total, Tensor) and total.dim() == 0 for total in state["sums"].values())
        )

    def state(self) -> dict[str, Any]:
        """Return the sums for a checkpoint, so that the first means after a resume are those of the uninterrupted run.

        A collective: all processes then continue from the same sums.
        """
        self._sums = mean_of_all(self._sums)
        return {"sums": dict(self._sums), "count": self._count}

    def means(self, batch_size: int) -> dict[str, float]:
        """Return the means over the added steps of `batch_size` samples each, and reset. A collective."""
        seconds = time.perf_counter() - self._began
        means = {name: (total / self._count).item() for name, total in mean_of_all(self._sums).items()}
        means["samples_per_second"] = self._timed * batch_size / seconds
        self._sums, self._count = {}, 0
        self._timed, self._began = 0, time.perf_counter()
        return means


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory counter of a GPU. A process on the CPU has no such counter."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of tensors on the GPU, else of the whole process (maximum resident set).

    Returns 0 on Windows, which has no `resource` module.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    # macOS reports bytes, Linux kibibytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
