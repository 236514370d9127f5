"""Freed memory stays with the process inside the block, and goes back to the kernel after it."""

import platform
import re
from pathlib import Path

import torch

from pc_ewa.heap import freed_memory_kept

MEGABYTES = 150


def resident() -> float:
    """Memory of this process in MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024


def test_freed_memory_is_kept_and_given_back():
    if platform.libc_ver()[0] != "glibc" or not Path("/proc/self/status").exists():
        with freed_memory_kept():  # does nothing, and says nothing
            return
    before = resident()
    with freed_memory_kept():
        tensor = torch.ones(MEGABYTES * 2**18)
        del tensor
        assert resident() > before + 0.9 * MEGABYTES
    assert resident() < before + 0.3 * MEGABYTES
