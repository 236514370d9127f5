"""Means of the metrics of training steps."""

import time

import torch
from torch import Tensor


class Meter:
    """Means of metrics since they were last asked for, and shapes per second; adds without waiting for the GPU."""

    def __init__(self) -> None:
        self._reset()

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the metrics of a step."""
        for name, figure in metrics.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(figure)) + figure
        self._count += 1

    def means(self, batch_size: int) -> dict[str, float]:
        """Return the means of the steps added, of `batch_size` shapes each, and begin anew."""
        seconds = time.perf_counter() - self._began
        means = {name: (total / self._count).item() for name, total in self._sums.items()}
        means["samples_per_second"] = self._count * batch_size / seconds
        self._reset()
        return means

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count, self._began = 0, time.perf_counter()
