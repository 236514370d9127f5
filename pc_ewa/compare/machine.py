"""The machine: processor, cores and GPU."""

import os
import platform
import re
from pathlib import Path

import torch


def cores() -> int:
    """Count the cores that this process may use."""
    # cpu_count() counts the cores of the machine, not those of a container or a Slurm job.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> str:
    """Return processor, cores and GPU. The host name is left out, because results are published."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), flags=re.MULTILINE)
        processor = models[0].strip() if models else processor
    count = cores()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor}, {count} core{'s' if count > 1 else ''}{gpu}"
