"""Peak memory of this process, as reported by Linux."""

import re
from collections.abc import Callable
from pathlib import Path

RESET = Path("/proc/self/clear_refs")


def can_weigh() -> bool:
    """Return True if the kernel reports the peak memory of a process, as Linux does."""
    return RESET.exists()


def peak_of(call: Callable[[], object]) -> float:
    """Call a function and return the peak memory beyond the memory in use before, in MB."""
    # Writing 5 resets VmHWM, the peak resident memory, to the current value (proc(5), clear_refs).
    RESET.write_text("5")
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1e6


def _status(key: str) -> int:
    """Return an entry of /proc/self/status in bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
