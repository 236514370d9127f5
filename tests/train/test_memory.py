"""The peak of memory: in bytes, of the GPU where there is one, and of the whole run where it was cut off."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cut_off import run_until_saved

from pc_ewa.config import Experiment
from pc_ewa.train import loop, run
from pc_ewa.train.meter import peak_memory, reset_peak_memory

MakeExperiment = Callable[..., Experiment]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_the_summary_and_the_report_tell_it(trained: Any) -> None:
    """Of a process that holds torch: hundreds of MiB, and not KiB taken for bytes."""
    assert 100 * 2**20 < trained.summary["peak_memory"] < 100 * 2**30
    log = (trained.folder / "log.txt").read_text()
    assert f"peak memory: {trained.summary['peak_memory'] / 2**20:,.0f} MiB" in log


@pytest.mark.parametrize(("platform", "peak"), [("linux", 5 * 1024), ("darwin", 5)])
def test_without_a_gpu_it_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch, platform: str, peak: int) -> None:
    """Linux counts in KiB, macOS in bytes."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5))
    assert peak_memory(CPU) == peak


def test_on_a_gpu_it_is_that_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 if device == GPU else 0)
    reset_peak_memory(CPU)
    reset_peak_memory(GPU)
    assert asked == [GPU]
    assert peak_memory(GPU) == 7


def test_a_run_that_was_cut_off_keeps_the_peak_of_before(
    experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for peak, step in ((900, 2), (400, None)):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "peak_memory", lambda device, peak=peak: peak)
            if step:
                run_until_saved(step, experiment(), patch)
            else:
                summary = run(experiment())
    assert summary is not None
    assert summary["peak_memory"] == 900
